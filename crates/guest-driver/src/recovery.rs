// SPDX-License-Identifier: GPL-2.0-only

//! What is done about a device that does not answer commands: RESET, or it is given up.
//!
//! Facility: none of its own; policy over [`crate::virtio`], in a work item. Contexts: who
//! waits for a command asks for a RESET under whatever locks the wait allows; the RESET itself
//! is made in process context. Lock order: `Recovery::turn`, then the queues'. Who waits for a
//! command takes only `Recovery::state`, so a RESET waits for nobody who waits for it; and it
//! allocates nothing by waiting for reclaim, which may.
//!
//! Invariant: a command that did not come back is taken for lost only when a RESET has been
//! answered that began after the command was on its queue. The device has no use for the
//! command's memory then, whatever became of its completion.

use kernel::device::Device;
use kernel::prelude::*;
use kernel::sync::aref::ARef;
use kernel::sync::atomic::{Acquire, Atomic, Full, Relaxed};
use kernel::sync::{
    new_condvar, new_mutex, new_spinlock, Arc, CondVar, CondVarTimeoutResult, Mutex, SpinLock,
};
use kernel::workqueue::{impl_has_work, new_work, Work, WorkItem};
use zerocopy::IntoBytes;

use crate::command::{head, CONTROL_MS};
use crate::virtio::{Draft, Queue, Request, Transport, UNLIMITED_MS};
use crate::wire::{Completion, ControlOpcode, Status, QUEUE_CONTROL};
use crate::{sys, work};

/// Shortest time that the device has for a RESET, whatever the parameter says.
const RESET_MS_MIN: u32 = 1_000;
/// A RESET has no reason to fail, but its completion may be spoilt.
const RESET_TRIES: u32 = 3;
/// How often who cannot go on before a RESET looks whether it was made.
const SETTLE_MS: u32 = 10;
/// How often who waits for a RESET looks whether the device was given up.
const LOOK_MS: u32 = 500;

/// RESETs by their numbers, from 1.
struct State {
    /// The last one that was begun.
    begun: u64,
    /// The last one that was answered.
    done: u64,
    /// The one that somebody waits for.
    wanted: u64,
    /// How long a command has had no answer, if that is why.
    late_ms: u32,
}

/// A command whose waiter went away.
struct Parked {
    request: Arc<Request>,
    /// The last RESET that was begun when it was on its queue.
    mark: u64,
}

/// Resets a device, on request or when it does not answer.
#[pin_data]
pub(crate) struct Recovery {
    dev: ARef<Device>,
    number: u32,
    transport: Arc<Transport>,
    /// RESETs because of a command without an answer.
    timeouts: Atomic<u64>,
    /// Page requests of the device that the driver is at.
    pages_asked: Atomic<u64>,
    /// Those that it is done with.
    pages_answered: Atomic<u64>,
    /// One RESET at a time; holds one that was made in advance.
    #[pin]
    turn: Mutex<KVec<Draft>>,
    #[pin]
    state: SpinLock<State>,
    /// A RESET was answered, or the device was given up.
    #[pin]
    changed: CondVar,
    #[pin]
    parked: Mutex<KVec<Parked>>,
    #[pin]
    work: Work<Recovery>,
}

impl_has_work! {
    impl HasWork<Self> for Recovery { self.work }
}

impl WorkItem for Recovery {
    type Pointer = Arc<Self>;

    fn run(this: Arc<Self>) {
        this.recover();
    }
}

