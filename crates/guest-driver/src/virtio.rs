// SPDX-License-Identifier: GPL-2.0

//! Virtio driver, device and queues.
//!
//! Facility: the virtio bus. C headers: `linux/virtio.h`, `linux/virtio_config.h`.
//!
//! Contexts: [`Driver`] callbacks run in process context under the device lock. The
//! queue callback runs in hard interrupt context; it takes buffers off the ring and
//! signals, and leaves everything that may sleep to a work item.
//!
//! Lock order: `Queue::ring`, then `Request::parked`. Both are taken in interrupts.
//!
//! Invariant: a lent buffer stays untouched and allocated until its completion, or
//! until the device is reset. The ring holds a reference to each [`Request`] that it
//! lends, so a waiter may walk away at any time.

use core::cell::UnsafeCell;
use core::marker::PhantomData;
use core::ptr::NonNull;

use kernel::device::Device;
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Relaxed, Release};
use kernel::sync::{new_condvar, new_spinlock_irq, Arc, CondVar, SpinLockIrq, UniqueArc};
use kernel::types::{ForeignOwnable, Opaque};
use kernel::workqueue::{impl_has_work, new_work, Work, WorkItem};
use zerocopy::FromBytes;

use crate::done::{Done, Wait};
use crate::events::EventSink;
use crate::pins::Operands;
use crate::wire;
use crate::{sys, work};

/// Bytes that the device writes into a buffer, at most.
const INPUT_BYTES: usize = size_of::<wire::Completion>();
/// How often a waiter looks whether the device is still there.
const LOOK_MS: u32 = 500;
/// No limit for an answer.
const UNLIMITED_MS: u32 = u32::MAX;

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
    fn as_ptr(self) -> *mut sys::virtio_device {
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

/// What a request left behind when its waiter went away.
struct Parked {
    /// The device is done with the buffers.
    is_done: bool,
    /// Kept until then.
    operands: Option<Arc<Operands>>,
}

/// A request to the device: bytes for it to read, then room for its answer.
///
/// # Invariants
///
/// While the request is lent, neither `output` nor `input` is touched by the driver.
#[pin_data]
pub(crate) struct Request {
    /// Number in traces.
    token: u64,
    /// What the device reads.
    output: KVec<u8>,
    /// What the device writes.
    input: KBox<UnsafeCell<[u8; INPUT_BYTES]>>,
    /// Bytes that it wrote; `u32::MAX` until it did.
    written: Atomic<u32>,
    #[pin]
    done: Done,
    #[pin]
    parked: SpinLockIrq<Parked>,
    #[pin]
    release: Work<Request>,
}

// SAFETY: `input` is only read after `written` says that the device is done with it.
unsafe impl Sync for Request {}
// SAFETY: Nothing in a request belongs to a thread.
unsafe impl Send for Request {}

impl_has_work! {
    impl HasWork<Self> for Request { self.release }
}

/// Drops what an interrupt must not drop.
impl WorkItem for Request {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let operands = this.parked.lock().operands.take();
        drop(operands);
    }
}

/// A request that nobody else knows yet: its output can still be written.
///
/// Making one allocates everything that the request needs, so it can be filled in and
/// submitted where an allocation might wait for the caller's own locks.
pub(crate) struct Draft(Pin<UniqueArc<Request>>);

impl Draft {
    /// A request whose output starts with `output`, and keeps its room.
    pub(crate) fn new(output: KVec<u8>) -> Result<Self> {
        let input = KBox::new(UnsafeCell::new([0; INPUT_BYTES]), GFP_KERNEL)?;
        Ok(Self(UniqueArc::pin_init(
            pin_init!(Request {
                token: NEXT_TOKEN.fetch_add(1, Relaxed),
                output,
                input,
                written: Atomic::new(NOT_WRITTEN),
                done <- Done::new(),
                parked <- new_spinlock_irq!(Parked { is_done: false, operands: None }),
                release <- new_work!("cdm::Request::release"),
            }),
            GFP_KERNEL,
        )?))
    }

    /// What the device will read.
    pub(crate) fn output(&mut self) -> &mut KVec<u8> {
        self.0.as_mut().project().output
    }

