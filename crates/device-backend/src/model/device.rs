// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device: its memory, its state, and what it does with a request.

use super::alarm::Alarm;
use super::atomics::{AtomicUnit, Atomics};
use super::exec::Progress;
use super::link::{Pace, Picoseconds, Traffic};
use super::memory::Memory;
use super::operands::{Far, Near, Walked, carry_out};
use super::request::{
    ControlOperation, Extent, Operation, ParsedCommand, Place, Refusal, Request, total_bytes,
};
use super::state::{DriverState, Mapping, MappingEvent};
use super::task::{Chunk, Task};
use super::translation::{AddressSpaces, Answer, Counted, Pasid, Space, Translated};
use super::{
    Cancellation, CommandQueue, FailedMemory, GuestMemory, PageAsker, PageSet, Pool, PoolError,
    Shape,
};
use cdm_protocol::{
    Completion, Config, ERROR_BYTES, EventKind, MemoryError, QUEUE_FIRST_COMMAND, Status,
};
use std::cell::Cell;
use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::ops::Range;
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use zerocopy::{FromZeros, IntoBytes};

/// One device. Queues may be served by as many threads as there are queues.
#[derive(Debug)]
pub struct Device {
    config: Config,
    pool: Pool,
    /// Held for a look or a change, never while a command runs or a transport is asked.
    state: RwLock<DriverState>,
    /// Memory that has failed; outlives guests.
    failed: FailedMemory,
    queues: Vec<CommandQueue>,
    /// Address spaces of processes, and what is known of them.
    spaces: AddressSpaces,
    /// What carries out atomics on guest memory, if the link does not.
    unit: Option<AtomicUnit>,
    /// Rung when somebody who waits for pages may have to stop.
    alarm: Arc<Alarm>,
    engines: u16,
    pace: Pace,
}

/// What a thread brings along that works on a command.
#[derive(Clone, Copy)]
pub struct Means<'a> {
    /// Guest memory.
    pub guest: &'a dyn GuestMemory,
    /// The way to the driver for page requests.
    pub asker: &'a dyn PageAsker,
    /// Whether the command is to stop. It is asked before each piece of the work, and whenever a
    /// cancellation or an answer rings for those who wait for pages.
    pub cancelled: &'a dyn Fn() -> bool,
}

/// A command whose form was checked, or the reason why it will not be carried out.
#[derive(Debug)]
pub struct Command(Result<ParsedCommand, Refusal>);

/// What a control request asks of the caller.
#[derive(Debug, PartialEq, Eq)]
pub enum ControlStep {
    /// Nothing: complete the request with this.
    Complete(Completion),
    /// Map the pool's file into the guest, then call [`Device::finish_map`].
    MapMemory,
    /// Cancel what is outstanding on the command queues, wait until none of it is left,
    /// then call [`Device::finish_reset`].
    CancelCommands,
    /// Have [`CommandQueue::cancel_one`] cancel the command with that tag, then call
    /// [`Device::finish_cancel`].
    CancelCommand {
        /// Index among the command queues.
        index: u16,
        /// How the driver named the command.
        tag: u64,
    },
}

impl Command {
    /// Parses the device-readable part of a chain.
    pub fn parse(request: &Request<'_>) -> Self {
        Self(ParsedCommand::parse(request))
    }

    /// How many bytes the command goes over: an estimate of its duration.
    pub fn bytes(&self) -> u64 {
        match &self.0 {
            Ok(command) => command.bytes(),
            Err(_) => 0,
        }
    }

    /// Whether it may run beside other unordered commands of its queue.
    pub fn is_unordered(&self) -> bool {
        self.0.as_ref().is_ok_and(|command| command.is_unordered)
    }

    /// How a CANCEL names it.
    pub fn tag(&self) -> Option<u64> {
        self.0.as_ref().ok()?.tag
    }

    /// Whether it may wait for what the guest's CPUs do, and so for ever if they stand still.
    pub fn waits_for_guest(&self) -> bool {
        self.0.as_ref().is_ok_and(ParsedCommand::waits_for_guest)
    }
}

impl Device {
    /// Makes a device with memory of its own, all zero.
    pub fn new(shape: &Shape) -> Result<Self, PoolError> {
        let alarm = Arc::<Alarm>::default();
        let queue = |_| CommandQueue::new(alarm.clone());
        let queues = (0..shape.command_queues).map(queue);
        Ok(Self {
            config: shape.config(),
            pool: Pool::new(shape.memory)?,
            state: RwLock::default(),
            failed: FailedMemory::default(),
            queues: queues.collect(),
            spaces: AddressSpaces::new(shape.translations, alarm.clone()),
            unit: match shape.atomics {
                Atomics::Link => None,
                Atomics::Exclusive => Some(AtomicUnit::new()),
            },
            alarm,
            engines: shape.engines,
            pace: Pace::new(&shape.link),
        })
    }

