// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a scenario works with: its seed, the devices, counts that all of its processes share, an
//! end, and calls of the driver that count what they do and check that it adds up.

use std::any::Any;
use std::io::ErrorKind;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, anyhow, ensure};
use cdm_guest_tools::device::{Device, Direction, Evicted, Migration, Options};
use cdm_guest_tools::memory::pattern;
use cdm_guest_tools::random::Random;
use cdm_guest_tools::range::AddressRange;

use crate::ballast::Ballast;
use crate::counts::{Count, Counts};
use crate::crew::Crew;
use crate::scenario::{Machine, Scenario};

/// How long a scenario goes on; never shorter than its least number of operations.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Length {
    /// For so many seconds.
    Seconds(u64),
    /// For so many operations.
    Rounds(u64),
}

/// What a scenario is given. All of its processes have the same one.
pub struct Stage {
    counts: Counts,
    machine: Machine,
    seed: u64,
    length: Length,
    /// Operations below which it is not over.
    operations: u64,
    /// Where its clock begins.
    origin: Instant,
    ballast: Ballast,
}

impl Stage {
    /// The stage of a scenario. Each scenario has random numbers of its own by the same seed.
    pub fn new(
        scenario: &Scenario,
        machine: Machine,
        seed: u64,
        length: Length,
        ballast: Ballast,
    ) -> Result<Self> {
        let name = crc32c::crc32c(scenario.name.as_bytes());
        let stage = Self {
            counts: Counts::new(machine.capabilities)?,
            machine,
            seed: pattern(seed, name as usize),
            length,
            operations: scenario.operations,
            origin: Instant::now(),
            ballast,
        };
        stage.start_clock();
        Ok(stage)
    }

    /// A number that depends on the scenario and on the seed of the run.
    pub fn seed(&self) -> u64 {
        self.seed
    }

    /// Random numbers of process or thread `index`.
    pub fn random(&self, index: usize) -> Random {
        Random::new(pattern(self.seed, index))
    }

    /// What is counted.
    pub fn counts(&self) -> &Counts {
        &self.counts
    }

    /// Adds to a count.
    pub fn add(&self, count: Count, number: u64) {
        self.counts.add(count, number);
    }

    /// What driver and kernel can do (`CDM_CAN_*`).
    pub fn capabilities(&self) -> u32 {
        self.machine.capabilities
    }

    /// Opens all devices; one that is used in another process must be opened there.
    pub fn devices(&self) -> Result<Vec<Device>> {
        Device::numbers()?
            .into_iter()
            .map(|number| Device::open(number).with_context(|| format!("device {number}")))
            .collect()
    }

    /// Whether the scenario has come to its end.
    pub fn is_over(&self) -> bool {
        if self.counts.is_stopped() {
            return true;
        }
        let operations = self.counts.get(Count::Operations);
        match self.length {
            Length::Seconds(_) => {
                operations >= self.operations
                    && self.origin.elapsed().as_millis() as u64 >= self.counts.deadline()
            }
            Length::Rounds(rounds) => operations >= rounds.max(self.operations),
        }
    }

    /// Counts an operation, unless the end has come.
    pub fn round(&self) -> bool {
        let goes_on = !self.is_over();
        if goes_on {
            self.counts.add(Count::Operations, 1);
        }
        goes_on
    }

    /// Who keeps the devices full.
    pub fn ballast(&self) -> &Ballast {
        &self.ballast
    }

    /// Lets the time stand still, for a scenario that has to prepare something first.
    pub fn hold_clock(&self) {
        self.counts.set_deadline(None);
    }

    /// Lets the time begin now.
    pub fn start_clock(&self) {
        if let Length::Seconds(seconds) = self.length {
            let end = self.origin.elapsed() + Duration::from_secs(seconds);
            self.counts.set_deadline(Some(end.as_millis() as u64));
        }
    }

