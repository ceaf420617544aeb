// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults on request: which requests they hit, and what happens to those.
//!
//! Nothing here touches a ring. A queue's worker asks what is ahead of its next request
//! ([`Faults::look`]), takes what belongs to it when it takes the request ([`Faults::take`]), and
//! does it when it gives the request back. What is left to chance follows from seed, queue
//! and number of the request alone, so the same run has the same faults. A fault of memory
//! ([`FaultKind::Poison`]) hits no request, and is done with when it is set.

mod chance;
mod effect;
mod poison;

#[cfg(test)]
mod tests;

pub use effect::{Effects, Leave};

use crate::model::Device;
use cdm_control_protocol::{Fault, FaultError, FaultKind, FaultState, Operation};
use cdm_protocol::{QUEUE_CONTROL, QUEUE_EVENT, QUEUE_FIRST_COMMAND, Status};
use chance::Chance;
use effect::Effect;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

/// Most faults at a time: each costs every request a look.
const FAULTS_MAX: usize = 64;

/// Between two looks of a worker that waits: it also has to see that its ring was stopped.
const STALL_INTERVAL: Duration = Duration::from_millis(2);

/// The faults of a device.
#[derive(Debug)]
pub struct Faults {
    /// Whether there is anything to look at: without faults, requests pass for a load.
    is_active: AtomicBool,
    state: Mutex<State>,
    changed: Condvar,
    device: Arc<Device>,
}

#[derive(Debug, Default)]
struct State {
    next_id: u64,
    active: Vec<Active>,
    /// What is decided about the next request of a queue.
    ahead: BTreeMap<u16, Ahead>,
}

#[derive(Debug)]
struct Active {
    id: u64,
    fault: Fault,
    queues: BTreeMap<u16, Counts>,
    /// Pages that it let fail.
    pages: u64,
}

/// How far a fault is with one queue.
#[derive(Debug, Default)]
struct Counts {
    /// Things that it counts.
    requests: u64,
    hits: u64,
}

/// What the faults that hit a request do to it, each with the fault's number.
#[derive(Debug, Default)]
struct Ahead(Vec<(u64, FaultKind, Consequence)>);

#[derive(Clone, Copy, Debug)]
enum Consequence {
    /// The queue waits until then; for ever without a time.
    Stall(Option<Instant>),
    /// Something happens to the request itself.
    Effect(Effect),
}

/// What a fault counts, and hits one of.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Counted {
    /// Requests that are taken off a queue.
    Requests,
    /// Page requests that the commands of a queue make.
    PageRequests,
    /// INVALIDATEs.
    Invalidations,
    /// Uses of a translation by the commands of a queue.
    Accesses,
}

impl Counted {
    fn of(kind: FaultKind) -> Self {
        match kind {
            FaultKind::RefusePage => Self::PageRequests,
            FaultKind::LateInvalidation => Self::Invalidations,
            FaultKind::LateAccess => Self::Accesses,
            _ => Self::Requests,
        }
    }

    /// Whether a queue has such things.
    fn are_on(self, queue: u16) -> bool {
        match self {
            Self::Requests => true,
            Self::PageRequests | Self::Accesses => queue >= QUEUE_FIRST_COMMAND,
            Self::Invalidations => queue == QUEUE_CONTROL,
        }
    }
}

/// Why a fault cannot be set.
#[derive(Debug, thiserror::Error)]
pub enum SetError {
    /// It makes no sense.
    #[error(transparent)]
    Fault(#[from] FaultError),
    /// There is no such queue, or none that has completions.
    #[error("queue {0} has no completions; the control queue is 0, the first command queue 2")]
    Queue(u16),
    /// The queue has none of what the fault is about.
    #[error("'{kind}' happens on {}, not on queue {queue}", match kind {
        FaultKind::RefusePage | FaultKind::LateAccess => "command queues",
        _ => "the control queue",
    })]
    Elsewhere {
        /// The kind.
        kind: FaultKind,
        /// The queue.
        queue: u16,
    },
    /// There are enough.
    #[error("{FAULTS_MAX} faults are set; clear some first")]
    TooMany,
    /// It names pages that there are not.
    #[error("the device memory has the pages 0 to {}", .0 - 1)]
    Page(u64),
    /// There is not so much to fail.
    #[error("only {0} pages have not failed yet")]
    AllBad(u64),
}