impl Recovery {
    pub(crate) fn new(
        dev: ARef<Device>,
        number: u32,
        transport: Arc<Transport>,
    ) -> Result<Arc<Self>> {
        let mut spare = KVec::with_capacity(1, GFP_KERNEL)?;
        spare.push(draft(GFP_KERNEL)?, GFP_KERNEL)?;
        Arc::pin_init(
            pin_init!(Self {
                dev,
                number,
                transport,
                timeouts: Atomic::new(0),
                pages_asked: Atomic::new(0),
                pages_answered: Atomic::new(0),
                turn <- new_mutex!(spare, "cdm::Recovery::turn"),
                state <- new_spinlock!(
                    State { begun: 0, done: 0, wanted: 0, late_ms: 0 },
                    "cdm::Recovery::state"
                ),
                changed <- new_condvar!("cdm::Recovery::changed"),
                parked <- new_mutex!(KVec::new(), "cdm::Recovery::parked"),
                work <- new_work!("cdm::Recovery::work"),
            }),
            GFP_KERNEL,
        )
    }

    /// RESETs because of a command without an answer.
    pub(crate) fn timeouts(&self) -> u64 {
        self.timeouts.load(Relaxed)
    }

    /// The driver is at a page request of the device, as long as the value lives.
    pub(crate) fn serve_page(&self) -> Serving<'_> {
        self.pages_asked.fetch_add(1, Full);
        Serving(self)
    }

    /// Milliseconds after which a command without an answer is a reason to reset the device.
    fn limit_ms(&self) -> Option<u32> {
        // SAFETY: Returns a module parameter.
        let command_ms = match unsafe { sys::cdm_param_command_ms() } {
            0 => UNLIMITED_MS,
            ms => ms,
        };
        let limit = command_ms.min(self.transport.answer_ms());
        (limit != UNLIMITED_MS).then_some(limit)
    }

    /// The last RESET that was begun. One that begins later finds what is on the queues now.
    pub(crate) fn mark(&self) -> u64 {
        self.state.lock().begun
    }

    /// Whether a RESET has been answered that began after that mark.
    pub(crate) fn is_done_since(&self, mark: u64) -> bool {
        self.state.lock().done > mark
    }

    /// Has the device reset after `mark`, unless that was done; does not wait. `late_ms` tells
    /// how long a command has had no answer, if that is why.
    fn ask(self: &Arc<Self>, mark: u64, late_ms: u32) {
        {
            let mut state = self.state.lock();
            if state.done > mark {
                return;
            }
            state.wanted = state.wanted.max(mark + 1);
            state.late_ms = state.late_ms.max(late_ms);
        }
        // Fails if it is queued, and then it sees what is wanted.
        let _ = work::queue().enqueue(self.clone());
    }

    /// RESET on behalf of a process, which may be interrupted; the RESET is made all the same.
    ///
    /// EINTR; ENODEV if the device does not answer it.
    pub(crate) fn reset_for_process(self: &Arc<Self>) -> Result {
        let mark = self.mark();
        loop {
            // Again, should there have been no memory for it.
            self.ask(mark, 0);
            let mut state = self.state.lock();
            if state.done > mark {
                return Ok(());
            }
            if self.transport.is_gone() {
                return Err(ENODEV);
            }
            // SAFETY: Plain arithmetic.
            let jiffies = unsafe { sys::cdm_jiffies_of_ms(LOOK_MS) };
            let waited = self.changed.wait_interruptible_timeout(&mut state, jiffies);
            if let CondVarTimeoutResult::Signal { .. } = waited {
                return Err(EINTR);
            }
        }
    }

    /// Has the device reset after `mark`, unless that was done, and waits for it, deaf to signals:
    /// what was on its queues before, it has no use for any more.
    ///
    /// ENODEV if the device is past answering.
    pub(crate) fn settle(self: &Arc<Self>, mark: u64) -> Result {
        loop {
            if self.is_done_since(mark) {
                return Ok(());
            }
            if self.transport.is_gone() {
                return Err(ENODEV);
            }
            // Again, should there have been no memory for it.
            self.ask(mark, 0);
            // SAFETY: Process context, no spinlock held.
            unsafe { sys::msleep(SETTLE_MS) };
        }
    }

    /// RESET, deaf to signals.
    ///
    /// EIO if the device refuses it, ENOMEM if it was not asked, ENODEV and ETIMEDOUT if it does
    /// not answer.
    pub(crate) fn reset(&self) -> Result {
        self.reset_in_turn(&mut self.turn.lock())
    }

    /// Resets the device if that is still wanted. One that cannot be brought back is gone.
    fn recover(&self) {
        if self.transport.is_gone() {
            return;
        }
        let mut spare = self.turn.lock();
        let is_wanted = || {
            let state = self.state.lock();
            state.done < state.wanted && !self.transport.is_gone()
        };
        self.complain();
        for _ in 0..RESET_TRIES {
            // Those who lost their patience together want one RESET.
            if !is_wanted() {
                return;
            }
            match self.reset_in_turn(&mut spare) {
                Ok(()) => return,
                // It will be asked for again.
                Err(err) if err == ENOMEM => return,
                // Refused, or the answer is no answer.
                Err(err) if err == EIO => {}
                Err(_) => break,
            }
        }
        if is_wanted() {
            self.transport.declare_gone();
            self.changed.notify_all();
            dev_err!(
                &self.dev,
                "cdm{}: device does not answer, not even a RESET: commands end with ENODEV from \
                 here on; memory that the CPU can reach is as it was\n",
                self.number
            );
        }
    }

    /// Says that a command has had no answer, if that is why the device is to be reset.
    fn complain(&self) {
        let late_ms = core::mem::take(&mut self.state.lock().late_ms);
        if late_ms != 0 {
            self.timeouts.add(1, Relaxed);
            dev_warn!(
                &self.dev,
                "cdm{}: no answer to a command for {} ms: the device is reset, and all outstanding \
                 commands fail\n",
                self.number,
                late_ms
            );
        }
    }

    fn reset_in_turn(&self, spare: &mut KVec<Draft>) -> Result {
        let request = match spare.pop() {
            Some(draft) => draft.finish(),
            None => draft(GFP_NOWAIT)?.finish(),
        };
        if let Ok(draft) = draft(GFP_NOWAIT) {
            // There is room for one, and it has just been taken.
            let _ = spare.push_within_capacity(draft);
        }
        let number = {
            let mut state = self.state.lock();
            state.begun += 1;
            state.begun
        };
        let limit = self.limit_ms().unwrap_or(CONTROL_MS);
        let limit = limit.clamp(RESET_MS_MIN, CONTROL_MS);
        let queue = self.transport.queue(QUEUE_CONTROL.into())?;
        queue.submit_within(&request, limit)?;
        request.wait(limit)?;
        let is_done = request
            .answer()
            .is_some_and(|completion: Completion| completion.status == Status::OK);
        if !is_done {
            return Err(EIO);
        }
        // What it ended came back before it, but perhaps no interrupt has said so yet.
        self.transport.take_answers();
        {
            let mut state = self.state.lock();
            state.done = state.done.max(number);
            state.late_ms = 0;
        }
        self.changed.notify_all();
        self.parked.lock().retain(|parked| {
            if parked.mark < number {
                parked.request.let_go();
            }
            parked.mark >= number
        });
        Ok(())
    }

    /// Keeps a command whose waiter went away, until the device is done with its memory. `mark` is
    /// the last RESET that was begun when the command was on its queue.
    pub(crate) fn park(&self, request: Arc<Request>, mark: u64) {
        let mut parked = self.parked.lock();
        if self.is_done_since(mark) {
            request.let_go();
            return;
        }
        parked.retain(|parked| !parked.request.is_done());
        // Without room for it, its memory waits for its completion.
        let _ = parked.push(Parked { request, mark }, GFP_NOWAIT);
    }
}

