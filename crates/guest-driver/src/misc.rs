// SPDX-License-Identifier: GPL-2.0-only

//! Device nodes.
//!
//! Facility: `miscdevice`. C header: `linux/miscdevice.h`. Contexts: process context.
//! Lock order: `misc_mtx`, which registering and opening take, is outermost. Invariant: a
//! node that is being opened stays registered meanwhile.
//!
//! `kernel::miscdevice` gives a device neither a name of its own, nor a parent, nor
//! attributes, hence the wrapper here.

use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::Arc;
use kernel::types::Opaque;

use crate::device::Device;
use crate::sys;

/// File operations of nodes.
pub(crate) struct Operations(pub(crate) sys::file_operations);

// SAFETY: The table is never written to.
unsafe impl Sync for Operations {}

/// What a node is like.
pub(crate) struct Shape {
    pub(crate) operations: &'static Operations,
    /// Who may open it.
    pub(crate) mode: u16,
    /// Attributes in sysfs; null for none.
    pub(crate) groups: *mut *const sys::attribute_group,
}

/// A registered node of a device.
///
/// # Invariants
///
/// `misc` is registered; `name` is its name.
#[pin_data(PinnedDrop)]
pub(crate) struct Node {
    #[pin]
    misc: Opaque<sys::miscdevice>,
    device: Arc<Device>,
    name: CString,
}

// SAFETY: A miscdevice may be deregistered by another thread than registered it.
unsafe impl Send for Node {}
// SAFETY: Shared references only reach the `Device`, which is `Sync`.
unsafe impl Sync for Node {}

impl Node {
    /// Makes a node for a device that is ready.
    pub(crate) fn register(
        device: &Arc<Device>,
        name: CString,
        shape: Shape,
    ) -> Result<Pin<KBox<Self>>> {
        let name_ptr = name.as_char_ptr();
        let parent = sys::raw_device(device.dev());
        KBox::try_pin_init(
            try_pin_init!(Self {
                device: device.clone(),
                name,
                // INVARIANT: Registered here; the name lives in the same structure.
                misc <- Opaque::try_ffi_init(move |slot: *mut sys::miscdevice| {
                    // SAFETY: All zero bytes are a valid `struct miscdevice`.
                    let mut misc: sys::miscdevice = unsafe { core::mem::zeroed() };
                    misc.minor = sys::MISC_DYNAMIC_MINOR as c_int;
                    misc.name = name_ptr;
                    misc.fops = &shape.operations.0;
                    misc.parent = parent;
                    misc.mode = shape.mode;
                    misc.groups = shape.groups;
                    // SAFETY: `slot` is valid for writing, and pinned.
                    unsafe { slot.write(misc) };
                    // SAFETY: The structure is complete, and lives until deregistered.
                    kernel::error::to_result(unsafe { sys::misc_register(slot) })
                }),
            }? Error),
            GFP_KERNEL,
        )
    }

    /// The device of a registered miscdevice of this driver.
    ///
    /// # Safety
    ///
    /// `misc` is the one in a `Node`, and stays registered for `'a`.
    pub(crate) unsafe fn device_of<'a>(misc: *mut sys::miscdevice) -> &'a Arc<Device> {
        let misc = Opaque::cast_from(misc);
        // SAFETY: By the function's contract.
        unsafe { &(*kernel::container_of!(misc, Self, misc)).device }
    }
}

#[pinned_drop]
impl PinnedDrop for Node {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the type invariant. Waits for `open` and for attributes.
        unsafe { sys::misc_deregister(self.misc.get()) };
    }
}