    /// The request, which is not changed from here on.
    pub(crate) fn finish(self) -> Arc<Request> {
        self.0.into()
    }
}

/// Token of the next request.
static NEXT_TOKEN: Atomic<u64> = Atomic::new(1);
/// Not written yet.
const NOT_WRITTEN: u32 = u32::MAX;

impl Request {
    pub(crate) fn new(output: KVec<u8>) -> Result<Arc<Self>> {
        Ok(Draft::new(output)?.finish())
    }

    /// A number that tells requests apart in traces.
    pub(crate) fn token(&self) -> u64 {
        self.token
    }

    /// What the device answered; `None` while it has not, or if the answer is too short.
    pub(crate) fn answer<T: FromBytes>(&self) -> Option<T> {
        let written = self.written.load(Acquire);
        if written == NOT_WRITTEN || (written as usize) < size_of::<T>() {
            return None;
        }
        // SAFETY: `written` says that the device is done with the buffer, and no driver
        // code writes to it, so it can be read like any other memory.
        let input = unsafe { &*self.input.get() };
        T::read_from_prefix(input).ok().map(|(value, _)| value)
    }

    /// Waits until the device answered; EINTR after a signal, if they are heard, and ETIMEDOUT
    /// if the device is past answering. The request stays with the device then.
    pub(crate) fn wait_for(&self, transport: &Transport, signals: Signals) -> Result {
        let mut waited = 0;
        loop {
            let wait = match signals {
                Signals::Heard => self.done.wait_interruptible(LOOK_MS),
                Signals::Ignored => self.done.wait(LOOK_MS),
            };
            match wait {
                Wait::Done => return Ok(()),
                Wait::Interrupted => return Err(EINTR),
                Wait::TimedOut if transport.gives_up(&mut waited) => return Err(ETIMEDOUT),
                Wait::TimedOut => {}
            }
        }
    }

    /// Waits until the device answered or `ms` milliseconds went by.
    pub(crate) fn wait(&self, ms: u32) -> Result {
        match self.done.wait(ms) {
            Wait::Done => Ok(()),
            _ => Err(ETIMEDOUT),
        }
    }

    /// The waiter goes away: keep the operands until the device is done with them.
    pub(crate) fn abandon(&self, operands: Arc<Operands>) {
        let mut parked = self.parked.lock();
        if parked.is_done {
            drop(parked);
            drop(operands);
        } else {
            parked.operands = Some(operands);
        }
    }

    /// The device, or its reset, gives the buffers back.
    fn finish(self: Arc<Self>, written: u32) {
        self.written.store(written.min(INPUT_BYTES as u32), Release);
        let mut parked = self.parked.lock();
        parked.is_done = true;
        let is_abandoned = parked.operands.is_some();
        drop(parked);
        self.done.signal();
        if is_abandoned {
            // Fails only if it is queued already, and nobody else queues it.
            let _ = work::queue().enqueue(self);
        }
    }
}

/// Whether a wait ends when a signal comes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signals {
    /// It does.
    Heard,
    /// It does not: what the device works on is not the waiter's to walk away from.
    Ignored,
}

/// State of a queue under its lock.
struct Ring {
    /// The queue may be used at all.
    is_open: bool,
    /// Requests may be added.
    takes_more: bool,
}

/// Why a request cannot be lent now.
enum Refused {
    /// No descriptor is free.
    Full,
    /// The queue is closed, or broken.
    Errno(Error),
}

/// One virtqueue.
///
/// # Invariants
///
/// - `vq` is valid until [`Transport`] deletes it, which is after `is_open` went false.
/// - Every call on `vq` is made under `ring`.
/// - Each token on `vq` is a reference to a [`Request`].
#[pin_data]
pub(crate) struct Queue {
    vq: NonNull<sys::virtqueue>,
    #[pin]
    ring: SpinLockIrq<Ring>,
    /// A descriptor came free.
    #[pin]
    space: CondVar,
}

// SAFETY: `vq` is only used under `ring`.
unsafe impl Send for Queue {}
// SAFETY: As above.
unsafe impl Sync for Queue {}

impl Queue {
    fn new(vq: NonNull<sys::virtqueue>) -> impl PinInit<Self> {
        pin_init!(Self {
            vq,
            ring <- new_spinlock_irq!(Ring { is_open: true, takes_more: true }),
            space <- new_condvar!("cdm::Queue::space"),
        })
    }

