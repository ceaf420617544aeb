// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device: its memory, its state, and what it does with a request.

use super::exec::{self, Progress, Word, Words};
use super::link::{Pace, Picoseconds, Side, Traffic};
use super::operand::Operand;
use super::request::{
    AtomicWidth, Code, ControlOperation, Extent, Operation, ParsedCommand, Place, Refusal, Request,
};
use super::state::{DriverState, Mapping, MappingEvent};
use super::task::{Chunk, Task};
use super::{Cancellation, CommandQueue, GuestMemory, Pool, PoolError, Shape};
use cdm_protocol::{Completion, Config, Instruction, QUEUE_FIRST_COMMAND, Status};
use std::sync::{PoisonError, RwLock, RwLockReadGuard, RwLockWriteGuard};
use zerocopy::{FromZeros, IntoBytes};

/// One device. Queues may be served by as many threads as there are queues.
#[derive(Debug)]
pub struct Device {
    config: Config,
    pool: Pool,
    /// Held for a look or a change, never while a command runs or a transport is asked.
    state: RwLock<DriverState>,
    queues: Vec<CommandQueue>,
    engines: u16,
    pace: Pace,
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
        let queues = (0..shape.command_queues).map(|_| CommandQueue::default());
        Ok(Self {
            config: shape.config(),
            pool: Pool::new(shape.memory)?,
            state: RwLock::default(),
            queues: queues.collect(),
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

    /// Forgets what a driver had set up, because the guest's mapping is gone: a virtio
    /// reset, or the guest itself has gone. Memory keeps its contents.
    pub fn unplug(&self) {
        let mut state = self.state_mut();
        if let Some(next) = state.mapping.next(MappingEvent::Unplugged) {
            state.mapping = next;
        }
        state.metadata = 0..0;
    }

    /// Takes a request of the control queue.
    pub fn control(&self, request: &Request<'_>) -> ControlStep {
        match ControlOperation::parse(request) {
            Err(refusal) => ControlStep::Complete(refusal.into()),
            Ok(ControlOperation::MapMemory) => self.begin_map(),
            Ok(ControlOperation::SetMetadata { base, bytes }) => {
                ControlStep::Complete(self.set_metadata(base, bytes))
            }
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
            let num_src = command.source.len();
            // All ranges are found before any byte is moved, so a bad one changes nothing.
            self.resolve(&command.source, 0, &state, guest)?;
            self.resolve(&command.destination, num_src, &state, guest)?;
            Ok(Task::new(command, state, self.pace.begin()))
        };
        command.0.and_then(begin).map_err(Completion::from)
    }

    /// Works on a task until there is nothing left to take of it, in as many threads as care to.
    ///
    /// `cancelled` is asked before each piece of the work, and stops all of them.
    pub fn work(&self, task: &Task, guest: &dyn GuestMemory, cancelled: &dyn Fn() -> bool) {
        loop {
            if cancelled() {
                return task.stop();
            }
            let Some(chunk) = task.take() else { return };
            match self.run(task, &chunk, guest, cancelled) {
                Ok((progress, traffic)) => {
                    self.pace.account(task.visit(), &traffic);
                    task.note(&chunk, progress);
                }
                Err(refusal) => return task.refuse(refusal),
            }
            // What is cancelled meanwhile is not done.
            self.hold_back(task, &|| task.is_taken() || cancelled());
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

    fn run(
        &self,
        task: &Task,
        chunk: &Chunk,
        guest: &dyn GuestMemory,
        cancelled: &dyn Fn() -> bool,
    ) -> Result<(Progress, Traffic), Refusal> {
        let num_src = chunk.source.len();
        let source = self.resolve(&chunk.source, 0, task.state(), guest)?;
        let destination = self.resolve(&chunk.destination, num_src, task.state(), guest)?;
        let word =
            |width| word(&destination, width).ok_or(Refusal::of_range(Status::MISALIGNED, num_src));
        let mut counted = Traffic::default();
        let operation = task.command().operation;
        let progress = match operation {
            Operation::Nop => Progress::finished(0, 0),
            Operation::Fill(pattern) => exec::fill(&destination, &pattern),
            Operation::Copy => exec::copy(&source, &destination),
            // The task puts the CRCs of its chunks together.
            Operation::Checksum { .. } => exec::checksum(&source),
            Operation::Compare => exec::compare(&source, &destination),
            Operation::FetchAdd {
                width,
                addend,
                repeat,
            } => exec::fetch_add(word(width)?, addend, repeat, cancelled),
            Operation::CompareSwap {
                width,
                expected,
                new,
            } => exec::compare_swap(word(width)?, expected, new, cancelled),
            Operation::Sum { elements, initial } => {
                exec::sum(&source, elements, initial, cancelled)
            }
            Operation::Axpy { elements, factor } => {
                exec::axpy(&source, &destination, elements, factor, cancelled)
            }
            Operation::PointerChase { first, base, hops } => {
                let words = words(&source, 0)?;
                let progress = exec::chase(&words, first, base, hops, cancelled);
                counted = words.traffic();
                progress
            }
            Operation::Histogram { width, bins } => {
                let counters = words(&destination, num_src)?;
                let progress = exec::histogram(&source, &counters, width, bins, cancelled);
                counted = counters.traffic();
                progress
            }
            Operation::Program {
                instructions,
                argument,
                limit,
            } => {
                let words = words(&destination, num_src)?;
                // Read once, before the first instruction may change it.
                let mut bytes = vec![0; instructions as usize * size_of::<Instruction>()];
                source.stream().read(&mut bytes);
                let code = Code::parse(&bytes)?;
                let progress = exec::program(&code, &words, argument, limit, cancelled);
                counted = words.traffic();
                progress
            }
        };
        let traffic = exec::traffic(&operation, &source, &destination, &progress, counted);
        Ok((progress, traffic))
    }

    /// Finds the memory behind a list whose first range has index `first_index`.
    fn resolve<'m>(
        &'m self,
        list: &[Extent],
        first_index: usize,
        state: &DriverState,
        guest: &'m dyn GuestMemory,
    ) -> Result<Operand<'m>, Refusal> {
        let mut operand = Operand::default();
        for (index, extent) in list.iter().enumerate() {
            let result = match extent.place {
                Place::Device(address) => {
                    self.resolve_device(address, extent.bytes, state, &mut operand)
                }
                Place::Guest(address) => resolve_guest(address, extent.bytes, guest, &mut operand),
            };
            result.map_err(|status| Refusal::of_range(status, first_index + index))?;
        }
        Ok(operand)
    }

    fn resolve_device<'m>(
        &'m self,
        address: u64,
        bytes: u64,
        state: &DriverState,
        operand: &mut Operand<'m>,
    ) -> Result<(), Status> {
        if state.mapping != Mapping::Mapped {
            return Err(Status::NOT_MAPPED);
        }
        let slice = self.pool.slice(address, bytes).ok_or(Status::BAD_ADDRESS)?;
        if state.is_protected(address, bytes) {
            return Err(Status::PROTECTED);
        }
        operand.push(slice, Side::Own);
        Ok(())
    }

    fn state(&self) -> RwLockReadGuard<'_, DriverState> {
        // Nothing can panic between two changes of the state, so it is whole even if poisoned.
        self.state.read().unwrap_or_else(PoisonError::into_inner)
    }

