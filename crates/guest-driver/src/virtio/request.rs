// SPDX-License-Identifier: GPL-2.0-only

//! A request that is lent to the device, and waiting for its answer.
//!
//! Facility: none of its own. Contexts: the device's answer comes in hard interrupt context,
//! which leaves everything that may sleep to a work item; waits are in process context. Lock
//! order: `Request::parked` is taken in interrupts, after `Queue::ring`. Invariant: a lent
//! buffer stays untouched and allocated until its completion, or until the device is reset.
//! The ring holds a reference to each [`Request`] that it lends, so a waiter may walk away.

use core::cell::UnsafeCell;

use kernel::alloc::Flags;
use kernel::prelude::*;
use kernel::sync::atomic::{Acquire, Atomic, Relaxed, Release};
use kernel::sync::{new_spinlock_irq, Arc, SpinLockIrq, UniqueArc};
use kernel::workqueue::{impl_has_work, new_work, Work, WorkItem};
use zerocopy::FromBytes;

use crate::device::Device;
use crate::done::{Done, Wait};
use crate::pins::Operands;
use crate::{sva, wire, work};

/// Bytes that the device writes to end a request.
const ANSWER_BYTES: usize = size_of::<wire::Completion>();
/// Bytes that the device writes into any buffer, at most: those of its longest event.
pub(super) const INPUT_BYTES: usize = size_of::<wire::PageRequest>();
const _: () = assert!(
    ANSWER_BYTES <= INPUT_BYTES
        && size_of::<wire::Event>() <= INPUT_BYTES
        && size_of::<wire::MemoryError>() <= INPUT_BYTES
        && size_of::<wire::AccessReport>() <= INPUT_BYTES
);

/// Whether a wait ends when a signal comes.
#[derive(Clone, Copy, PartialEq, Eq)]
pub(crate) enum Signals {
    /// It does.
    Heard,
    /// It does not: what the device works on is not the waiter's to walk away from.
    Ignored,
}

/// What a request left behind when its waiter went away.
struct Parked {
    /// The device is done with the buffers.
    is_done: bool,
    /// Kept until then.
    operands: Option<Arc<Operands>>,
    /// Who takes the page request that is in the buffer.
    reader: Option<Arc<Device>>,
}

/// A request to the device: bytes for it to read, then room for its answer.
///
/// # Invariants
///
/// While the request is lent, neither `output` nor `input` is touched by the driver. `output` is
/// changed by its one owner only: a [`Draft`], or a [`Standing`].
#[pin_data]
pub(crate) struct Request {
    /// Number in traces.
    token: u64,
    /// What the device reads.
    output: UnsafeCell<KVec<u8>>,
    /// What the device writes.
    pub(super) input: UnsafeCell<[u8; INPUT_BYTES]>,
    /// Bytes of it that are lent.
    pub(super) input_bytes: usize,
    /// Bytes that it wrote; `u32::MAX` until it did.
    pub(super) written: Atomic<u32>,
    #[pin]
    done: Done,
    #[pin]
    parked: SpinLockIrq<Parked>,
    #[pin]
    release: Work<Request>,
}

// SAFETY: `input` is only read after `written` says that the device is done with it, and
// `output` is changed by its one owner only, by the type invariant.
unsafe impl Sync for Request {}
// SAFETY: Nothing in a request belongs to a thread.
unsafe impl Send for Request {}

impl_has_work! {
    impl HasWork<Self> for Request { self.release }
}

/// Does what an interrupt must not do: drops operands, and serves page requests.
impl WorkItem for Request {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        let mut parked = this.parked.lock();
        let (operands, reader) = (parked.operands.take(), parked.reader.take());
        drop(parked);
        drop(operands);
        if let Some(device) = reader {
            if let Some(request) = this.answer() {
                sva::serve(&device, &request);
            }
            device.transport().lend_event_buffer(&this);
        }
    }
}

/// A request that nobody else knows yet: its output can still be written.
///
/// Making one allocates everything that the request needs, so it can be filled in and
/// submitted where an allocation might wait for the caller's own locks.
pub(crate) struct Draft(Pin<UniqueArc<Request>>);

impl Draft {
    /// A request whose output starts with `output`, and keeps its room.
    pub(crate) fn new(output: KVec<u8>, flags: Flags) -> Result<Self> {
        Self::with_input(output, ANSWER_BYTES, flags)
    }

    fn with_input(output: KVec<u8>, input_bytes: usize, flags: Flags) -> Result<Self> {
        Ok(Self(UniqueArc::pin_init(
            pin_init!(Request {
                token: NEXT_TOKEN.fetch_add(1, Relaxed),
                output: UnsafeCell::new(output),
                input: UnsafeCell::new([0; INPUT_BYTES]),
                input_bytes,
                written: Atomic::new(NOT_WRITTEN),
                done <- Done::new(),
                parked <- new_spinlock_irq!(Parked {
                    is_done: false,
                    operands: None,
                    reader: None,
                }),
                release <- new_work!("cdm::Request::release"),
            }),
            flags,
        )?))
    }

    /// A number that no other request has.
    pub(crate) fn token(&self) -> u64 {
        self.0.token
    }

    /// What the device will read.
    pub(crate) fn output(&mut self) -> &mut KVec<u8> {
        self.0.as_mut().project().output.get_mut()
    }

    /// The request, which is not changed from here on.
    pub(crate) fn finish(self) -> Arc<Request> {
        self.0.into()
    }
}