impl Faults {
    /// None yet.
    pub fn new(device: Arc<Device>) -> Self {
        Self {
            is_active: AtomicBool::new(false),
            state: Mutex::default(),
            changed: Condvar::new(),
            device,
        }
    }

    /// Sets one more, from the next request on; its number. Memory fails at once, which the
    /// caller has the driver told of.
    pub fn set(&self, fault: Fault) -> Result<u64, SetError> {
        fault.check()?;
        let num_queues = usize::from(QUEUE_FIRST_COMMAND) + self.device.queues().len();
        match fault.queue {
            Some(queue) if queue == QUEUE_EVENT || usize::from(queue) >= num_queues => {
                return Err(SetError::Queue(queue));
            }
            Some(queue) if !Counted::of(fault.kind).are_on(queue) => {
                return Err(SetError::Elsewhere {
                    kind: fault.kind,
                    queue,
                });
            }
            _ => {}
        }
        let mut state = self.state();
        if state.active.len() >= FAULTS_MAX {
            return Err(SetError::TooMany);
        }
        let pages = match fault.kind {
            FaultKind::Poison => poison::carry_out(&fault, &self.device)?,
            _ => 0,
        };
        let id = state.next_id;
        state.next_id += 1;
        state.active.push(Active {
            id,
            fault,
            queues: BTreeMap::new(),
            pages,
        });
        self.is_active.store(true, Ordering::Relaxed);
        Ok(id)
    }

    /// Takes one away, or all; how many there were. What it holds up goes on.
    pub fn clear(&self, id: Option<u64>) -> u64 {
        let mut state = self.state();
        let before = state.active.len();
        let is_kept = |of: u64| id.is_some_and(|id| id != of);
        state.active.retain(|active| is_kept(active.id));
        for ahead in state.ahead.values_mut() {
            ahead.0.retain(|(of, ..)| is_kept(*of));
        }
        self.is_active
            .store(!state.active.is_empty(), Ordering::Relaxed);
        self.changed.notify_all();
        (before - state.active.len()) as u64
    }

    /// Those that are set, oldest first; used-up ones too.
    pub fn list(&self) -> Vec<FaultState> {
        let state = self.state();
        let list = state.active.iter().map(|active| FaultState {
            id: active.id,
            fault: active.fault.clone(),
            hits: active.all_hits(),
        });
        list.collect()
    }

    /// Whether the next request of a queue must wait. It must be there: this is where it is
    /// decided what will happen to it. `opcode` tells the number that it begins with, if it can
    /// be read; it is asked at most once for each request.
    pub fn look(&self, queue: u16, opcode: impl FnOnce() -> Option<u16>) -> bool {
        if !self.are_any() {
            return false;
        }
        self.state().decide(queue, opcode).is_stalled()
    }

    /// What happens to the request that is being taken off a queue, whose opcode is asked if
    /// nobody has looked at it before.
    pub fn take(&self, queue: u16, opcode: impl FnOnce() -> Option<u16>) -> Effects {
        if !self.are_any() {
            return Effects::default();
        }
        let mut state = self.state();
        state.decide(queue, opcode);
        state
            .ahead
            .remove(&queue)
            .map(Ahead::effects)
            .unwrap_or_default()
    }

    /// What the page request ends with that a command of a queue is about to make, if it is to be
    /// refused.
    pub fn refuse_page(&self, queue: u16) -> Option<Status> {
        let fault = self.strike(Counted::PageRequests, queue)?;
        Some(
            fault
                .status
                .map_or(Status::PAGE_ERROR, |number| Status(number.into())),
        )
    }

    /// How late the INVALIDATE is acknowledged that was just taken, if it is to be late.
    pub fn delay_invalidation(&self, queue: u16) -> Option<Duration> {
        let fault = self.strike(Counted::Invalidations, queue)?;
        Some(Duration::from_millis(fault.ms.unwrap_or_default()))
    }

    /// How late an access to memory of a process is that a command of a queue is about to make, if
    /// it is to be late.
    pub fn delay_access(&self, queue: u16) -> Option<Duration> {
        let fault = self.strike(Counted::Accesses, queue)?;
        Some(Duration::from_millis(fault.ms.unwrap_or_default()))
    }

    /// Counts something that is no request as such; the first fault that hits it.
    fn strike(&self, counted: Counted, queue: u16) -> Option<Fault> {
        if !self.are_any() {
            return None;
        }
        let mut state = self.state();
        let mut hit = None;
        for active in &mut state.active {
            if active.hits(counted, queue, None).is_some() {
                hit = hit.or(Some(active.fault.clone()));
            }
        }
        hit
    }

