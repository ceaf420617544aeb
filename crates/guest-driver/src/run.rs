// SPDX-License-Identifier: GPL-2.0-only

//! Commands of a process: one, or a batch of them.
//!
//! Facility: none of its own; policy over [`crate::virtio`], by the rules of [`crate::order`].
//! Contexts: process context, inside the device's gate; what is waited for, a signal ends. Lock
//! order: the queue's lock. Invariant: memory that a command names stays pinned until the device
//! is done with it, whoever waits or not; where it is not pinned, see [`crate::in_place`] and
//! [`crate::sva`].
//!
//! All of a batch go to one queue. The operands of all are pinned before the first command is
//! given to the device, so a bad one is refused with nothing done. As many as may go at a time
//! are put on the queue before the device is told of them, once.
//!
//! What ends the wait before the end ends the batch: what has not begun will not begin, and what
//! the device has it is asked to stop, the last one first, lest one begin because that before it
//! has ended.

use kernel::prelude::*;
use kernel::sync::Arc;
use kernel::time::{Instant, Monotonic};

use crate::command::{self, ForRoom, CANCEL_MS, LOOK_MS};
use crate::device::Device;
use crate::done::Wait;
use crate::engine::Engine;
use crate::in_place::Memory;
use crate::order::{Keeper, Progress, Turn};
use crate::pins;
use crate::plan::{Answer, Job, Operands, Request, Step};
use crate::recovery::Patience;
use crate::sva::Binding;
use crate::sys;
use crate::virtio::{self, Look, Queue, Signals};
use crate::wire::{Completion, Status};

/// A command of the current process, with operands of ranges of its addresses.
#[derive(Clone, Copy)]
pub(crate) struct Command<'a> {
    pub(crate) request: Request,
    pub(crate) named: Operands<'a>,
}

/// What became of a command.
#[derive(Clone, Copy)]
pub(crate) enum Fate {
    /// The device was not given any of it.
    NotBegun,
    /// The device was given it, and nobody waits for the answer any more.
    NoAnswer,
    /// It has an answer; CANCELLED if it was ended on its way.
    Answered(Answer),
}

/// What became of a batch, in which something has begun.
pub(crate) struct Outcome {
    /// Of each command.
    pub(crate) fates: KVVec<Fate>,
    /// Why it ended before all commands were answered; `None` if it did not, or because one had
    /// failed and the batch was to stop then.
    pub(crate) error: Option<Error>,
}

impl Outcome {
    /// What became of the one command that there was.
    pub(crate) fn of_one(&self) -> Result<Answer> {
        match (self.fates.first(), self.error) {
            // One that was ended by what ended the wait.
            (Some(Fate::Answered(answer)), Some(err)) if answer.status == Status::CANCELLED => {
                Err(err)
            }
            (Some(Fate::Answered(answer)), _) => Ok(*answer),
            (_, err) => Err(err.unwrap_or(EIO)),
        }
    }
}

