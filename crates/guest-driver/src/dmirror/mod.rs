// SPDX-License-Identifier: GPL-2.0-only

//! `/dev/hmm_dmirrorN`: the nodes of the kernel's own HMM test suite, on a real device.
//!
//! Facility: ioctls, over [`crate::misc`]. C header: the kernel's `lib/test_hmm_uapi.h`;
//! the suite is tools/testing/selftests/mm/hmm-tests.c. Contexts: process context. Lock
//! order: the gate of the device first. Invariant: the device touches memory of the process
//! that opened the node, and no other.
//!
//! The nodes exist when the module is loaded with `dmirror=1`, and are root's: who may open
//! one may also take the device's memory away from everybody (RELEASE).

mod access;
mod bounce;
mod moves;
mod snapshot;

use kernel::ffi::c_long;
use kernel::prelude::*;
use kernel::str::CString;
use kernel::sync::atomic::{Atomic, Full, Relaxed};
use kernel::sync::Arc;
use kernel::types::ForeignOwnable;
use kernel::uaccess::{UserPtr, UserSlice};

use crate::batch::{PageRange, PAGE_BYTES};
use crate::device::Device;
use crate::fault::Want;
use crate::mirror::AddressSpace;
use crate::misc::{Node, Operations, Shape};
use crate::{sys, CdmModule};

use access::Missing;

/// File operations of every node.
static OPERATIONS: Operations = Operations(sys::file_operations {
    owner: kernel::module::this_module::<CdmModule>().as_ptr(),
    open: Some(open),
    release: Some(release),
    unlocked_ioctl: Some(ioctl),
    mmap: Some(mmap),
    // SAFETY: All zero bytes are no operations.
    ..unsafe { core::mem::zeroed() }
});

/// Makes `/dev/hmm_dmirrorN`, if the module shall serve the suite.
pub(crate) fn register(device: &Arc<Device>) -> Result<Option<Pin<KBox<Node>>>> {
    // SAFETY: Returns a module parameter.
    if !unsafe { sys::cdm_param_dmirror() } {
        return Ok(None);
    }
    let name = CString::try_from_fmt(fmt!("hmm_dmirror{}", device.number()))?;
    let shape = Shape {
        operations: &OPERATIONS,
        mode: 0o600,
        groups: core::ptr::null_mut(),
    };
    Node::register(device, name, shape).map(Some)
}

/// An open node: the address space of the process that opened it, as the device sees it.
///
/// It stays that process's, also when a child inherits the file.
struct Client {
    /// Dropped first: no callback runs after that.
    space: AddressSpace,
    device: Arc<Device>,
    /// The next allocation of a migration shall fail.
    is_next_allocation_failing: Atomic<bool>,
}

impl Client {
    /// Whether an allocation shall fail; asked once for each.
    fn takes_failure(&self) -> bool {
        self.is_next_allocation_failing.load(Relaxed)
            && self.is_next_allocation_failing.xchg(false, Full)
    }
}

/// # Safety
///
/// The kernel calls it as `open` of a node of this file.
unsafe extern "C" fn open(_inode: *mut sys::inode, file: *mut sys::file) -> c_int {
    kernel::error::from_result(|| {
        // SAFETY: `misc_open()` left the miscdevice in `private_data`, and keeps it
        // registered.
        let device = unsafe { Node::device_of((*file).private_data.cast()) }.clone();
        let current = kernel::current!();
        let mm = current.mm().ok_or(ESRCH)?;
        let client = KBox::new(
            Client {
                space: AddressSpace::new(mm)?,
                device,
                is_next_allocation_failing: Atomic::new(false),
            },
            GFP_KERNEL,
        )?;
        // SAFETY: The file is being opened, so its private data is the driver's to set.
        unsafe { (*file).private_data = client.into_foreign() };
        Ok(0)
    })
}

/// # Safety
///
/// The kernel calls it as `release` of a file that `open` opened.
unsafe extern "C" fn release(_inode: *mut sys::inode, file: *mut sys::file) -> c_int {
    // SAFETY: `open` put the client there, and no operation on the file follows.
    drop(unsafe { KBox::<Client>::from_foreign((*file).private_data) });
    0
}

/// Maps zeroed pages, which are no anonymous memory: something for the device to look at.
///
/// # Safety
///
/// The kernel calls it as `mmap` of a file that `open` opened.
unsafe extern "C" fn mmap(_file: *mut sys::file, vma: *mut sys::vm_area_struct) -> c_int {
    // SAFETY: The area is being set up, under the mmap lock for writing.
    unsafe { sys::cdm_map_zeroed_pages(vma) }
}

/// # Safety
///
/// The kernel calls it as `unlocked_ioctl` of a file that `open` opened.
unsafe extern "C" fn ioctl(file: *mut sys::file, cmd: c_uint, arg: c_ulong) -> c_long {
    // SAFETY: `open` put the client there; it stays until `release`.
    let client = unsafe { KBox::<Client>::borrow((*file).private_data) };
    match dispatch(client, cmd, arg) {
        Ok(()) => 0,
        Err(err) => err.to_errno() as c_long,
    }
}

fn dispatch(client: &Client, cmd: u32, arg: usize) -> Result {
    let _inside = client.device.gate().enter()?;
    let at = UserPtr::from_addr(arg);
    let mut request: sys::hmm_dmirror_cmd = UserSlice::new(at, size_of::<sys::hmm_dmirror_cmd>())
        .reader()
        .read()?;
    let length = request.npages.checked_mul(PAGE_BYTES).ok_or(EINVAL)?;
    let range = PageRange::new(request.addr, length).ok_or(EINVAL)?;
    let user = UserPtr::from_addr(request.ptr as usize);
    request.cpages = 0;
    request.faults = 0;
    match cmd {
        sys::CDM_DMIRROR_READ | sys::CDM_DMIRROR_READ_UNLOCKED => {
            let missing = Missing::Fault {
                want: Want::Read,
                may_unlock: cmd == sys::CDM_DMIRROR_READ_UNLOCKED,
            };
            request.faults = access::read(client, range, user, missing)?;
            request.cpages = request.npages;
        }
        sys::CDM_DMIRROR_WRITE => {
            request.faults = access::write(client, range, user)?;
            request.cpages = request.npages;
        }
        sys::CDM_DMIRROR_MIGRATE_TO_DEV => {
            moves::to_device(client, range)?;
            access::read(client, range, user, Missing::Refuse)?;
            request.cpages = request.npages;
        }
        sys::CDM_DMIRROR_MIGRATE_TO_SYS => request.cpages = moves::to_system(client, range)?,
        sys::CDM_DMIRROR_SNAPSHOT => {
            snapshot::run(client, range, user)?;
            request.cpages = request.npages;
        }
        sys::CDM_DMIRROR_EXCLUSIVE => {
            access::take_exclusively(client, range)?;
            access::read(client, range, user, Missing::Refuse)?;
            request.cpages = request.npages;
        }
        sys::CDM_DMIRROR_CHECK_EXCLUSIVE => access::check_not_exclusive(client, range)?,
        sys::CDM_DMIRROR_RELEASE => moves::release(client)?,
        // The suite passes the flags in place of a number of pages.
        sys::CDM_DMIRROR_FLAGS => client.is_next_allocation_failing.store(
            request.npages & sys::CDM_DMIRROR_FLAG_FAIL_ALLOC != 0,
            Relaxed,
        ),
        _ => return Err(EINVAL),
    }
    UserSlice::new(at, size_of::<sys::hmm_dmirror_cmd>())
        .writer()
        .write(&request)
}