/// A RESET.
fn draft(flags: kernel::alloc::Flags) -> Result<Draft> {
    let header = head(ControlOpcode::RESET, 0, 0, 0);
    let mut output = KVec::new();
    output.extend_from_slice(header.as_bytes(), flags)?;
    Draft::new(output, flags)
}

/// A page request that the driver is at.
pub(crate) struct Serving<'a>(&'a Recovery);

impl Drop for Serving<'_> {
    fn drop(&mut self) {
        // Counted first, so that whoever sees it end sees this.
        self.0.pages_answered.fetch_add(1, Full);
        self.0.pages_asked.fetch_sub(1, Full);
    }
}

/// What is left of a waiter's patience with a queue.
///
/// It begins anew with each answer to what was on the queue before: a device that gets on is
/// not stuck, however long the queue is. Nor is one that waits for a page that the driver has
/// yet to bring, which may be some process's to give.
pub(crate) struct Patience<'a> {
    recovery: &'a Arc<Recovery>,
    queue: &'a Queue,
    mark: u64,
    /// Answers of the queue when somebody last looked.
    seen: u64,
    /// Requests that may be answered first.
    ahead: u64,
    waited_ms: u32,
    /// What it is, however much the parameter allows.
    most_ms: u32,
    /// Page requests that the driver had answered when somebody last looked, if what is on the
    /// queue may wait for pages.
    pages_seen: Option<u64>,
    is_worn: bool,
}

