// SPDX-License-Identifier: GPL-2.0-only

//! Types of device memory, and what driver and kernel can do with each.
//!
//! Facility: `enum memory_type`. C header: `linux/memremap.h`. Contexts: any. Lock order:
//! none. Invariant: what is said of a type follows from the kernel that the module was built
//! for, and from module parameters.

use crate::alloc::ORDER_MAX;
use crate::sys;

/// Type of the struct pages.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(crate) enum MemoryType {
    /// MEMORY_DEVICE_PRIVATE, which the CPU cannot map.
    Private,
    /// MEMORY_DEVICE_COHERENT, which every 7.3 kernel has.
    Coherent,
    /// MEMORY_DEVICE_PUBLIC, which the patch series adds.
    Public,
}

impl MemoryType {
    /// Whether the kernel that the module was built for has it.
    pub(crate) fn is_available(self) -> bool {
        self.select() != 0
    }

    /// Whether the CPU can load from it and store to it.
    pub(crate) fn is_cpu_addressable(self) -> bool {
        self != Self::Private
    }

    /// Its number on the ioctl interface.
    pub(crate) fn uapi(self) -> u32 {
        match self {
            Self::Private => sys::cdm_memory_type_CDM_MEMORY_PRIVATE,
            Self::Coherent => sys::cdm_memory_type_CDM_MEMORY_COHERENT,
            Self::Public => sys::cdm_memory_type_CDM_MEMORY_PUBLIC,
        }
    }

    pub(crate) fn name(self) -> &'static str {
        match self {
            Self::Private => "private",
            Self::Coherent => "coherent",
            Self::Public => "public",
        }
    }

    /// Its name in the kernel.
    pub(crate) fn kernel_name(self) -> &'static str {
        match self {
            Self::Private => "MEMORY_DEVICE_PRIVATE",
            Self::Coherent => "MEMORY_DEVICE_COHERENT",
            Self::Public => "MEMORY_DEVICE_PUBLIC",
        }
    }

    /// The kernel option that brings it.
    pub(crate) fn option(self) -> &'static str {
        match self {
            Self::Private => "CONFIG_DEVICE_PRIVATE",
            Self::Coherent => "CONFIG_ZONE_DEVICE",
            Self::Public => "CONFIG_DEVICE_PUBLIC",
        }
    }

    /// Whether folios of 2 MiB of it are sound in this kernel. The module parameter
    /// `max_order` overrules it.
    pub(crate) fn has_large_folios(self) -> bool {
        // SAFETY: Returns a module parameter.
        match unsafe { sys::cdm_param_max_order() } {
            // Upstream's own suite covers large folios of private memory.
            -1 => sys::CDM_LARGE_IS_SOUND || self == Self::Private,
            order => order != 0,
        }
    }

    /// Order of the largest folios that move whole.
    pub(crate) fn max_order(self) -> u32 {
        match self.has_large_folios() {
            true => ORDER_MAX,
            false => 0,
        }
    }

    /// Whether page cache and shared memory migrate to it.
    pub(crate) fn takes_files(self) -> bool {
        self == Self::Public && sys::CDM_FILES_MIGRATE
    }

    /// Whether the driver helps a memory cgroup that is at its limit. It cannot wait for a
    /// device then, so the CPU must be able to copy.
    pub(super) fn can_relieve(self) -> bool {
        sys::CDM_HAS_RECLAIM && self.is_cpu_addressable()
    }

    /// What driver and kernel can do with it, by the bits of the ioctl interface.
    pub(crate) fn capabilities(self) -> u32 {
        let mut bits = 0;
        if self.is_cpu_addressable() {
            bits |= sys::CDM_CAN_CPU_ACCESS;
        }
        if self.has_large_folios() {
            bits |= sys::CDM_CAN_MOVE_LARGE;
        }
        if self.takes_files() {
            bits |= sys::CDM_CAN_MOVE_FILES;
        }
        if self.can_relieve() {
            bits |= sys::CDM_CAN_RELIEVE;
        }
        bits
    }

    /// Its number in `enum memory_type`.
    pub(super) fn number(self) -> u32 {
        match self {
            Self::Private => sys::CDM_MEMORY_TYPE_PRIVATE,
            Self::Coherent => sys::CDM_MEMORY_TYPE_COHERENT,
            Self::Public => sys::CDM_MEMORY_TYPE_PUBLIC,
        }
    }

    /// Its flag of `struct migrate_vma`; zero if the kernel does not have the type.
    pub(super) fn select(self) -> u64 {
        match self {
            Self::Private => sys::CDM_SELECT_PRIVATE,
            Self::Coherent => sys::CDM_SELECT_COHERENT,
            Self::Public => sys::CDM_SELECT_PUBLIC,
        }
    }
}
