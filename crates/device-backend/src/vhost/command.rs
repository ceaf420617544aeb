// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Serving a command queue.
//!
//! ```text
//!   ring --take--> Taken --begin--> completion --give_back--> ring
//! ```
//!
//! A command runs in the thread that took it, or, if it is unordered and not short, in an engine.
//! Every command is begun in [`Taken::begin`], and every completion leaves in
//! [`Taken::give_back`].

use super::adapter::Shared;
use super::asker::Asker;
use super::chain::{self, Chain, Malformed};
use super::engines::Crew;
use super::guest_view::GuestView;
use super::passage::{Passage, Served};
use super::ring::{Broken, Ring};
use super::vring::Vring;
use crate::model::{Command, CommandQueue, Device, Means, Request, Task, Ticket};
use cdm_protocol::{Completion, Opcode, QUEUE_FIRST_COMMAND, Status};
use std::sync::Arc;
use zerocopy::FromZeros;

/// Work above which the driver hears of the commands before first: below it, an interrupt
/// costs more than the waiting.
const LONG_COMMAND_BYTES: u64 = 64 << 10;
/// Work up to which a command is done at once by who takes it: a microsecond or two, which is less
/// than waking another thread takes.
const SHORT_COMMAND_BYTES: u64 = 16 << 10;

/// The rings that a command worker needs.
#[derive(Clone, Copy)]
pub struct CommandRings<'a> {
    /// The command queue itself.
    pub command: &'a Vring,
    /// For errors that no completion can tell.
    pub event: &'a Vring,
}

/// A command between the ring and its completion.
struct Taken {
    shared: Arc<Shared>,
    index: u16,
    vring: Vring,
    event: Vring,
    /// Guest memory when the command was taken: where its chain lies, and what it works on.
    guest: Arc<GuestView>,
    chain: Chain,
    /// What is counted of it, and what goes wrong with it.
    passage: Passage,
    ticket: Arc<Ticket>,
    /// None if the chain is malformed.
    command: Option<Command>,
    /// Whether it runs beside the thread that serves the queue.
    is_beside: bool,
}

/// A command that was begun, for all threads that work on it.
struct Work {
    task: Task,
    asker: Asker,
    index: u16,
    guest: Arc<GuestView>,
    ticket: Arc<Ticket>,
    /// Whether it has to end when the guest stands still.
    waits_for_guest: bool,
}

impl Work {
    /// Works on it until there is nothing left to take.
    fn take_part(&self) {
        let device = &self.asker.shared.device;
        let queue = &device.queues()[usize::from(self.index)];
        let cancelled =
            || queue.is_cancelled(&self.ticket) || (self.waits_for_guest && queue.is_stopping());
        let means = Means {
            guest: &*self.guest,
            asker: &self.asker,
            cancelled: &cancelled,
        };
        device.work(&self.task, &means);
    }
}

/// Takes one command of queue number `index` among the command queues, and carries it out
/// or gives it to an engine.
///
/// The caller has the queue's turn.
pub fn serve_one(
    shared: &Arc<Shared>,
    index: u16,
    rings: CommandRings<'_>,
) -> Result<Served, Broken> {
    let guest = shared.guest();
    let ring = Ring::new(rings.command, &guest);
    let number = QUEUE_FIRST_COMMAND + index;
    let queue = &shared.device.queues()[usize::from(index)];
    // A RESET ends whatever holds a queue up.
    if !queue.is_next_cancelled() && Passage::is_barred(shared, number, &ring) {
        return Ok(Served::Stalled);
    }
    let Some((chain, ticket)) = ring.pop(|| queue.take())? else {
        return Ok(Served::Nothing);
    };
    let mut passage = Passage::begin(shared, number, &chain, &guest);
    if !chain.has_room(size_of::<Completion>(), &guest) {
        let given_back = ring.push_used(&chain, 0);
        queue.finish(&ticket, &with_status(Status::MALFORMED));
        shared.queue_error(number, rings.event, &guest);
        return given_back.map(|()| Served::One);
    }
    let command = match chain.request(&guest) {
        Err(Malformed) => None,
        Ok(request) => {
            passage.is_for(chain::opcode(&request.bytes).and_then(|number| Opcode(number).name()));
            Some(Command::parse(&Request::new(&request.bytes, request.total)))
        }
    };
    if let Some(tag) = command.as_ref().and_then(Command::tag) {
        queue.name(&ticket, tag);
    }
    let is_beside = command
        .as_ref()
        .is_some_and(|command| runs_beside(command, &shared.device));
    let is_unordered = command.as_ref().is_some_and(Command::is_unordered);
    let taken = Taken {
        shared: shared.clone(),
        index,
        vring: rings.command.clone(),
        event: rings.event.clone(),
        guest,
        chain,
        passage,
        ticket: Arc::new(ticket),
        command,
        is_beside,
    };
    if is_beside {
        taken.carry_out_beside();
        return Ok(Served::One);
    }
    if !is_unordered && queue.has_earlier(&taken.ticket) {
        // What is done already is heard of first: this may take long.
        taken.ring().notify();
        queue.wait_for_earlier(&taken.ticket);
    }
    taken.carry_out().map(|()| Served::One)
}