    /// Seconds since the clock began, as the totals tell them.
    pub fn seconds(&self) -> u64 {
        let elapsed = self.origin.elapsed();
        match (self.length, self.counts.deadline()) {
            (Length::Rounds(_), _) => elapsed.as_secs(),
            // It never came to its beginning.
            (_, u64::MAX) => 0,
            (Length::Seconds(seconds), deadline) => {
                let begun =
                    Duration::from_millis(deadline).saturating_sub(Duration::from_secs(seconds));
                elapsed.saturating_sub(begun).as_secs()
            }
        }
    }

    /// Runs `body` in `count` processes at once, each with its index. The first that fails fails
    /// the scenario with its words, and the others come to their end.
    pub fn processes(&self, count: usize, body: impl Fn(usize) -> Result<()>) -> Result<()> {
        let mut crew = Crew::new(self);
        for index in 0..count {
            crew.start(&format!("process {index}"), || body(index))?;
        }
        crew.finish()
    }

    /// Runs `body` in `count` threads at once, as [`Self::processes`] does.
    pub fn threads(&self, count: usize, body: impl Fn(usize) -> Result<()> + Sync) -> Result<()> {
        thread::scope(|scope| {
            let threads: Vec<_> = (0..count)
                .map(|index| {
                    let body = &body;
                    scope.spawn(move || {
                        let result = caught(|| body(index));
                        result.inspect_err(|_| self.counts.stop())
                    })
                })
                .collect();
            // All of them are waited for, and the first failure is told.
            let mut first = Ok(());
            for (index, thread) in threads.into_iter().enumerate() {
                let result = thread.join().unwrap_or_else(|panic| Err(panicked(&*panic)));
                first = first.and(result.with_context(|| format!("thread {index}")));
            }
            first
        })
    }

    /// Moves a range of a process (0 is the caller), counts what moved and checks that the kernel's
    /// counts of it add up. A call that a signal cut short moved nothing that anybody knows of.
    pub fn migrate(
        &self,
        device: &Device,
        pid: i32,
        range: AddressRange,
        direction: Direction,
        options: Options,
    ) -> Result<Migration> {
        let migration = match device.migrate_with(pid, range, direction, options) {
            Ok(migration) => migration,
            Err(error) if error.kind() == ErrorKind::Interrupted => Migration::default(),
            Err(error) => {
                let what = format!("cannot move {range} of {pid} {direction:?}, {options:?}");
                return Err(error).with_context(|| what);
            }
        };
        self.add(
            match (pid, direction) {
                (0, Direction::ToDevice) => Count::ToDevice,
                (0, Direction::ToSystem) => Count::ToSystem,
                _ => Count::Foreign,
            },
            1,
        );
        self.count_moved(direction, options, &migration)?;
        Ok(migration)
    }

    /// Counts what a migration did, which must add up itself.
    pub fn count_moved(
        &self,
        direction: Direction,
        options: Options,
        migration: &Migration,
    ) -> Result<()> {
        ensure!(
            migration.adds_up(),
            "the counts of a migration do not add up: {migration:?}"
        );
        ensure!(
            !options.small || migration.large == 0,
            "2 MiB folios moved whole that should be taken apart: {migration:?}"
        );
        let moved = match direction {
            Direction::ToDevice => Count::PagesToDevice,
            Direction::ToSystem => Count::PagesToSystem,
        };
        for (count, number) in [
            (moved, migration.moved),
            (Count::Populate, u64::from(options.populate)),
            (Count::MakeRoom, u64::from(options.make_room)),
            (Count::Small, u64::from(options.small)),
            (Count::PagesLarge, migration.large),
            (Count::PagesNoRoom, migration.no_memory),
            (Count::PagesMadeRoom, migration.evicted),
            (Count::PagesHeld, migration.busy + migration.pinned),
        ] {
            self.add(count, number);
        }
        Ok(())
    }

