// SPDX-License-Identifier: GPL-2.0-only

//! What a device is made to be: its type, its node, and where its memory is.
//!
//! Facility: none of its own; module parameters, and the control queue. Contexts: process
//! context, while the device is being bound, or the module loaded. Lock order: none. Invariant:
//! what cannot be is refused with one line that says what can.

use kernel::prelude::*;

use super::MIB;
use crate::command::Control;
use crate::identity::Identity;
use crate::memory_error::FailedMemory;
use crate::pagemap::{metadata_bytes, Layout, MemoryType};
use crate::sys;
use crate::virtio::VirtioDevice;
use crate::wire::{self, ControlOpcode};

/// Guest memory that struct pages must leave to the rest of the guest.
const RESERVE_BYTES: u64 = 16 << 20;

/// The memory type to use for a device: what the parameter says, or the best there is.
pub(super) fn memory_type(device: u32) -> Result<MemoryType> {
    // SAFETY: Returns a module parameter.
    let wanted = match unsafe { sys::cdm_param_memory_type(device) } {
        sys::cdm_memory_type_CDM_MEMORY_PRIVATE => MemoryType::Private,
        sys::cdm_memory_type_CDM_MEMORY_COHERENT => MemoryType::Coherent,
        sys::cdm_memory_type_CDM_MEMORY_PUBLIC => MemoryType::Public,
        sys::CDM_PARAM_NO_MEMORY_TYPE => {
            pr_err!(
                "memory_type names fewer devices than there are: nothing is said about cdm{}; name \
                 one type for all devices, or one for each\n",
                device
            );
            return Err(EINVAL);
        }
        _ if MemoryType::Public.is_available() => MemoryType::Public,
        _ => MemoryType::Coherent,
    };
    if !wanted.is_available() {
        pr_err!(
            "memory_type={}: this kernel has no {}; load with memory_type=coherent, or use a \
             kernel with {}\n",
            wanted.name(),
            wanted.kernel_name(),
            wanted.option()
        );
        return Err(EOPNOTSUPP);
    }
    Ok(wanted)
}

/// Refuses a parameter that asks for what the kernel lacks.
pub(crate) fn check_memory_types() -> Result {
    // SAFETY: Returns a module parameter.
    for device in 0..unsafe { sys::cdm_param_memory_types() } {
        memory_type(device)?;
    }
    Ok(())
}

/// The node of the memory: what the parameter says, else the bus's, else the nearest.
pub(super) fn node(vdev: VirtioDevice) -> Result<i32> {
    // SAFETY: Returns a module parameter.
    let wanted = unsafe { sys::cdm_param_numa_node() };
    for node in [wanted, vdev.node()] {
        // SAFETY: Takes any number.
        if unsafe { sys::cdm_node_usable(node) } {
            return Ok(node);
        }
        if wanted >= 0 {
            dev_err!(
                vdev.device(),
                "numa_node={}: no such node is online; see /sys/devices/system/node/online\n",
                wanted
            );
            return Err(EINVAL);
        }
    }
    // SAFETY: Returns the node of this CPU, or the nearest one with memory.
    Ok(unsafe { sys::cdm_node_default() })
}

/// Has the device map its memory, and decides where the struct pages go. What memory has failed
/// already comes with it.
pub(super) fn map_memory(
    vdev: VirtioDevice,
    control: &Control,
    identity: &Identity,
    memory_type: MemoryType,
    node: i32,
    device: u32,
) -> Result<(Layout, FailedMemory)> {
    let dev = vdev.device();
    let bytes = identity.memory_bytes;
    let failed = FailedMemory::of(control, identity).inspect_err(|err| {
        dev_err!(
            dev,
            "device does not say what memory has failed: error {}\n",
            err.to_errno()
        );
    })?;
    let metadata = metadata_bytes(bytes);
    let is_sound = !failed.is_in_first(metadata);
    // Without altmap, guest memory must do; better to know that before anything is mapped.
    // SAFETY: Returns a module parameter.
    let is_altmap_wanted = unsafe { sys::cdm_param_altmap() };
    // Struct pages are for the CPU, and private memory is not.
    let is_altmap = is_altmap_wanted
        && is_sound
        && memory_type.is_cpu_addressable()
        && identity.features & wire::FEATURE_METADATA_GUARD != 0;
    if !is_sound && is_altmap_wanted && memory_type.is_cpu_addressable() {
        dev_warn!(
            dev,
            "device memory has failed where the struct pages would be: guest memory holds them\n"
        );
    }
    if !is_altmap {
        // SAFETY: Reads counters.
        let pages = unsafe { sys::si_mem_available() };
        let available = u64::try_from(pages).unwrap_or(0) * crate::batch::PAGE_BYTES;
        if available < metadata + RESERVE_BYTES {
            dev_err!(
                dev,
                "struct pages of {} MiB of device memory need {} MiB of guest memory, and {} MiB \
                 more must stay free; {} MiB are available; give the guest more memory{}\n",
                bytes / MIB,
                metadata / MIB,
                RESERVE_BYTES / MIB,
                available / MIB,
                if !is_sound || is_altmap_wanted || !memory_type.is_cpu_addressable() {
                    ""
                } else {
                    ", or load with altmap=Y to keep them in the device"
                }
            );
            return Err(ENOMEM);
        }
    }

    let mapped = control
        .call(ControlOpcode::MAP_MEMORY, 0, 0)
        .inspect_err(|err| {
            dev_err!(
                dev,
                "device cannot map its memory: error {}\n",
                err.to_errno()
            );
        })?;
    let region = vdev.shm_region(wire::SHMEM_REGION_ID);
    let base = match region {
        Some((base, length))
            if mapped == bytes && length >= bytes && base % sys::CDM_PMD_BYTES == 0 =>
        {
            base
        }
        _ => {
            let (base, length) = region.unwrap_or_default();
            dev_err!(
                dev,
                "device announces {:#x} bytes of memory and mapped {:#x}, shared memory region \
                 {} has {:#x} at {:#x}\n",
                bytes,
                mapped,
                wire::SHMEM_REGION_ID,
                length,
                base
            );
            return Err(ENODEV);
        }
    };

    let metadata_bytes = if is_altmap { metadata } else { 0 };
    if is_altmap {
        control
            .call(ControlOpcode::SET_METADATA, 0, metadata_bytes)
            .inspect_err(|err| {
                dev_err!(
                    dev,
                    "device does not guard the struct pages: error {}\n",
                    err.to_errno()
                );
            })?;
    }
    let layout = Layout {
        device,
        memory_type,
        base,
        bytes,
        metadata_bytes,
        node,
    };
    Ok((layout, failed))
}
