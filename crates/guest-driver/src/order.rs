// SPDX-License-Identifier: GPL-2.0-only

//! Which commands of a batch may be given to the device next. Pure logic.
//!
//! A command keeps its place between those before it and those behind it, or it is unordered,
//! and then only its place between those that are not. Where all of a batch are in one queue the
//! device sees to that, once it has them in their order. Otherwise the driver does, and gives
//! the device what has its turn only when what it has to wait for is done.
//!
//! A [`Turn`] is one walk over a batch, from the first command to the last.

/// Who keeps the commands in order.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Keeper {
    /// The device, among those that it has.
    Device,
    /// The driver, which holds back what must wait.
    Driver,
}

/// How far a command has come.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Progress {
    /// The device has nothing of it.
    Waiting,
    /// The device has a part of it, behind which another one will have to come.
    InPart,
    /// The device is done with a part of it, and the next one can come.
    BetweenParts,
    /// The device has all that is left of it.
    Given,
    /// It has come to its end.
    Done {
        /// As it should.
        is_ok: bool,
    },
}

/// A walk over a batch.
#[derive(Debug)]
pub struct Turn {
    keeper: Keeper,
    stops: bool,
    /// A command was passed that ordered ones must wait for.
    has_open: bool,
    /// One was passed that all must wait for.
    has_open_ordered: bool,
    /// One was passed that has failed.
    has_failed: bool,
}

impl Turn {
    /// At the first command; with `stops`, none is begun behind one that has failed.
    pub fn new(keeper: Keeper, stops: bool) -> Self {
        Self {
            keeper,
            stops,
            has_open: false,
            has_open_ordered: false,
            has_failed: false,
        }
    }

    /// Whether the device may be given the next part of this command, the first that was not
    /// passed yet.
    pub fn may_give(&self, is_ordered: bool, progress: Progress) -> bool {
        let is_free = !(self.has_open_ordered || is_ordered && self.has_open);
        match progress {
            Progress::Waiting => is_free && !(self.stops && self.has_failed),
            Progress::BetweenParts => is_free,
            Progress::InPart | Progress::Given | Progress::Done { .. } => false,
        }
    }

    /// Passes the command, which has come so far by now.
    pub fn pass(&mut self, is_ordered: bool, progress: Progress) {
        let is_open = match progress {
            Progress::Waiting | Progress::InPart | Progress::BetweenParts => true,
            Progress::Given => self.keeper == Keeper::Driver,
            Progress::Done { .. } => false,
        };
        self.has_open |= is_open;
        self.has_open_ordered |= is_open && is_ordered;
        self.has_failed |= progress == Progress::Done { is_ok: false };
    }