/// Whether a command is given to an engine. For a short one, that would cost more than the command
/// itself: a thread to be woken, and an interrupt of its own.
fn runs_beside(command: &Command, device: &Device) -> bool {
    command.is_unordered()
        && (command.bytes() > SHORT_COMMAND_BYTES || command.waits_for_guest() || device.is_timed())
}

impl Taken {
    /// Has an engine carry the command out, or does it here if none is free.
    fn carry_out_beside(self) {
        let shared = self.shared.clone();
        let carry_out = move || {
            // A ring that cannot take the chain back is reported already.
            let _ = self.carry_out();
        };
        if let Err(job) = shared.engines.hand_over(Box::new(carry_out)) {
            job();
        }
    }

    fn carry_out(mut self) -> Result<(), Broken> {
        let completion = self.begin();
        self.give_back(&completion)
    }

    /// Begins the command and sees it to its end.
    fn begin(&mut self) -> Completion {
        let Some(command) = self.command.take() else {
            return with_status(match self.is_cancelled() {
                true => Status::CANCELLED,
                false => Status::MALFORMED,
            });
        };
        if self.is_cancelled() {
            return with_status(Status::CANCELLED);
        }
        if let Some(refusal) = self.passage.refusal() {
            return refusal;
        }
        if command.bytes() > LONG_COMMAND_BYTES {
            self.ring().notify();
        }
        let waits_for_guest = command.waits_for_guest();
        let task = match self.device().begin(command, &*self.guest) {
            Ok(task) => task,
            Err(completion) => return completion,
        };
        let work = Work {
            task,
            asker: Asker {
                shared: self.shared.clone(),
                event: self.event.clone(),
                queue: QUEUE_FIRST_COMMAND + self.index,
            },
            index: self.index,
            guest: self.guest.clone(),
            ticket: self.ticket.clone(),
            waits_for_guest,
        };
        let helpers = work.task.helpers().min(self.shared.engines.count() as u64);
        let work = self.do_work(work, helpers);
        self.device().settle(&work.task, &|| self.is_cancelled());
        let (traffic, simulated) = self.device().account(&work.task);
        self.passage.did(&traffic, simulated);
        self.device().finish(&work.task)
    }

    /// Does the work, with engines if any can be of help. They stop when the task has nothing left
    /// to take.
    fn do_work(&self, work: Work, helpers: u64) -> Arc<Work> {
        let work = Arc::new(work);
        if helpers == 0 {
            work.take_part();
            return work;
        }
        let crew = Arc::new(Crew::default());
        for _ in 0..helpers {
            let (work, crew) = (work.clone(), crew.clone());
            let help = move || {
                if let Some(_member) = crew.join() {
                    work.take_part();
                }
            };
            if self.shared.engines.hand_over(Box::new(help)).is_err() {
                break;
            }
        }
        work.take_part();
        crew.dismiss();
        work
    }

    /// Gives the chain with its completion back to the driver.
    fn give_back(self, completion: &Completion) -> Result<(), Broken> {
        let Self {
            shared,
            index,
            vring,
            event,
            guest,
            chain,
            passage,
            ticket,
            is_beside,
            command: _,
        } = self;
        let queue = &shared.device.queues()[usize::from(index)];
        let ring = Ring::new(&vring, &guest);
        queue.forget_name(&ticket);
        let given_back = passage.give_back(&shared, &ring, chain, completion, &guest);
        if is_beside {
            if given_back.is_err() {
                shared.queue_error(QUEUE_FIRST_COMMAND + index, &event, &guest);
            }
            // Whoever takes commands off the ring may be asleep, so nobody else tells the driver.
            ring.notify();
        }
        // The last of it: whoever waits for this may take the ring and the memory away.
        queue.finish(&ticket, completion);
        given_back
    }

    fn device(&self) -> &Device {
        &self.shared.device
    }

    fn queue(&self) -> &CommandQueue {
        &self.device().queues()[usize::from(self.index)]
    }

    fn ring(&self) -> Ring<'_> {
        Ring::new(&self.vring, &self.guest)
    }

    fn is_cancelled(&self) -> bool {
        self.queue().is_cancelled(&self.ticket)
    }
}

/// A completion that says nothing but its status.
pub fn with_status(status: Status) -> Completion {
    Completion {
        status,
        ..Completion::new_zeroed()
    }
}