    /// Whether any is set.
    pub fn are_any(&self) -> bool {
        self.is_active.load(Ordering::Relaxed)
    }

    /// Whether a queue waits now.
    pub fn is_stalled(&self, queue: u16) -> bool {
        let state = self.state();
        state.ahead.get(&queue).is_some_and(Ahead::is_stalled)
    }

    /// Waits a little, or until faults are cleared.
    pub fn wait(&self) {
        let state = self.state();
        let waited = self.changed.wait_timeout(state, STALL_INTERVAL);
        drop(waited.unwrap_or_else(PoisonError::into_inner));
    }

    /// The rings are new: the requests that were decided about are gone.
    pub fn forget_requests(&self) {
        self.state().ahead.clear();
    }

    fn state(&self) -> MutexGuard<'_, State> {
        // Nothing panics while it is locked.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl State {
    /// Decides about the next request of a queue, unless that is done.
    fn decide(&mut self, queue: u16, opcode: impl FnOnce() -> Option<u16>) -> &Ahead {
        let active = &mut self.active;
        self.ahead.entry(queue).or_insert_with(|| {
            let number = match active.iter().any(|active| active.fault.opcode.is_some()) {
                true => opcode(),
                false => None,
            };
            let operation = number.map(|number| Operation::on_queue(queue, number));
            let mut ahead = Ahead::default();
            for active in active.iter_mut() {
                active.decide(queue, operation, &mut ahead);
            }
            ahead
        })
    }
}

impl Active {
    /// Everything that the fault has hit so far.
    fn all_hits(&self) -> u64 {
        self.pages + self.queues.values().map(|counts| counts.hits).sum::<u64>()
    }

    /// Has the fault take part in what happens to the next request of a queue.
    fn decide(&mut self, queue: u16, operation: Option<Operation>, ahead: &mut Ahead) {
        let Some(mut chance) = self.hits(Counted::Requests, queue, operation) else {
            return;
        };
        let fault = &self.fault;
        let consequence = match Effect::of(fault, &mut chance) {
            Some(effect) => Consequence::Effect(effect),
            // Not done to a request but to its queue.
            None => Consequence::Stall(
                fault
                    .ms
                    .map(|ms| Instant::now() + Duration::from_millis(ms)),
            ),
        };
        ahead.0.push((self.id, fault.kind, consequence));
    }

    /// Counts one more of those things on a queue; if the fault hits it, what is left to chance.
    fn hits(
        &mut self,
        counted: Counted,
        queue: u16,
        operation: Option<Operation>,
    ) -> Option<Chance> {
        let fault = &self.fault;
        let is_meant = match (fault.queue, fault.opcode) {
            _ if fault.kind == FaultKind::Poison => false,
            (Some(meant), _) if meant != queue => false,
            // An operation is on the queues that have it.
            (_, Some(_)) => operation == fault.opcode,
            (Some(_), None) => true,
            (None, None) => counted != Counted::Requests || queue >= QUEUE_FIRST_COMMAND,
        };
        if !is_meant || Counted::of(fault.kind) != counted {
            return None;
        }
        let counts = self.queues.entry(queue).or_default();
        counts.requests += 1;
        if counts.requests < fault.nth || (fault.count != 0 && counts.hits >= fault.count) {
            return None;
        }
        let mut chance = Chance::new(fault.seed, queue, counts.requests);
        if !chance.one_in(fault.every) {
            return None;
        }
        counts.hits += 1;
        Some(chance)
    }
}

impl Ahead {
    fn is_stalled(&self) -> bool {
        self.0.iter().any(|(_, _, consequence)| match consequence {
            Consequence::Stall(Some(end)) => Instant::now() < *end,
            Consequence::Stall(None) => true,
            Consequence::Effect(_) => false,
        })
    }

    fn effects(self) -> Effects {
        let mut effects = Effects::default();
        for (_, kind, consequence) in self.0 {
            effects.hits.push(kind);
            match consequence {
                Consequence::Stall(_) => {}
                Consequence::Effect(Effect::Refuse(status)) => effects.refusal = Some(status),
                Consequence::Effect(Effect::Leave(leave)) => effects.leave.push(leave),
            }
        }
        effects
    }
}
