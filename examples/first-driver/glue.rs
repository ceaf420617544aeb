// SPDX-License-Identifier: GPL-2.0-only

//! The C side of the example as Rust: `device.c`, `memory.c` and `bus.c`, each behind a type that calls
//! it in the right order.

use core::marker::PhantomData;
use core::mem::ManuallyDrop;

use kernel::prelude::*;
use kernel::types::ForeignOwnable;
use zerocopy::{FromBytes, IntoBytes};

/// The structures of example.h, which only C looks into.
mod raw {
    use kernel::prelude::*;

    #[repr(C)]
    pub(super) struct VirtioDevice([u8; 0]);
    #[repr(C)]
    pub(super) struct Device([u8; 0]);
    #[repr(C)]
    pub(super) struct Memory([u8; 0]);
    #[repr(C)]
    pub(super) struct Move([u8; 0]);

    pub(super) type Probe = unsafe extern "C" fn(*mut VirtioDevice, *mut *mut c_void) -> c_int;

    extern "C" {
        pub(super) fn first_register(
            owner: *mut c_void,
            id: u32,
            probe: Probe,
            remove: unsafe extern "C" fn(*mut c_void),
            migrate: unsafe extern "C" fn(*mut c_void, usize) -> c_int,
        ) -> c_int;
        pub(super) fn first_unregister();
        pub(super) fn first_config(vdev: *mut VirtioDevice, config: *mut c_void, bytes: u32);
        pub(super) fn first_collect_own(memory: *mut Memory, address: usize) -> *mut Move;
        pub(super) fn example_start(vdev: *mut VirtioDevice) -> *mut Device;
        pub(super) fn example_ask(device: *mut Device, opcode: u16, result: *mut u64) -> c_int;
        pub(super) fn example_region(device: *mut Device, base: *mut u64, bytes: *mut u64)
            -> c_int;
        pub(super) fn example_stop(device: *mut Device);
        pub(super) fn example_hotplug(base: u64, bytes: u64) -> *mut Memory;
        pub(super) fn example_unplug(memory: *mut Memory);
        pub(super) fn example_copy(memory: *mut Memory, page: *mut Move, to_device: bool) -> c_int;
        pub(super) fn example_finish(page: *mut Move) -> bool;
    }
}

/// What a driver does.
pub(crate) trait Driver: Send + Sync + Sized + 'static {
    /// Makes a device usable.
    fn probe(found: Unclaimed) -> Result<Self>;
    /// Moves a page of the calling process into the device.
    fn migrate(&self, address: usize) -> Result;
}

/// A registered driver, one for each module.
pub(crate) struct Registration<T: Driver>(PhantomData<T>);

impl<T: Driver> Registration<T> {
    pub(crate) fn new(module: &'static ThisModule, id: u32) -> Result<Self> {
        // SAFETY: The module's own functions, which stay until it is unregistered.
        let err = unsafe {
            raw::first_register(
                module.as_ptr().cast(),
                id,
                Self::probe,
                Self::remove,
                Self::migrate,
            )
        };
        kernel::error::to_result(err)?;
        Ok(Self(PhantomData))
    }

    /// # Safety
    ///
    /// The bus calls it with a device that is being bound, and keeps what it leaves in `data`.
    unsafe extern "C" fn probe(vdev: *mut raw::VirtioDevice, data: *mut *mut c_void) -> c_int {
        kernel::error::from_result(|| {
            let bound = KBox::new(T::probe(Unclaimed(vdev))?, GFP_KERNEL)?;
            // SAFETY: By the function's contract.
            unsafe { *data = bound.into_foreign().cast() };
            Ok(0)
        })
    }

    /// # Safety
    ///
    /// `data` is what `probe` left, and is used no more.
    unsafe extern "C" fn remove(data: *mut c_void) {
        // SAFETY: By the function's contract.
        drop(unsafe { KBox::<T>::from_foreign(data.cast()) });
    }

    /// # Safety
    ///
    /// `data` is what `probe` left, and stays during the call, which a process makes.
    unsafe extern "C" fn migrate(data: *mut c_void, address: usize) -> c_int {
        // SAFETY: By the function's contract.
        let bound = unsafe { KBox::<T>::borrow(data.cast()) };
        kernel::error::from_result(|| bound.migrate(address).map(|()| 0))
    }
}

