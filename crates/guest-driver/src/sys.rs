// SPDX-License-Identifier: GPL-2.0-only

//! Raw kernel interface: `kernel::bindings`, what Kbuild's bindgen run adds to it, and
//! the C functions of `c/`.
//!
//! Facility: none of its own. C headers: `c/bindings.h`, `c/helpers.h`,
//! `uapi/cdm.h`. Invariant: every raw symbol that another file uses comes from here,
//! so that one place shows what the driver depends on.

#[allow(
    missing_docs,
    dead_code,
    non_camel_case_types,
    non_upper_case_globals,
    clippy::all,
    improper_ctypes,
    unreachable_pub
)]
mod generated {
    use kernel::bindings::*;
    use kernel::ffi;

    /// Opaque here; `c/virtio.c` reads its fields.
    #[repr(C)]
    pub struct virtio_device {
        _fields: [u8; 0],
    }

    /// Opaque here; `c/virtio.c` reads its fields.
    #[repr(C)]
    pub struct virtqueue {
        _fields: [u8; 0],
    }

    include!(env!("CDM_BINDINGS"));
}

pub(crate) use generated::*;
pub(crate) use kernel::bindings::*;

/// The C structure of a device.
pub(crate) fn raw_device(dev: &kernel::device::Device) -> *mut device {
    core::ptr::from_ref(dev).cast_mut().cast()
}

// SAFETY: `struct cdm_query` is made of integers without padding; every bit pattern is valid.
unsafe impl kernel::transmute::FromBytes for cdm_query {}
// SAFETY: As above.
unsafe impl kernel::transmute::AsBytes for cdm_query {}
// SAFETY: `struct cdm_migrate` is made of integers without padding; every bit pattern is valid.
unsafe impl kernel::transmute::FromBytes for cdm_migrate {}
// SAFETY: As above.
unsafe impl kernel::transmute::AsBytes for cdm_migrate {}
// SAFETY: `struct cdm_residency` is made of integers without padding; every bit pattern is valid.
unsafe impl kernel::transmute::FromBytes for cdm_residency {}
// SAFETY: As above.
unsafe impl kernel::transmute::AsBytes for cdm_residency {}
// SAFETY: `struct cdm_evict` is made of integers without padding; every bit pattern is valid.
unsafe impl kernel::transmute::FromBytes for cdm_evict {}
// SAFETY: As above.
unsafe impl kernel::transmute::AsBytes for cdm_evict {}
// SAFETY: `struct cdm_command` is made of integers without padding; every bit pattern is valid.
unsafe impl kernel::transmute::FromBytes for cdm_command {}
// SAFETY: As above.
unsafe impl kernel::transmute::AsBytes for cdm_command {}
// SAFETY: `struct cdm_bind` is made of integers without padding; every bit pattern is valid.
unsafe impl kernel::transmute::FromBytes for cdm_bind {}
// SAFETY: As above.
unsafe impl kernel::transmute::AsBytes for cdm_bind {}
// SAFETY: `struct cdm_range` is made of integers without padding; every bit pattern is valid.
unsafe impl kernel::transmute::FromBytes for cdm_range {}
// SAFETY: As above.
unsafe impl kernel::transmute::AsBytes for cdm_range {}
// SAFETY: `struct cdm_batch_command` is made of integers without padding; every bit pattern is valid.
unsafe impl kernel::transmute::FromBytes for cdm_batch_command {}
// SAFETY: As above.
unsafe impl kernel::transmute::AsBytes for cdm_batch_command {}
// SAFETY: `struct cdm_batch` is made of integers without padding; every bit pattern is valid.
unsafe impl kernel::transmute::FromBytes for cdm_batch {}
// SAFETY: As above.
unsafe impl kernel::transmute::AsBytes for cdm_batch {}
// SAFETY: `struct cdm_hot` is made of integers without padding; every bit pattern is valid.
unsafe impl kernel::transmute::FromBytes for cdm_hot {}
// SAFETY: As above.
unsafe impl kernel::transmute::AsBytes for cdm_hot {}
// SAFETY: `struct cdm_hot_counters` is made of integers without padding; every bit pattern is valid.
unsafe impl kernel::transmute::FromBytes for cdm_hot_counters {}
// SAFETY: As above.
unsafe impl kernel::transmute::AsBytes for cdm_hot_counters {}
// SAFETY: `struct hmm_dmirror_cmd` is made of integers without padding; every bit pattern is valid.
unsafe impl kernel::transmute::FromBytes for hmm_dmirror_cmd {}
// SAFETY: As above.
unsafe impl kernel::transmute::AsBytes for hmm_dmirror_cmd {}
