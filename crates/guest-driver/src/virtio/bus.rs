// SPDX-License-Identifier: GPL-2.0-only

//! The virtio bus: devices, and the driver that the module registers for them.
//!
//! Facility: the virtio bus. C headers: `linux/virtio.h`, `linux/virtio_config.h`. Contexts:
//! [`Driver`] callbacks run in process context under the device lock. Invariant: no callback
//! runs before [`Registration`] is made or after it is dropped.

use core::marker::PhantomData;
use core::ptr::NonNull;

use kernel::device::Device;
use kernel::prelude::*;
use kernel::types::{ForeignOwnable, Opaque};
use zerocopy::FromBytes;

use crate::sys;

/// A virtio device.
///
/// # Invariants
///
/// The pointer is valid while the driver is bound to the device, which is as long as
/// values of this type are used.
#[derive(Clone, Copy)]
pub(crate) struct VirtioDevice(NonNull<sys::virtio_device>);

// SAFETY: A `struct virtio_device` may be used from any thread.
unsafe impl Send for VirtioDevice {}
// SAFETY: The functions that are called through it lock what they change.
unsafe impl Sync for VirtioDevice {}

impl VirtioDevice {
    pub(super) fn as_ptr(self) -> *mut sys::virtio_device {
        self.0.as_ptr()
    }

    /// The `struct device` in it.
    pub(crate) fn device(&self) -> &Device {
        // SAFETY: By the type invariant the device is valid, and so is the one in it.
        unsafe { Device::from_raw(sys::cdm_vdev_device(self.as_ptr())) }
    }

    /// The node that the bus gives it; negative if none.
    pub(crate) fn node(self) -> i32 {
        // SAFETY: By the type invariant.
        unsafe { sys::cdm_vdev_node(self.as_ptr()) }
    }

    /// Reads the config space, if it is long enough; its length if it is not.
    pub(crate) fn read_config<T: FromBytes + zerocopy::IntoBytes>(self) -> Result<T, u32> {
        // SAFETY: By the type invariant.
        let bytes = unsafe { sys::cdm_vdev_config_bytes(self.as_ptr()) };
        if (bytes as usize) < size_of::<T>() {
            return Err(bytes);
        }
        let mut config = T::new_zeroed();
        let buffer = config.as_mut_bytes();
        // SAFETY: By the type invariant; the buffer has that many bytes, and so has the
        // config space.
        unsafe {
            sys::cdm_vdev_read_config(
                self.as_ptr(),
                buffer.as_mut_ptr().cast(),
                size_of::<T>() as u32,
            )
        };
        Ok(config)
    }

    /// Base and length of a shared memory region.
    pub(crate) fn shm_region(self, id: u8) -> Option<(u64, u64)> {
        let (mut base, mut bytes) = (0, 0);
        // SAFETY: By the type invariant; both pointers are valid for writing.
        let found = unsafe { sys::cdm_vdev_shm_region(self.as_ptr(), id, &mut base, &mut bytes) };
        found.then_some((base, bytes))
    }

    /// Stops and resets the device the way the virtio core does at power-off.
    pub(crate) fn shut_down(self) {
        // SAFETY: By the type invariant.
        unsafe { sys::virtio_device_shutdown(self.as_ptr()) }
    }
}

/// What a driver does with its devices.
pub(crate) trait Driver: Send + Sync + Sized + 'static {
    /// Makes the device usable.
    fn probe(vdev: VirtioDevice) -> Result<Pin<KBox<Self>>>;
    /// Gives the device up for good. Leaves it reset.
    fn remove(this: Pin<KBox<Self>>);
    /// Quiesces the device before power-off, reboot or kexec.
    fn shutdown(&self);
}

/// A registered virtio driver.
///
/// # Invariants
///
/// `driver` is registered, and `ids` is the table that it points to.
#[pin_data(PinnedDrop)]
pub(crate) struct Registration<T: Driver> {
    #[pin]
    driver: Opaque<sys::virtio_driver>,
    ids: KBox<[sys::virtio_device_id; 2]>,
    _driver: PhantomData<T>,
}

// SAFETY: A driver may be unregistered by another thread than the one that registered it.
unsafe impl<T: Driver> Send for Registration<T> {}
// SAFETY: There is no operation on a shared reference.
unsafe impl<T: Driver> Sync for Registration<T> {}