    /// Threads beside the queues' own that work on commands.
    pub fn engines(&self) -> u16 {
        self.engines
    }

    /// The config space, as a driver reads it.
    pub fn config_bytes(&self) -> &[u8] {
        self.config.as_bytes()
    }

    /// The device memory.
    pub fn pool(&self) -> &Pool {
        &self.pool
    }

    /// Order and cancellation of each command queue, first one first.
    pub fn queues(&self) -> &[CommandQueue] {
        &self.queues
    }

    /// Whether the guest sees the device memory.
    pub fn is_mapped(&self) -> bool {
        self.state().mapping == Mapping::Mapped
    }

    /// What the translation of addresses has done so far.
    pub fn translated(&self) -> Translated {
        self.spaces.tally().read()
    }

    /// What was counted of accesses to memory of processes.
    pub fn counted(&self) -> Counted {
        self.spaces.counts().read()
    }

    /// Lets pages fail, by their numbers; how many of them had not before.
    pub fn fail_pages(&self, pages: Range<u64>) -> u64 {
        self.failed.add(pages)
    }

    /// Pages of the memory.
    pub fn pages(&self) -> u64 {
        self.pool.size().bytes() / ERROR_BYTES
    }

    /// Those that have failed.
    pub fn bad_pages(&self) -> PageSet {
        self.failed.errors().bad().clone()
    }

    /// Whether there is something to tell the driver.
    pub fn has_memory_errors_to_tell(&self) -> bool {
        self.failed.is_any() && self.failed.errors().has_untold()
    }

    /// An event for the driver, which counts as told.
    pub fn take_memory_error(&self) -> Option<MemoryError> {
        let pages = self.failed.errors().take_untold()?;
        Some(MemoryError {
            kind: EventKind::MEMORY_ERROR,
            address: (pages.start * ERROR_BYTES).into(),
            bytes: ((pages.end - pages.start) * ERROR_BYTES).into(),
            ..MemoryError::new_zeroed()
        })
    }

    /// The driver had no room for the event, and is told later.
    pub fn keep_memory_error(&self, error: &MemoryError) {
        let first = error.address.get() / ERROR_BYTES;
        let pages = first..first + error.bytes.get() / ERROR_BYTES;
        self.failed.errors().keep_untold(pages);
    }

    /// Forgets what a driver had set up, because the guest's mapping is gone: a virtio
    /// reset, or the guest itself has gone. Memory keeps its contents, and its errors.
    pub fn unplug(&self) {
        self.spaces.unbind_all();
        self.failed.errors().forget_driver();
        let mut state = self.state_mut();
        if let Some(next) = state.mapping.next(MappingEvent::Unplugged) {
            state.mapping = next;
        }
        state.metadata = 0..0;
    }

    /// Takes a request of the control queue. Returns from an invalidation when nobody uses what
    /// it names any more: that is soon, since who uses a translation waits for nothing.
    pub fn control(&self, request: &Request<'_>) -> ControlStep {
        match ControlOperation::parse(request) {
            Err(refusal) => ControlStep::Complete(refusal.into()),
            Ok(ControlOperation::MapMemory) => self.begin_map(),
            Ok(ControlOperation::SetMetadata { base, bytes }) => {
                ControlStep::Complete(self.set_metadata(base, bytes))
            }
            Ok(ControlOperation::FindBad { from }) => ControlStep::Complete(self.find_bad(from)),
            Ok(ControlOperation::Reset) => ControlStep::CancelCommands,
            Ok(ControlOperation::Cancel { tag, queue }) => {
                match queue
                    .checked_sub(QUEUE_FIRST_COMMAND.into())
                    .filter(|&index| index < self.queues.len() as u64)
                {
                    // Less than the number of queues, so it fits.
                    Some(index) => ControlStep::CancelCommand {
                        index: index as u16,
                        tag,
                    },
                    None => ControlStep::Complete(Refusal::of(Status::BAD_ARGUMENT).into()),
                }
            }
            Ok(ControlOperation::Bind(pasid)) => answer(self.spaces.bind(pasid).map(|()| 0)),
            Ok(ControlOperation::Unbind(pasid)) => answer(self.spaces.unbind(pasid).map(|()| 0)),
            Ok(ControlOperation::PageResponse { pasid, id, answers }) => {
                // The bit is one of a feature.
                let answers = answers.filter(|answers| {
                    self.unit.is_some() || !answers.iter().any(Answer::is_exclusive)
                });
                answer(self.spaces.answer(pasid, id, answers.as_deref()))
            }
            Ok(ControlOperation::Invalidate(pasid, range)) => {
                answer(self.spaces.invalidate(pasid, range).map(|()| 0))
            }
            Ok(ControlOperation::CountAccesses { pasid, threshold }) => {
                answer(self.spaces.count_accesses(pasid, threshold).map(|()| 0))
            }
        }
    }