impl<T: Driver> Drop for Registration<T> {
    fn drop(&mut self) {
        // SAFETY: Registered once. Removes the device first.
        unsafe { raw::first_unregister() };
    }
}

/// A device that the driver has not taken yet; valid while it is being bound.
pub(crate) struct Unclaimed(*mut raw::VirtioDevice);

impl Unclaimed {
    /// The beginning of the config space.
    pub(crate) fn config<T: FromBytes + IntoBytes>(&self) -> T {
        let mut config = T::new_zeroed();
        let bytes = config.as_mut_bytes();
        // SAFETY: The device is being bound; the buffer has that many bytes.
        unsafe { raw::first_config(self.0, bytes.as_mut_ptr().cast(), bytes.len() as u32) };
        config
    }

    /// Finds the control queue and says that there is a driver.
    pub(crate) fn start(self) -> Result<Device> {
        // SAFETY: The device is being bound.
        kernel::error::from_err_ptr(unsafe { raw::example_start(self.0) }).map(Device)
    }
}

/// A device that answers; stopped when it is dropped.
pub(crate) struct Device(*mut raw::Device);

// SAFETY: Its functions take turns by a lock of their own.
unsafe impl Send for Device {}
// SAFETY: As above.
unsafe impl Sync for Device {}

impl Device {
    /// Makes a control request without arguments.
    pub(crate) fn ask(&self, opcode: u16) -> Result {
        // SAFETY: Started, and not stopped.
        kernel::error::to_result(unsafe { raw::example_ask(self.0, opcode, core::ptr::null_mut()) })
    }

    /// Where the memory is, and how much.
    pub(crate) fn region(&self) -> Result<(u64, u64)> {
        let (mut base, mut bytes) = (0, 0);
        // SAFETY: Started, and not stopped; both are valid for writing.
        let err = unsafe { raw::example_region(self.0, &mut base, &mut bytes) };
        kernel::error::to_result(err).map(|()| (base, bytes))
    }
}

impl Drop for Device {
    fn drop(&mut self) {
        // SAFETY: Started, and stopped once.
        unsafe { raw::example_stop(self.0) };
    }
}

/// Device memory with struct pages; unplugged when it is dropped, and every page is home.
pub(crate) struct Memory(*mut raw::Memory);

// SAFETY: Its free pages are behind a lock of their own.
unsafe impl Send for Memory {}
// SAFETY: As above.
unsafe impl Sync for Memory {}

impl Memory {
    pub(crate) fn hotplug(base: u64, bytes: u64) -> Result<Self> {
        // SAFETY: Takes values; what it needs of them it checks.
        kernel::error::from_err_ptr(unsafe { raw::example_hotplug(base, bytes) }).map(Self)
    }
}

impl Drop for Memory {
    fn drop(&mut self) {
        // SAFETY: Hotplugged, and unplugged once.
        unsafe { raw::example_unplug(self.0) };
    }
}

/// A page of a process that is locked and mapped nowhere; mapped again when it is dropped.
pub(crate) struct Move(*mut raw::Move);

impl Move {
    /// Takes a page from the calling process, if there is one that moves.
    pub(crate) fn collect(memory: &Memory, address: usize) -> Option<Self> {
        // SAFETY: The memory is plugged in; a process calls, and has an address space.
        let page = unsafe { raw::first_collect_own(memory.0, address) };
        // Only a page that there is may be dropped, so none is made before that is known.
        (!page.is_null()).then(|| Self(page))
    }

    /// Gives it a page of the device, with its contents.
    pub(crate) fn copy(&mut self, memory: &Memory) -> Result {
        // SAFETY: Collected, and not finished.
        kernel::error::to_result(unsafe { raw::example_copy(memory.0, self.0, true) })
    }

    /// Maps it again; whether it is in the device now.
    pub(crate) fn finish(self) -> bool {
        // SAFETY: Collected, and finished once: it is not dropped.
        unsafe { raw::example_finish(ManuallyDrop::new(self).0) }
    }
}

impl Drop for Move {
    fn drop(&mut self) {
        // SAFETY: Collected, and finished once.
        unsafe { raw::example_finish(self.0) };
    }
}