impl<T: Driver> Registration<T> {
    pub(crate) fn new(
        module: &'static ThisModule,
        name: &'static CStr,
        id: u32,
    ) -> impl PinInit<Self, Error> {
        // The second entry, all zero, ends the table.
        let ids = KBox::new(
            [
                sys::virtio_device_id {
                    device: id,
                    vendor: u32::MAX,
                },
                sys::virtio_device_id {
                    device: 0,
                    vendor: 0,
                },
            ],
            GFP_KERNEL,
        );
        pin_init::pin_init_scope(move || {
            let ids = ids?;
            let table = ids.as_ptr();
            Ok(try_pin_init!(Self {
                // INVARIANT: Registered below; the table is in the same structure.
                driver <- Opaque::try_ffi_init(move |slot: *mut sys::virtio_driver| {
                    // SAFETY: All zero bytes are a valid `struct virtio_driver`.
                    let mut driver: sys::virtio_driver = unsafe { core::mem::zeroed() };
                    driver.driver.name = name.as_char_ptr();
                    driver.id_table = table;
                    driver.probe = Some(Self::probe);
                    driver.remove = Some(Self::remove);
                    driver.shutdown = Some(Self::shutdown);
                    // SAFETY: `slot` is valid for writing.
                    unsafe { slot.write(driver) };
                    // SAFETY: `slot` is pinned and holds a complete driver, whose name,
                    // table and functions live until it is unregistered.
                    let err = unsafe { sys::__register_virtio_driver(slot, module.as_ptr()) };
                    kernel::error::to_result(err)
                }),
                ids,
                _driver: PhantomData,
            }? Error))
        })
    }

    /// The bus found a device for the driver.
    ///
    /// # Safety
    ///
    /// The bus calls it with a device that is being bound to this driver.
    unsafe extern "C" fn probe(vdev: *mut sys::virtio_device) -> c_int {
        kernel::error::from_result(|| {
            // INVARIANT: The bus passes a device that is being bound.
            let vdev = VirtioDevice(NonNull::new(vdev).ok_or(ENODEV)?);
            let data = T::probe(vdev)?;
            // SAFETY: The device is valid; its drvdata is this driver's.
            unsafe { sys::dev_set_drvdata(sys::raw_device(vdev.device()), data.into_foreign()) };
            Ok(0)
        })
    }

    /// The device leaves the driver.
    ///
    /// # Safety
    ///
    /// The bus calls it with a device that `probe` accepted.
    unsafe extern "C" fn remove(vdev: *mut sys::virtio_device) {
        // SAFETY: The bus passes a device that this driver is bound to, so drvdata is
        // what `probe` put there, and nobody uses it after this call.
        let data = unsafe {
            <Pin<KBox<T>>>::from_foreign(sys::dev_get_drvdata(sys::cdm_vdev_device(vdev)))
        };
        T::remove(data);
    }

    /// The machine goes down.
    ///
    /// # Safety
    ///
    /// The bus calls it with a device that `probe` accepted, under the device lock.
    unsafe extern "C" fn shutdown(vdev: *mut sys::virtio_device) {
        // SAFETY: As for `remove`, except that the data stays where it is; the device
        // lock keeps `remove` away.
        let data =
            unsafe { <Pin<KBox<T>>>::borrow(sys::dev_get_drvdata(sys::cdm_vdev_device(vdev))) };
        data.get_ref().shutdown();
    }
}

#[pinned_drop]
impl<T: Driver> PinnedDrop for Registration<T> {
    fn drop(self: Pin<&mut Self>) {
        // SAFETY: Registered by the type invariant. Removes every device first.
        unsafe { sys::unregister_virtio_driver(self.driver.get()) }
    }
}

/// Devices that were left running without a driver; the module holds it until it goes.
pub(crate) struct LeftRunning(());

impl LeftRunning {
    /// # Safety
    ///
    /// It is dropped when no device has the module's driver any more, and once.
    pub(crate) unsafe fn new() -> Self {
        Self(())
    }
}

impl Drop for LeftRunning {
    fn drop(&mut self) {
        // SAFETY: By the contract of `new`.
        unsafe { sys::cdm_vdevs_let_go() };
    }
}