/// A request that is made once, and sent again and again where nobody may wait for memory.
///
/// # Invariants
///
/// Nobody else has `request` but the device, and that only during [`Standing::send`], or for good
/// once `is_lost`.
pub(crate) struct Standing {
    request: Arc<Request>,
    is_lost: bool,
}

impl Standing {
    /// A request whose output has `bytes` bytes.
    pub(crate) fn new(bytes: usize) -> Result<Self> {
        let output = KVec::from_elem(0, bytes, GFP_KERNEL)?;
        Ok(Self {
            request: Request::new(output)?,
            is_lost: false,
        })
    }

    /// Has the device answer `output`: `lend` submits the request and waits for its answer, and
    /// says whether the device still has it. The answer, if it is long enough.
    ///
    /// EIO for an answer that is too short, ENOMEM if there was no other request at hand after
    /// one that was lost; else what `lend` says.
    pub(crate) fn send<T: FromBytes>(
        &mut self,
        output: &[u8],
        lend: impl FnOnce(&Arc<Request>) -> Result<(), Unanswered>,
    ) -> Result<T> {
        self.renew()?;
        let request = &self.request;
        // SAFETY: By the type invariants the request is not lent, and `&mut self` is the one
        // owner's.
        let room = unsafe { &mut *request.output.get() };
        // There is room for as much as was there before, so nothing is allocated.
        room.clear();
        room.extend_from_slice(output, GFP_NOWAIT)?;
        request.written.store(NOT_WRITTEN, Relaxed);
        request.parked.lock().is_done = false;
        request.done.rearm();
        // INVARIANT: Lent for as long as this takes, or for good.
        match lend(request) {
            Ok(()) => request.answer().ok_or(EIO),
            Err(Unanswered::NotLent(err)) => Err(err),
            Err(Unanswered::Lost(err)) => {
                self.is_lost = true;
                // Now or at the next need, when it may have to be had.
                let _ = self.renew();
                Err(err)
            }
        }
    }

    /// Makes another request if the device has this one for good.
    fn renew(&mut self) -> Result {
        if self.is_lost {
            // SAFETY: Nobody changes it while the request is lent, and here nobody does.
            let bytes = unsafe { &*self.request.output.get() }.len();
            let output = KVec::from_elem(0, bytes, GFP_NOWAIT)?;
            // INVARIANT: Nobody has it yet. The ring keeps the old one as long as it needs it.
            self.request = Draft::new(output, GFP_NOWAIT)?.finish();
            self.is_lost = false;
        }
        Ok(())
    }
}

/// Why there is no answer to a [`Standing`] request.
pub(crate) enum Unanswered {
    /// The device did not get it.
    NotLent(Error),
    /// The device has it, and may answer at any time.
    Lost(Error),
}

/// Token of the next request.
static NEXT_TOKEN: Atomic<u64> = Atomic::new(1);
/// Not written yet.
pub(super) const NOT_WRITTEN: u32 = u32::MAX;

impl Request {
    pub(crate) fn new(output: KVec<u8>) -> Result<Arc<Self>> {
        Ok(Draft::new(output, GFP_KERNEL)?.finish())
    }

    /// A buffer for any event.
    pub(crate) fn for_event() -> Result<Arc<Self>> {
        Ok(Draft::with_input(KVec::new(), INPUT_BYTES, GFP_KERNEL)?.finish())
    }

    /// What the device reads, to be lent.
    pub(super) fn output(&self) -> &[u8] {
        // SAFETY: By the type invariants nobody changes it while the request may be lent.
        unsafe { &*self.output.get() }
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

    /// Waits until the device answered, a signal came, if signals are heard, or `ms`
    /// milliseconds went by.
    pub(crate) fn look(&self, ms: u32, signals: Signals) -> Wait {
        match signals {
            Signals::Heard => self.done.wait_interruptible(ms),
            Signals::Ignored => self.done.wait(ms),
        }
    }

    /// Waits, deaf to signals, until the device answered; ETIMEDOUT after `ms` milliseconds.
    pub(crate) fn wait(&self, ms: u32) -> Result {
        match self.done.wait(ms) {
            Wait::Done => Ok(()),
            _ => Err(ETIMEDOUT),
        }
    }

    /// Whether the device is done with the buffers.
    pub(crate) fn is_done(&self) -> bool {
        self.written.load(Relaxed) != NOT_WRITTEN
    }

    /// Gives the page request in the buffer to a worker, for `device`; the buffer comes back to
    /// the device by [`Transport::lend_event_buffer`]. Hard interrupt context.
    ///
    /// [`Transport::lend_event_buffer`]: super::Transport::lend_event_buffer
    pub(super) fn pass_on(self: Arc<Self>, device: Arc<Device>) {
        self.parked.lock().reader = Some(device);
        // Fails only if it is queued already, and the device does not have it twice.
        let _ = work::queue().enqueue(self);
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

    /// The device has no use for the operands any more, whether the buffers come back or not.
    pub(crate) fn let_go(self: &Arc<Self>) {
        // Fails only if it is queued already.
        let _ = work::queue().enqueue(self.clone());
    }

    /// The device, or its reset, gives the buffers back.
    pub(super) fn finish(self: Arc<Self>, written: u32) {
        self.written.store(written.min(INPUT_BYTES as u32), Release);
        let mut parked = self.parked.lock();
        parked.is_done = true;
        let is_abandoned = parked.operands.is_some();
        drop(parked);
        self.done.signal();
        if is_abandoned {
            // Fails only if it is queued already.
            let _ = work::queue().enqueue(self);
        }
    }
}