    /// Adds a request to the ring; the caller holds the lock that `ring` comes from.
    fn add(&self, ring: &Ring, request: &Arc<Request>) -> Result<(), Refused> {
        if !ring.is_open || !ring.takes_more {
            return Err(Refused::Errno(ENODEV));
        }
        let token = request.clone().into_foreign();
        // SAFETY: The lock is held. Both buffers stay allocated and untouched while the
        // ring has the reference in `token`; they are slab memory, so contiguous.
        let err = unsafe {
            sys::cdm_vq_add(
                self.vq.as_ptr(),
                request.output.as_ptr().cast_mut().cast(),
                request.output.len() as u32,
                request.input.get().cast(),
                INPUT_BYTES as u32,
                token,
            )
        };
        if err == 0 {
            // SAFETY: The lock is held and the queue is open, so the device is not reset.
            unsafe { sys::virtqueue_kick(self.vq.as_ptr()) };
            return Ok(());
        }
        // SAFETY: The ring did not take the token.
        drop(unsafe { Arc::<Request>::from_foreign(token) });
        let err = Error::from_errno(err);
        Err(if err == ENOSPC {
            Refused::Full
        } else {
            Refused::Errno(err)
        })
    }

    /// Lends a request to the device; waits for a free descriptor, or a signal if the
    /// caller listens to signals.
    pub(crate) fn submit(&self, request: &Arc<Request>, signals: Signals) -> Result {
        let mut ring = self.ring.lock();
        loop {
            match self.add(&ring, request) {
                Ok(()) => return Ok(()),
                Err(Refused::Errno(err)) => return Err(err),
                Err(Refused::Full) => match signals {
                    Signals::Heard => {
                        if self.space.wait_interruptible(&mut ring) {
                            return Err(EINTR);
                        }
                    }
                    Signals::Ignored => self.space.wait(&mut ring),
                },
            }
        }
    }

    /// Lends a request to the device if there is room.
    pub(crate) fn try_submit(&self, request: &Arc<Request>) -> Result {
        match self.add(&self.ring.lock(), request) {
            Ok(()) => Ok(()),
            Err(Refused::Errno(err)) => Err(err),
            Err(Refused::Full) => Err(EBUSY),
        }
    }

    /// Takes the next used buffer off the ring: the request and the bytes written.
    fn take_used(&self) -> Option<(Arc<Request>, u32)> {
        let ring = self.ring.lock();
        if !ring.is_open {
            return None;
        }
        let mut written = 0;
        // SAFETY: The lock is held and the queue is open.
        let token = unsafe { sys::virtqueue_get_buf(self.vq.as_ptr(), &mut written) };
        drop(ring);
        if token.is_null() {
            return None;
        }
        // SAFETY: By the type invariant; the ring gave the reference up.
        Some((unsafe { Arc::<Request>::from_foreign(token) }, written))
    }

    /// Hands every used buffer to `each`.
    fn drain(&self, mut each: impl FnMut(Arc<Request>, u32)) {
        while let Some((request, written)) = self.take_used() {
            each(request, written);
            self.space.notify_all();
        }
    }

    /// No request from here on; answers still come.
    fn refuse(&self) {
        self.ring.lock().takes_more = false;
        self.space.notify_all();
    }

    /// Neither request nor answer from here on.
    fn close(&self) {
        self.ring.lock().is_open = false;
        self.space.notify_all();
    }

    /// Gives back what the device never answered. The device is reset.
    fn reclaim(&self) {
        loop {
            let ring = self.ring.lock();
            // SAFETY: The lock is held; the device is reset, so the ring is the driver's.
            let token = unsafe { sys::virtqueue_detach_unused_buf(self.vq.as_ptr()) };
            drop(ring);
            if token.is_null() {
                return;
            }
            // SAFETY: By the type invariant; the ring gave the reference up.
            unsafe { Arc::<Request>::from_foreign(token) }.finish(0);
        }
    }
}