/// Carries out commands of the current process: on memory of its own, or, with a binding, on
/// addresses of its own, which are bound. With `stops` none is begun behind one that has failed.
///
/// EFAULT, EINTR, ENOMEM, ENODEV, EIO as the interface says, if nothing was begun; else these are
/// in the outcome. EOPNOTSUPP if one cannot be done in memory that the CPU cannot reach.
pub(crate) fn run(
    device: &Device,
    binding: Option<&Binding>,
    commands: &[Command<'_>],
    stops: bool,
) -> Result<Outcome> {
    let mut entries = KVVec::with_capacity(commands.len(), GFP_KERNEL)?;
    for command in commands {
        entries.push(Entry::new(command, binding), GFP_KERNEL)?;
    }
    let error = match binding {
        Some(binding) => {
            let _command = binding.begin_command();
            let queue = device.engine().process_queue().ok_or(EOPNOTSUPP)?;
            Round::new(device, queue, Keeper::Driver, stops)?.play(&mut entries)
        }
        None if device.region().is_cpu_addressable() => {
            for entry in entries.iter_mut() {
                entry.pin(device)?;
            }
            let keeper = if stops {
                Keeper::Driver
            } else {
                Keeper::Device
            };
            let queue = device.engine().queue_of_cpu();
            Round::new(device, queue, keeper, stops)?.play(&mut entries)
        }
        None => in_turn(device, &mut entries, stops)?,
    };
    let fates = conclude(device, &mut entries, error)?;
    let has_begun = |fate: &Fate| !matches!(fate, Fate::NotBegun);
    match error {
        Some(err) if !fates.iter().any(has_begun) => Err(err),
        error => Ok(Outcome { fates, error }),
    }
}

/// What became of each command, counted.
fn conclude(
    device: &Device,
    entries: &mut KVVec<Entry<'_>>,
    error: Option<Error>,
) -> Result<KVVec<Fate>> {
    let mut fates = KVVec::with_capacity(entries.len(), GFP_KERNEL)?;
    for entry in entries.iter() {
        let fate = match &entry.state {
            State::Ended(fate) => *fate,
            _ => entry.job.given_up().map_or(Fate::NotBegun, Fate::Answered),
        };
        match fate {
            // Counted as abandoned.
            Fate::Answered(answer)
                if answer.status == Status::CANCELLED && error == Some(EINTR) => {}
            Fate::Answered(answer) => device.counters().answered(answer.status == Status::OK),
            Fate::NotBegun | Fate::NoAnswer => {}
        }
        fates.push(fate, GFP_KERNEL)?;
    }
    Ok(fates)
}

/// Carries commands out one after another, in memory that the CPU cannot reach; why that ended
/// early.
fn in_turn(device: &Device, entries: &mut KVVec<Entry<'_>>, stops: bool) -> Result<Option<Error>> {
    let waits = |entry: &Entry<'_>| matches!(entry.state, State::Waiting);
    let is_whole = |entry: &&Entry<'_>| waits(entry) && entry.command.request.is_indivisible();
    if entries.iter().find(is_whole).is_some() {
        // It would have to be held under the notifier's lock, and may wait for the CPU.
        return Err(EOPNOTSUPP);
    }
    let memory = Memory::of_current(device)?;
    for entry in entries.iter_mut() {
        if waits(entry) {
            // One without operands does not look.
            if kernel::current!().signal_pending() {
                return Ok(Some(EINTR));
            }
            let command = entry.command;
            match memory.run(&command.request, command.named, &mut entry.job) {
                Ok(answer) => entry.state = State::Ended(Fate::Answered(answer)),
                Err(err) if err == ENODEV && device.transport().is_gone() => {
                    entry.state = State::Ended(Fate::NoAnswer);
                    return Ok(Some(err));
                }
                Err(err) => {
                    if err == EIO {
                        entry.state = State::Ended(Fate::Answered(entry.job.lost()));
                    }
                    return Ok(Some(err));
                }
            }
        }
        if stops && entry.progress() == (Progress::Done { is_ok: false }) {
            break;
        }
    }
    Ok(None)
}

/// A command that the device is given next, or has.
struct Given {
    request: Arc<virtio::Request>,
    step: Step,
    /// The last RESET that was begun when it was on its queue.
    mark: Option<u64>,
}

impl Given {
    /// Whether a RESET should have brought it back by now.
    fn is_overdue(&self, engine: &Engine) -> bool {
        self.mark
            .is_some_and(|mark| engine.recovery().is_done_since(mark))
    }
}

/// Where a command is.
enum State {
    /// Its next part can be made.
    Waiting,
    /// Its next part is made.
    Made(Given),
    /// The device has it.
    Lent(Given),
    /// It is at its end.
    Ended(Fate),
}

/// A command on its way.
struct Entry<'a> {
    command: &'a Command<'a>,
    job: Job<'a>,
    /// What it works on, where that is pinned.
    pinned: Option<Arc<pins::Operands>>,
    state: State,
    /// The device was given a part of it.
    has_begun: bool,
    /// Its next part is to be given now.
    is_due: bool,
}

impl<'a> Entry<'a> {
    fn new(command: &'a Command<'a>, binding: Option<&Binding>) -> Self {
        let job = match binding {
            Some(binding) => Job::on_addresses(&command.request, command.named, binding.pasid()),
            None => Job::new(&command.request, command.named),
        };
        Self {
            command,
            job,
            pinned: None,
            state: match job.answer() {
                Some(answer) => State::Ended(Fate::Answered(answer)),
                None => State::Waiting,
            },
            has_begun: false,
            is_due: false,
        }
    }

    /// Pins what it works on, unless it has its answer.
    fn pin(&mut self, device: &Device) -> Result {
        if matches!(self.state, State::Waiting) {
            let Command { request, named } = self.command;
            self.pinned = Some(pins::Operands::pin(request, *named, device.region())?);
        }
        Ok(())
    }

    fn is_ordered(&self) -> bool {
        self.command.request.is_ordered()
    }

    fn progress(&self) -> Progress {
        match &self.state {
            State::Waiting | State::Made(_) if self.has_begun => Progress::BetweenParts,
            State::Waiting | State::Made(_) => Progress::Waiting,
            State::Lent(given) if self.job.ends_with(&given.step) => Progress::Given,
            State::Lent(_) => Progress::InPart,
            State::Ended(fate) => Progress::Done {
                is_ok: matches!(fate, Fate::Answered(answer) if answer.status == Status::OK),
            },
        }
    }

    /// What the device has of it.
    fn lent(&self) -> Option<&Given> {
        match &self.state {
            State::Lent(given) => Some(given),
            _ => None,
        }
    }