    /// Brings pages out of a device by their frames or by age, and counts them.
    pub fn evict(&self, device: &Device, which: Evicted, pages_max: u64) -> Result<Migration> {
        let evicted = match device.evict(which, pages_max) {
            Ok(evicted) => evicted,
            Err(error) if error.kind() == ErrorKind::Interrupted => Migration::default(),
            Err(error) => return Err(error).with_context(|| format!("cannot evict {which:?}")),
        };
        ensure!(
            evicted.adds_up(),
            "the counts of an eviction do not add up: {evicted:?}"
        );
        for (count, number) in [
            (Count::Evict, 1),
            (Count::PagesEvicted, evicted.moved),
            (Count::PagesLarge, evicted.large),
            (Count::PagesHeld, evicted.busy + evicted.pinned),
        ] {
            self.add(count, number);
        }
        Ok(evicted)
    }
}

/// Some way to migrate.
pub fn any_options(random: &mut Random, direction: Direction) -> Options {
    Options {
        populate: random.one_in(3),
        // Only a device can be full.
        make_room: random.one_in(3) && direction == Direction::ToDevice,
        small: random.one_in(4),
    }
}

/// Runs `body`; a panic of it is an error.
pub fn caught(body: impl FnOnce() -> Result<()>) -> Result<()> {
    catch_unwind(AssertUnwindSafe(body)).unwrap_or_else(|panic| Err(panicked(&*panic)))
}

/// What a panic said, as an error.
fn panicked(panic: &(dyn Any + Send)) -> anyhow::Error {
    let text = match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text.as_str(),
        _ => "it does not say why",
    };
    anyhow!("panic: {text}")
}

#[cfg(test)]
pub mod tests {
    use super::*;
    use crate::scenario::Needs;
    use anyhow::bail;
    use cdm_guest_tools::uapi;

    /// A stage of a scenario that is there for a test.
    pub fn stage(length: Length) -> Stage {
        const SCENARIO: Scenario = Scenario {
            name: "test::only",
            property: "nothing",
            needs: Needs::DEVICE,
            alone: false,
            operations: 10,
            least: &[],
            body: |_| Ok(()),
        };
        let machine = Machine {
            capabilities: 0,
            devices: 1,
            memory_type: uapi::CDM_MEMORY_PUBLIC,
        };
        Stage::new(&SCENARIO, machine, 1, length, Ballast::new().unwrap()).unwrap()
    }

    fn rounds(stage: &Stage) -> u64 {
        while stage.round() {}
        stage.counts().get(Count::Operations)
    }

    #[test]
    fn scenario_ends_after_its_rounds_and_not_before_its_least() {
        assert_eq!(rounds(&stage(Length::Rounds(30))), 30);
        assert_eq!(rounds(&stage(Length::Rounds(3))), 10);
        assert_eq!(rounds(&stage(Length::Seconds(0))), 10);
    }

    #[test]
    fn held_clock_does_not_end_a_scenario() {
        let stage = stage(Length::Seconds(0));
        stage.hold_clock();
        stage.add(Count::Operations, 1000);
        assert!(!stage.is_over());
        stage.start_clock();
        assert!(stage.is_over());
    }

    #[test]
    fn failing_thread_stops_the_others_and_is_named() {
        let stage = stage(Length::Seconds(3600));
        let result = stage.threads(3, |index| match index {
            1 => panic!("seven"),
            _ => {
                while stage.round() {}
                Ok(())
            }
        });
        let error = format!("{:#}", result.unwrap_err());
        assert_eq!(error, "thread 1: panic: seven");
    }

    #[test]
    fn seeds_and_indices_give_sequences_of_their_own() {
        let stage = stage(Length::Rounds(1));
        let mut numbers: Vec<u64> = (0..100).map(|k| stage.random(k).number()).collect();
        numbers.sort_unstable();
        numbers.dedup();
        assert_eq!(numbers.len(), 100);
        assert_eq!(stage.random(7).number(), stage.random(7).number());
    }

    #[test]
    fn counts_that_do_not_add_up_fail() {
        let stage = stage(Length::Rounds(1));
        let migration = Migration {
            asked: 2,
            moved: 1,
            ..Migration::default()
        };
        let count = |options| stage.count_moved(Direction::ToDevice, options, &migration);
        assert!(count(Options::default()).is_err());
        let error = caught(|| bail!("said"));
        assert_eq!(error.unwrap_err().to_string(), "said");
    }
}