/// The queues of a device, live.
///
/// # Invariants
///
/// - From [`Transport::start`] to [`Transport::stop`] the device's `priv` points here
///   and the device knows the queues.
/// - `queues` never changes.
pub(crate) struct Transport {
    vdev: VirtioDevice,
    queues: KVec<Pin<KBox<Queue>>>,
    events: Arc<EventSink>,
    /// The device is past answering.
    is_gone: Atomic<bool>,
    /// Milliseconds that the device has for an answer.
    answer_ms: Atomic<u32>,
}

impl Transport {
    /// Sets up `names.len()` queues and tells the device that the driver is ready.
    ///
    /// EBUSY if an earlier transport was left running, because the device did not answer or
    /// its memory is in use for good; see `Live::leak` and `Device::strand` in `device.rs`.
    pub(crate) fn start(
        vdev: VirtioDevice,
        names: &[&'static CStr],
        events: Arc<EventSink>,
    ) -> Result<Arc<Self>> {
        // SAFETY: The device is valid.
        if !unsafe { sys::cdm_vdev_priv(vdev.as_ptr()) }.is_null() {
            return Err(EBUSY);
        }
        let mut pointers = KVec::with_capacity(names.len(), GFP_KERNEL)?;
        let mut vqs: KVec<*mut sys::virtqueue> = KVec::with_capacity(names.len(), GFP_KERNEL)?;
        let mut queues = KVec::with_capacity(names.len(), GFP_KERNEL)?;
        for name in names {
            pointers.push(name.as_char_ptr(), GFP_KERNEL)?;
            vqs.push(core::ptr::null_mut(), GFP_KERNEL)?;
        }
        // SAFETY: The device is valid; both arrays have as many entries as announced.
        let err = unsafe {
            sys::cdm_vdev_find_vqs(
                vdev.as_ptr(),
                names.len() as u32,
                vqs.as_mut_ptr(),
                pointers.as_ptr(),
                Some(Self::interrupt),
            )
        };
        if let Err(err) = kernel::error::to_result(err) {
            // Some queues may be enabled already, and would be in the way of the next try.
            // SAFETY: The device is valid, and maps nothing yet.
            unsafe { sys::virtio_reset_device(vdev.as_ptr()) };
            return Err(err);
        }
        let wrapped = vqs.iter().try_for_each(|vq| -> Result {
            let queue = Queue::new(NonNull::new(*vq).ok_or(ENODEV)?);
            queues.push(KBox::pin_init(queue, GFP_KERNEL)?, GFP_KERNEL)?;
            Ok(())
        });
        let this = wrapped.and_then(|()| {
            let this = Self {
                vdev,
                queues,
                events,
                is_gone: Atomic::new(false),
                answer_ms: Atomic::new(UNLIMITED_MS),
            };
            Ok(Arc::new(this, GFP_KERNEL)?)
        });
        let this = match this {
            Ok(this) => this,
            Err(err) => {
                // SAFETY: The device is valid, and maps nothing yet.
                unsafe { sys::virtio_reset_device(vdev.as_ptr()) };
                // SAFETY: The queues were found, and the device is reset.
                unsafe { sys::cdm_vdev_del_vqs(vdev.as_ptr()) };
                return Err(err);
            }
        };
        // INVARIANT: The callback finds the transport from here on. The reference that
        // `priv` has is taken back in `stop`.
        // SAFETY: The device is valid, and `priv` is the driver's.
        unsafe { sys::cdm_vdev_set_priv(vdev.as_ptr(), this.clone().into_foreign()) };
        // SAFETY: The device is valid, and its queues are set up.
        unsafe { sys::cdm_vdev_ready(vdev.as_ptr()) };
        Ok(this)
    }

    /// Number of queues.
    pub(crate) fn num_queues(&self) -> usize {
        self.queues.len()
    }

    /// A queue by its index.
    pub(crate) fn queue(&self, index: usize) -> Result<&Queue> {
        Ok(self.queues.get(index).ok_or(ENODEV)?)
    }

    /// Whether the device is past answering.
    pub(crate) fn is_gone(&self) -> bool {
        self.is_gone.load(Acquire)
    }

    /// The device does not answer any more: waiters give up, and nobody asks it again.
    ///
    /// Answers that come all the same are taken, so that what they release is released.
    pub(crate) fn declare_gone(&self) {
        self.is_gone.store(true, Release);
        for queue in &self.queues {
            queue.refuse();
        }
    }

    /// From here on a device that takes longer than `ms` milliseconds for an answer is gone.
    /// Before, who waits for it decides how long.
    pub(crate) fn limit_answers(&self, ms: u32) {
        self.answer_ms.store(ms, Relaxed);
    }

    /// Milliseconds that the device has for an answer.
    pub(crate) fn answer_ms(&self) -> u32 {
        self.answer_ms.load(Relaxed)
    }

    /// Whether to give up after another [`LOOK_MS`] of waiting; `waited` counts those that the
    /// device had since there is a limit.
    fn gives_up(&self, waited: &mut u32) -> bool {
        let limit = self.answer_ms();
        if limit == UNLIMITED_MS {
            return self.is_gone();
        }
        *waited += LOOK_MS;
        if *waited >= limit {
            self.declare_gone();
        }
        self.is_gone()
    }

    /// Resets the device, takes the buffers back and deletes the queues.
    ///
    /// No SHMEM mapping may be under way, and nobody may need the mapped memory. The device
    /// answers: the kernel waits for the reset without a limit, and QEMU, which has the
    /// backend stop for it, holds the whole machine meanwhile.
    pub(crate) fn stop(&self) {
        self.close();
        // SAFETY: The device is valid. After the reset no callback runs any more.
        unsafe { sys::virtio_reset_device(self.vdev.as_ptr()) };
        self.reclaim();
    }

    /// The same for power-off, where the queues stay allocated.
    pub(crate) fn shut_down(&self) {
        self.close();
        self.vdev.shut_down();
    }

    /// Lets the device run on without a driver: neither asks it for anything nor hears it.
    ///
    /// The queues, this value and what they point to stay for good, and `priv` tells the
    /// next driver so. True if the module stays, too; false if it is being unloaded.
    pub(crate) fn leave_running(&self) -> bool {
        self.close();
        // SAFETY: The device is valid, and is being removed from its driver.
        unsafe { sys::cdm_vdev_leave_running(self.vdev.as_ptr()) }
    }

    fn close(&self) {
        self.declare_gone();
        for queue in &self.queues {
            queue.close();
        }
    }

    fn reclaim(&self) {
        for queue in &self.queues {
            queue.reclaim();
        }
        // SAFETY: The device is valid and reset; the queues are closed, so no call on
        // them follows.
        unsafe { sys::cdm_vdev_del_vqs(self.vdev.as_ptr()) };
        // SAFETY: The device is valid.
        let this = unsafe { sys::cdm_vdev_priv(self.vdev.as_ptr()) };
        // SAFETY: The device is valid, and no callback is left to read `priv`.
        unsafe { sys::cdm_vdev_set_priv(self.vdev.as_ptr(), core::ptr::null_mut()) };
        if !this.is_null() {
            // SAFETY: `start` put a reference there.
            drop(unsafe { Arc::<Self>::from_foreign(this) });
        }
    }

    /// A queue has used buffers. Hard interrupt context.
    ///
    /// # Safety
    ///
    /// The transport calls it with a queue that `start` found.
    unsafe extern "C" fn interrupt(vq: *mut sys::virtqueue) {
        // SAFETY: The callback gets a valid queue, whose device is valid.
        let this = unsafe { sys::cdm_vdev_priv(sys::cdm_vq_vdev(vq)) };
        if this.is_null() {
            return;
        }
        // SAFETY: `priv` has a reference to a transport until after the reset, which
        // waits for callbacks.
        let this = unsafe { Arc::<Self>::borrow(this) };
        // SAFETY: The queue is valid.
        let index = unsafe { sys::cdm_vq_index(vq) };
        let Ok(queue) = this.queue(index as usize) else {
            return;
        };
        if index != u32::from(wire::QUEUE_EVENT) {
            queue.drain(|request, written| request.finish(written));
            return;
        }
        queue.drain(|request, written| {
            request
                .written
                .store(written.min(INPUT_BYTES as u32), Release);
            if let Some(event) = request.answer() {
                this.events.take(&event);
            }
            request.written.store(NOT_WRITTEN, Release);
            // A closed queue takes no buffer back; then this was the last event.
            let _ = queue.try_submit(&request);
        });
    }
}