    /// Makes its next part, unless that is made; it may turn out that there is none.
    fn make(&mut self, engine: &Engine) -> Result {
        if !matches!(self.state, State::Waiting) {
            return Ok(());
        }
        let Self {
            command,
            job,
            pinned,
            ..
        } = self;
        let found = pinned
            .as_ref()
            .map_or(command.named, |pinned| pinned.found());
        let draft = command::draft(found.ranges())?;
        self.state = match command::make(engine, job, found, draft)? {
            Some((request, step)) => State::Made(Given {
                request,
                step,
                mark: None,
            }),
            None => State::Ended(job.answer().map_or(Fate::NoAnswer, Fate::Answered)),
        };
        Ok(())
    }

    /// Takes in the completion of what the device had.
    fn complete(&mut self, completion: &Completion) {
        let State::Lent(given) = &self.state else {
            return;
        };
        let found = self
            .pinned
            .as_ref()
            .map_or(self.command.named, |pinned| pinned.found());
        self.job.complete(&given.step, completion, found);
        self.state = match self.job.answer() {
            Some(answer) => State::Ended(Fate::Answered(answer)),
            None => State::Waiting,
        };
    }
}

/// A batch on its way through one queue.
struct Round<'a> {
    device: &'a Device,
    engine: &'a Engine,
    index: usize,
    queue: &'a Queue,
    keeper: Keeper,
    stops: bool,
    /// With what the device has of the batch.
    patience: Patience<'a>,
    /// The queue had no room when it was tried last.
    for_room: Option<ForRoom<'a>>,
    /// What was given last is looked for.
    look: Option<Look<'a>>,
}

impl<'a> Round<'a> {
    fn new(device: &'a Device, index: usize, keeper: Keeper, stops: bool) -> Result<Self> {
        let engine = device.engine();
        let queue = engine.transport().queue(index)?;
        Ok(Self {
            device,
            engine,
            index,
            queue,
            keeper,
            stops,
            patience: command::patience(engine, index, queue),
            for_room: None,
            look: None,
        })
    }