    fn state_mut(&self) -> RwLockWriteGuard<'_, DriverState> {
        self.state.write().unwrap_or_else(PoisonError::into_inner)
    }
}

/// Appends a guest-physical range, which may span several regions of guest memory.
fn resolve_guest<'m>(
    mut address: u64,
    mut bytes: u64,
    guest: &'m dyn GuestMemory,
    operand: &mut Operand<'m>,
) -> Result<(), Status> {
    while bytes > 0 {
        let slice = guest.stretch(address, bytes).ok_or(Status::BAD_ADDRESS)?;
        let found = slice.len() as u64;
        debug_assert!((1..=bytes).contains(&found));
        operand.push(slice, Side::Link);
        bytes -= found;
        // Wraps only with nothing left to find, or to an address that is refused there.
        address = address.wrapping_add(found);
    }
    Ok(())
}

/// The words of an operand whose first range has index `first_index`.
fn words<'o, 'm>(operand: &'o Operand<'m>, first_index: usize) -> Result<Words<'o, 'm>, Refusal> {
    Words::new(operand).ok_or(Refusal::of_range(Status::MISALIGNED, first_index))
}

/// The only word of an atomic command's operand.
fn word<'m>(operand: &Operand<'m>, width: AtomicWidth) -> Option<Word<'m>> {
    Word::new(operand.pieces(8).next()?, width)
}

fn done(result: u64) -> Completion {
    Completion {
        status: Status::OK,
        result: result.into(),
        ..Completion::new_zeroed()
    }
}