impl<'a> Patience<'a> {
    /// With what is on the queue now.
    pub(crate) fn new(recovery: &'a Arc<Recovery>, queue: &'a Queue) -> Self {
        let (seen, ahead) = queue.answered_and_lent();
        Self {
            recovery,
            queue,
            mark: recovery.mark(),
            seen,
            ahead,
            waited_ms: 0,
            most_ms: UNLIMITED_MS,
            pages_seen: None,
            is_worn: false,
        }
    }

    /// The same, and no more than so many milliseconds of it.
    pub(crate) fn of_at_most(self, most_ms: u32) -> Self {
        Self { most_ms, ..self }
    }

    /// The same with what may wait for pages. It does not wear while any page request is served:
    /// which command needs the page, the device does not tell, nor who stands behind that one.
    pub(crate) fn with_pages(self) -> Self {
        let pages_seen = Some(self.recovery.pages_answered.load(Acquire));
        Self { pages_seen, ..self }
    }

    /// Whether the driver is at a page request, or was since somebody last looked.
    fn is_for_driver(&mut self) -> bool {
        let Some(seen) = &mut self.pages_seen else {
            return false;
        };
        let is_asked = self.recovery.pages_asked.load(Acquire) != 0;
        let answered = self.recovery.pages_answered.load(Acquire);
        let is_answered = core::mem::replace(seen, answered) != answered;
        is_asked || is_answered
    }

    /// Another `ms` milliseconds went by without what is waited for.
    ///
    /// ETIMEDOUT if the device is past answering; ECANCELED if it was reset, so that what was
    /// on the queue is not to be waited for any more.
    pub(crate) fn wear(&mut self, ms: u32) -> Result {
        if self.recovery.transport.is_gone() {
            return Err(ETIMEDOUT);
        }
        if self.recovery.is_done_since(self.mark) {
            return Err(ECANCELED);
        }
        let (answered, _) = self.queue.answered_and_lent();
        let answers = answered - self.seen;
        self.seen = answered;
        if answers != 0 && answers <= self.ahead {
            self.waited_ms = 0;
        }
        self.ahead = self.ahead.saturating_sub(answers);
        if self.is_for_driver() {
            self.waited_ms = 0;
            return Ok(());
        }
        self.waited_ms = self.waited_ms.saturating_add(ms);
        let limit = self.recovery.limit_ms().unwrap_or(UNLIMITED_MS);
        let limit = limit.min(self.most_ms);
        if limit != UNLIMITED_MS && self.waited_ms >= limit {
            self.is_worn = true;
            self.recovery.ask(self.mark, self.waited_ms);
        }
        Ok(())
    }

    /// Whether this waiter had the device reset.
    pub(crate) fn is_worn(&self) -> bool {
        self.is_worn
    }

    /// The last RESET that was begun when it began.
    pub(crate) fn mark(&self) -> u64 {
        self.mark
    }
}