    /// Takes all commands through the queue; why that ended early.
    fn play(&mut self, entries: &mut [Entry<'_>]) -> Option<Error> {
        loop {
            let done = self
                .give(entries)
                .and_then(|is_full| self.wait(entries, is_full));
            match done {
                Ok(true) => {}
                Ok(false) => return None,
                Err(err) => {
                    // What is under way yet comes by interrupt.
                    self.look = None;
                    self.end(entries, err);
                    return Some(err);
                }
            }
        }
    }

    /// Gives the device what may be given now, and tells it once; whether there was no room for
    /// something.
    fn give(&mut self, entries: &mut [Entry<'_>]) -> Result<bool> {
        if self.device.gate().is_shut() {
            return Err(ENODEV);
        }
        // What needs memory first, so that the device has nothing that it was not told of meanwhile.
        let mut turn = Turn::new(self.keeper, self.stops);
        for entry in entries.iter_mut() {
            let mut progress = entry.progress();
            if turn.may_give(entry.is_ordered(), progress) {
                entry.make(self.engine)?;
                entry.is_due = true;
                progress = match &entry.state {
                    State::Made(given) if entry.job.ends_with(&given.step) => Progress::Given,
                    State::Made(_) => Progress::InPart,
                    _ => entry.progress(),
                };
            }
            turn.pass(entry.is_ordered(), progress);
            if turn.is_over() {
                break;
            }
        }
        let mut refused = Ok(());
        let mut has_given = false;
        for entry in entries.iter_mut() {
            let is_due = core::mem::take(&mut entry.is_due);
            // Behind one that found no room nothing is given, or it would come before it.
            if is_due && refused.is_ok() {
                refused = self.lend(entry);
                has_given |= refused.is_ok();
            }
        }
        if has_given {
            self.look = self.queue.expect();
            self.queue.kick();
            self.for_room = None;
            self.patience = command::patience(self.engine, self.index, self.queue);
            let mark = self.patience.mark();
            for entry in entries.iter_mut() {
                if let State::Lent(given) = &mut entry.state {
                    given.mark.get_or_insert(mark);
                }
            }
        }
        match refused {
            Err(err) if err == EBUSY => Ok(true),
            done => done.map(|()| false),
        }
    }

    /// Puts on the queue what was made of a command, if there is room.
    fn lend(&self, entry: &mut Entry<'_>) -> Result {
        if let State::Made(given) = &entry.state {
            self.queue.try_add(&given.request)?;
            command::trace_submit(self.engine, &given.request, &given.step, self.index);
        }
        entry.state = match core::mem::replace(&mut entry.state, State::Waiting) {
            State::Made(given) => {
                entry.has_begun = true;
                State::Lent(given)
            }
            other => other,
        };
        Ok(())
    }

    /// Waits until the device is done with something, or has room; whether there is more to do.
    fn wait(&mut self, entries: &mut [Entry<'_>], is_full: bool) -> Result<bool> {
        let Some(first) = entries.iter().find_map(Entry::lent) else {
            if is_full {
                self.wait_for_room()?;
            }
            return Ok(is_full);
        };
        match self.wait_for(&first.request) {
            Wait::Done => {}
            Wait::Interrupted => return Err(EINTR),
            Wait::TimedOut => match self.patience.wear(LOOK_MS) {
                Err(err) if err == ETIMEDOUT && !first.request.is_done() => return Err(ENODEV),
                Err(_) => self.give_up_lost(entries)?,
                Ok(()) => {}
            },
        }
        self.harvest(entries)?;
        Ok(true)
    }

    /// Waits for one answer, awake at first if it is expected soon.
    fn wait_for(&mut self, request: &virtio::Request) -> Wait {
        let look = self.look.take().or_else(|| self.queue.expect());
        // Dropped at the end of the statement: who sleeps needs the interrupt.
        if look.is_some_and(|look| look.until(|| request.is_done())) {
            return Wait::Done;
        }
        // SAFETY: Reads a clock.
        let begin_ns = unsafe { sys::cdm_local_ns() };
        let waited = request.look(LOOK_MS, Signals::Heard);
        if waited == Wait::Done {
            // SAFETY: As above.
            let end_ns = unsafe { sys::cdm_local_ns() };
            self.queue.slept(end_ns.saturating_sub(begin_ns));
        }
        waited
    }

    fn wait_for_room(&mut self) -> Result {
        if kernel::current!().signal_pending() {
            return Err(EINTR);
        }
        let (engine, index, queue) = (self.engine, self.index, self.queue);
        let new = || ForRoom::new(command::patience(engine, index, queue));
        self.for_room.get_or_insert_with(new).wait()
    }

    /// Takes what the device is done with.
    fn harvest(&self, entries: &mut [Entry<'_>]) -> Result {
        let mut result = Ok(());
        for entry in entries.iter_mut() {
            let Some(given) = entry.lent().filter(|given| given.request.is_done()) else {
                continue;
            };
            match command::completion(self.engine, &given.request, self.index) {
                Ok(completion) => {
                    if completion.status == Status::CANCELLED {
                        result = Err(command::was_reset(self.device));
                    }
                    entry.complete(&completion);
                }
                Err(err) => {
                    // The device is done with it, and nobody knows how.
                    entry.state = State::Ended(Fate::NoAnswer);
                    result = Err(err);
                }
            }
        }
        result
    }

    /// After a RESET: what it should have brought back, and did not, is lost. The device is done
    /// with that all the same.
    fn give_up_lost(&self, entries: &mut [Entry<'_>]) -> Result {
        let mut result = self.harvest(entries);
        for entry in entries.iter_mut() {
            if entry
                .lent()
                .is_some_and(|given| given.is_overdue(self.engine))
            {
                entry.state = State::Ended(Fate::Answered(entry.job.lost()));
                result = Err(command::was_reset(self.device));
            }
        }
        result
    }

    /// Ends what is under way, because of an error.
    fn end(&self, entries: &mut [Entry<'_>], err: Error) {
        let is_gone = self.engine.transport().is_gone();
        let mut is_heard = self.engine.has_tags() && !is_gone;
        let start = Instant::<Monotonic>::now();
        let left_ms = || CANCEL_MS.saturating_sub(start.elapsed().as_millis() as u32);
        for given in entries.iter().rev().filter_map(Entry::lent) {
            if err == EINTR {
                self.device.counters().abandoned();
            }
            if is_heard && !given.request.is_done() && left_ms() > 0 {
                let tag = given.request.token();
                is_heard = self.device.control().cancel(tag, self.index).is_ok();
            }
        }
        let start = Instant::<Monotonic>::now();
        let left_ms = || CANCEL_MS.saturating_sub(start.elapsed().as_millis() as u32);
        for given in entries.iter().filter_map(Entry::lent) {
            if is_heard && given.request.wait(left_ms()).is_err() {
                break;
            }
        }
        // Whatever it says, the batch has its reason.
        let _ = self.harvest(entries);
        for entry in entries.iter_mut() {
            if let State::Lent(given) = &entry.state {
                // The device may be at it still: the pins go when it is done.
                if let Some(pinned) = &entry.pinned {
                    given.request.abandon(pinned.clone());
                    let recovery = self.engine.recovery();
                    let mark = given.mark.unwrap_or_else(|| recovery.mark());
                    recovery.park(given.request.clone(), mark);
                }
                entry.state = State::Ended(Fate::NoAnswer);
            }
        }
    }
}