    /// Ends [`ControlStep::MapMemory`]: `is_mapped` tells whether the transport did it.
    pub fn finish_map(&self, is_mapped: bool) -> Completion {
        let event = if is_mapped {
            MappingEvent::MapDone
        } else {
            MappingEvent::MapFailed
        };
        let mut state = self.state_mut();
        if let Some(next) = state.mapping.next(event) {
            state.mapping = next;
        }
        match state.mapping {
            Mapping::Mapped => done(self.pool.size().bytes()),
            // Not mapped, or reset meanwhile: either way the guest does not see the memory.
            Mapping::InProgress | Mapping::Unmapped => Refusal::of(Status::HOST_ERROR).into(),
        }
    }

    /// Ends [`ControlStep::CancelCommands`] after `cancelled` commands were failed.
    pub fn finish_reset(&self, cancelled: u64) -> Completion {
        self.spaces.drop_translations();
        done(cancelled)
    }

    /// Ends [`ControlStep::CancelCommand`].
    pub fn finish_cancel(&self, cancellation: Cancellation) -> Completion {
        match cancellation {
            Cancellation::Stopping => done(1),
            Cancellation::Remembered => done(0),
            Cancellation::Refused => Refusal::of(Status::BAD_ARGUMENT).into(),
        }
    }

    /// Checks a command against the memory that there is; the completion if it is refused.
    pub fn begin(&self, command: Command, guest: &dyn GuestMemory) -> Result<Task, Completion> {
        let begin = |command: ParsedCommand| {
            let state = self.state().clone();
            let memory = Memory {
                pool: &self.pool,
                state: &state,
                failed: &self.failed,
                guest,
            };
            // All ranges are found before any byte is moved, so a bad one changes nothing. Of a
            // process's memory nothing is known before it is needed.
            if self.unit.is_some()
                && let Some(index) = command.atomic_on_guest()
            {
                return Err(Refusal::of_range(Status::BAD_SPACE, index));
            }
            let bound = self.bound(&command)?;
            Near::resolve(memory, command.source_part(), command.destination_part())?;
            // What fails from here on was good when the command began.
            self.check_errors(&command)?;
            Ok(Task::new(command, state, bound, self.pace.begin()))
        };
        command.0.and_then(begin).map_err(Completion::from)
    }

    /// Works on a task until there is nothing left to take of it, in as many threads as care to.
    pub fn work(&self, task: &Task, means: &Means<'_>) {
        loop {
            if (means.cancelled)() {
                return task.stop();
            }
            let Some(chunk) = task.take() else { return };
            match self.run(task, &chunk, means) {
                Ok((progress, traffic)) => {
                    self.pace.account(task.visit(), &traffic);
                    task.note(&chunk, progress);
                    if progress.status != Status::OK {
                        // Whoever waits for the pages of a later chunk does so in vain.
                        self.alarm.ring();
                    }
                }
                Err(refusal) => return task.refuse(refusal),
            }
            // What is cancelled meanwhile is not done.
            self.hold_back(task, &|| task.is_taken() || (means.cancelled)());
        }
    }

    /// Waits, after the last chunk, until the task's simulated time has passed, unless it is
    /// cancelled.
    pub fn settle(&self, task: &Task, cancelled: &dyn Fn() -> bool) {
        self.hold_back(task, cancelled);
    }

    /// Whether accesses to memory take simulated time.
    pub fn is_timed(&self) -> bool {
        self.pace.is_on()
    }

    /// What a task that nobody works on any more did to memory, and how long that takes, if the
    /// device's link takes time.
    pub fn account(&self, task: &Task) -> (Traffic, Option<Picoseconds>) {
        let visit = task.visit().lock().unwrap_or_else(PoisonError::into_inner);
        (*visit.traffic(), self.pace.duration(&visit))
    }

    /// The completion of a task that nobody works on any more.
    pub fn finish(&self, task: &Task) -> Completion {
        match task.outcome() {
            Ok(progress) => progress.into(),
            Err(refusal) => refusal.into(),
        }
    }

    /// Waits for the task's simulated time, as long as there is a reason to. There is none while
    /// the guest stands still until its commands have ended.
    fn hold_back(&self, task: &Task, is_over: &dyn Fn() -> bool) {
        let is_stopping = || self.queues.iter().any(CommandQueue::is_stopping);
        self.pace.wait(task.visit(), &|| is_over() || is_stopping());
    }