    /// Whether nothing behind here may be given, whatever it is.
    pub fn is_over(&self) -> bool {
        self.has_open_ordered
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A command of a batch, and what became of it.
    #[derive(Clone, Debug)]
    struct Command {
        is_ordered: bool,
        /// Parts that the device was not given yet.
        parts: u32,
        fails: bool,
        /// The device has a part of it.
        is_lent: bool,
        /// When the device began and ended it.
        begun: Option<u32>,
        ended: Option<u32>,
    }

    impl Command {
        fn progress(&self) -> Progress {
            match (self.is_lent, self.parts, self.ended) {
                (_, _, Some(_)) => Progress::Done { is_ok: !self.fails },
                (true, 0, None) => Progress::Given,
                (true, _, None) => Progress::InPart,
                (false, _, None) if self.begun.is_none() => Progress::Waiting,
                (false, _, None) => Progress::BetweenParts,
            }
        }
    }

    /// A device that takes what it was given in any order that the queue's rules allow.
    struct Device {
        keeper: Keeper,
        /// Places of commands, as they were made available.
        queue: Vec<usize>,
        room: usize,
        clock: u32,
    }

    impl Device {
        /// Ends one command: the first that may run, or another one that may run beside it.
        fn run(&mut self, batch: &mut [Command], choice: usize) {
            let is_ordered = |at: usize| self.keeper == Keeper::Device && batch[at].is_ordered;
            let mut able = Vec::new();
            for (place, &at) in self.queue.iter().enumerate() {
                if place == 0 || !is_ordered(at) {
                    able.push(place);
                }
                if is_ordered(at) {
                    break;
                }
            }
            if able.is_empty() {
                return;
            }
            let at = self.queue.remove(able[choice % able.len()]);
            let command = &mut batch[at];
            command.is_lent = false;
            if command.parts == 0 || command.fails {
                command.parts = 0;
                self.clock += 1;
                command.ended = Some(self.clock);
            }
        }
    }

    /// Takes a batch through the device.
    fn play(batch: &mut [Command], device: &mut Device, stops: bool, choices: &[usize]) {
        for choice in choices.iter().cycle().take(20_000) {
            let mut turn = Turn::new(device.keeper, stops);
            for (at, command) in batch.iter_mut().enumerate() {
                let is_full = device.queue.len() == device.room;
                if !is_full && turn.may_give(command.is_ordered, command.progress()) {
                    command.parts -= 1;
                    command.is_lent = true;
                    device.queue.push(at);
                    if command.begun.is_none() {
                        device.clock += 1;
                        command.begun = Some(device.clock);
                    }
                }
                turn.pass(command.is_ordered, command.progress());
                if turn.is_over() {
                    break;
                }
            }
            if device.queue.is_empty() {
                return;
            }
            device.run(batch, *choice);
        }
        panic!("the batch does not end");
    }

    fn batch() -> impl Strategy<Value = Vec<Command>> {
        let command = (any::<bool>(), 1..4u32, prop::bool::weighted(0.1));
        let command = command.prop_map(|(is_ordered, parts, fails)| Command {
            is_ordered,
            parts,
            fails,
            is_lent: false,
            begun: None,
            ended: None,
        });
        prop::collection::vec(command, 1..40)
    }

    /// Ends of commands are in the order that the batch asks for.
    fn is_in_order(batch: &[Command]) -> bool {
        batch.iter().enumerate().all(|(at, first)| {
            batch[at + 1..].iter().all(|second| {
                let is_free = !first.is_ordered && !second.is_ordered;
                is_free || second.ended.is_none() || first.ended < second.ended
            })
        })
    }

    proptest! {
        #[test]
        fn every_command_ends_in_its_order_whoever_keeps_it(
            mut batch in batch(),
            by_driver in any::<bool>(),
            room in 1..8usize,
            choices in prop::collection::vec(any::<usize>(), 1..50),
        ) {
            let keeper = if by_driver { Keeper::Driver } else { Keeper::Device };
            let mut device = Device { keeper, queue: Vec::new(), room, clock: 0 };
            play(&mut batch, &mut device, false, &choices);
            prop_assert!(batch.iter().all(|command| command.ended.is_some()));
            prop_assert!(is_in_order(&batch), "{batch:#?}");
        }

        #[test]
        fn nothing_that_has_to_wait_for_a_failed_command_begins_if_the_batch_stops(
            mut batch in batch(),
            room in 1..8usize,
            choices in prop::collection::vec(any::<usize>(), 1..50),
        ) {
            let keeper = Keeper::Driver;
            let mut device = Device { keeper, queue: Vec::new(), room, clock: 0 };
            play(&mut batch, &mut device, true, &choices);
            for (at, failed) in batch.iter().enumerate() {
                if !(failed.fails && failed.ended.is_some()) {
                    continue;
                }
                for later in &batch[at + 1..] {
                    let had_to_wait = failed.is_ordered || later.is_ordered;
                    prop_assert!(!had_to_wait || later.begun.is_none(), "{batch:#?}");
                    // What had begun before it was known goes on to its end.
                    prop_assert_eq!(later.begun.is_some(), later.ended.is_some());
                    prop_assert!(later.begun.is_none_or(|begun| Some(begun) < failed.ended));
                }
            }
            let has_failed = |at: usize| batch[..at].iter().any(|command| command.fails);
            for (at, command) in batch.iter().enumerate() {
                prop_assert!(command.ended.is_some() || has_failed(at), "{batch:#?}");
            }
        }
    }

    #[test]
    fn device_gets_a_whole_batch_at_once_and_the_driver_holds_back_what_must_wait() {
        let given = |keeper, orders: [bool; 6]| {
            let mut turn = Turn::new(keeper, false);
            orders
                .into_iter()
                .filter(|is_ordered| {
                    let may = turn.may_give(*is_ordered, Progress::Waiting);
                    let now = if may {
                        Progress::Given
                    } else {
                        Progress::Waiting
                    };
                    turn.pass(*is_ordered, now);
                    may
                })
                .count()
        };
        let orders = [false, false, true, true, false, true];
        assert_eq!(given(Keeper::Device, orders), 6);
        assert_eq!(given(Keeper::Driver, orders), 2);
        assert_eq!(given(Keeper::Driver, [true; 6]), 1);
        assert_eq!(given(Keeper::Driver, [false; 6]), 6);
    }
}