    fn begin_map(&self) -> ControlStep {
        let mut state = self.state_mut();
        match state.mapping.next(MappingEvent::MapAsked) {
            Some(next) => {
                state.mapping = next;
                ControlStep::MapMemory
            }
            // Mapped already. (In progress it cannot be: the control queue has one worker.)
            None => ControlStep::Complete(done(self.pool.size().bytes())),
        }
    }

    fn set_metadata(&self, base: u64, bytes: u64) -> Completion {
        let mut state = self.state_mut();
        if state.mapping != Mapping::Mapped {
            return Refusal::of(Status::NOT_MAPPED).into();
        }
        if !self.pool.contains(base, bytes) {
            return Refusal::of(Status::BAD_ADDRESS).into();
        }
        state.metadata = base..base + bytes;
        done(0)
    }

    fn find_bad(&self, from: u64) -> Completion {
        if !from.is_multiple_of(ERROR_BYTES) {
            return Refusal::of(Status::MISALIGNED).into();
        }
        let end = self.pool.size().bytes();
        if from > end {
            return Refusal::of(Status::BAD_ADDRESS).into();
        }
        match self.failed.errors().ask(from / ERROR_BYTES) {
            Some(pages) => Completion {
                bytes_done: ((pages.end - pages.start) * ERROR_BYTES).into(),
                ..done(pages.start * ERROR_BYTES)
            },
            None => done(end),
        }
    }

    /// Refuses a command that would touch failed memory; where its ranges of processes lie is not
    /// known yet.
    fn check_errors(&self, command: &ParsedCommand) -> Result<(), Refusal> {
        if !self.failed.is_any() {
            return Ok(());
        }
        let errors = self.failed.errors();
        let is_bad = |extent: &Extent| match extent.place {
            Place::Device(address) => errors.good_bytes(address, extent.bytes) < extent.bytes,
            Place::Guest(_) | Place::Process(..) => false,
        };
        match command.ranges().position(is_bad) {
            Some(index) => Err(Refusal::of_range(Status::POISONED, index)),
            None => Ok(()),
        }
    }

    fn run(
        &self,
        task: &Task,
        chunk: &Chunk,
        means: &Means<'_>,
    ) -> Result<(Progress, Traffic), Refusal> {
        let operation = task.command().operation;
        let memory = Memory {
            pool: &self.pool,
            state: task.state(),
            failed: &self.failed,
            guest: means.guest,
        };
        let (source, destination) = (chunk.source(), chunk.destination());
        let source_bytes = total_bytes(source.list);
        // An instruction may be an atomic, and where it leads shows when it is reached.
        let is_watched = self.unit.is_some() && matches!(operation, Operation::Program { .. });
        if task.bound().is_empty() && !is_watched {
            let near = Near::resolve(memory, source, destination)?;
            return carry_out(operation, source_bytes, &near, means.cancelled);
        }
        let given_up = || (means.cancelled)() || task.is_in_vain(chunk);
        let far = Far {
            memory,
            spaces: &self.spaces,
            bound: task.bound(),
            unit: self.unit.as_ref(),
            asker: means.asker,
            given_up: &given_up,
            source,
            destination,
            walked: Walked::new(&operation),
            pieces: Cell::default(),
        };
        carry_out(operation, source_bytes, &far, means.cancelled)
    }

    /// The address spaces that a command names.
    fn bound(&self, command: &ParsedCommand) -> Result<BTreeMap<Pasid, Space>, Refusal> {
        let mut bound = BTreeMap::new();
        for (index, extent) in command.ranges().enumerate() {
            let Place::Process(pasid, address) = extent.place else {
                continue;
            };
            let refuse = |status| Refusal::of_range(status, index);
            if let Entry::Vacant(entry) = bound.entry(pasid) {
                let space = self.spaces.space(pasid);
                entry.insert(space.ok_or(refuse(Status::BAD_PASID))?);
            }
            // The last address there is belongs to the space.
            if address.checked_add(extent.bytes - 1).is_none() {
                return Err(refuse(Status::BAD_ADDRESS));
            }
        }
        Ok(bound)
    }

    fn state(&self) -> RwLockReadGuard<'_, DriverState> {
        // Nothing can panic between two changes of the state, so it is whole even if poisoned.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, DriverState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// A request that is complete at once.
fn answer(outcome: Result<u64, Status>) -> ControlStep {
    ControlStep::Complete(match outcome {
        Ok(result) => done(result),
        Err(status) => Refusal::of(status).into(),
    })
}

fn done(result: u64) -> Completion {
    Completion {
        status: Status::OK,
        result: result.into(),
        ..Completion::new_zeroed()
    }
}
