// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Runs a test: one thread of this process for each thread of the test, which either runs
//! it or has the device run it, batch after batch.

use std::io;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering::Relaxed, Ordering::SeqCst};
use std::sync::{Barrier, Mutex, PoisonError};
use std::thread;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::accelerator::Code;
use cdm_guest_tools::device::{Answer, Device, Direction, Span};
use cdm_guest_tools::memory::Mapping;
use cdm_guest_tools::random::Random;
use cdm_guest_tools::range::AddressRange;
use cdm_guest_tools::uapi::CDM_CAN_BIND;
use cdm_protocol::FEATURE_PROGRAM;
use clap::ValueEnum;
use nix::sched::{CpuSet, sched_getaffinity, sched_setaffinity};
use nix::sys::mman::MmapAdvise;
use nix::unistd::Pid;

use crate::code::{self, program};
use crate::cpu;
use crate::layout::{INSTANCES, LINE_BYTES, Layout, WORD_BYTES};
use crate::shape::{Agent, Test};
use crate::tally::Tally;

/// Where the locations of a test are.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Place {
    /// In device memory
    Device,
    /// In system memory
    System,
    /// By turns: x in device memory, y in system memory, z in device memory
    Mixed,
}

impl Place {
    /// All of them.
    pub const ALL: [Self; 3] = [Self::Device, Self::System, Self::Mixed];

    /// As on the command line.
    pub fn name(self) -> &'static str {
        match self {
            Self::Device => "device",
            Self::System => "system",
            Self::Mixed => "mixed",
        }
    }

    /// Whether a location is in the device.
    fn is_in_device(self, location: usize) -> bool {
        match self {
            Self::Device => true,
            Self::System => false,
            Self::Mixed => location.is_multiple_of(2),
        }
    }
}

/// What runs programs, and has memory of its own.
pub trait Accelerator: Sync {
    /// Programs that run at the same time if they come from different CPUs; those of two CPUs whose
    /// numbers differ by a multiple of it do not.
    fn queues(&self) -> Result<usize>;
    /// Runs a program on all of a memory.
    fn run(&self, code: &Code, memory: &Mapping, limit: u64) -> io::Result<Answer>;
    /// Moves memory of this process into the device's.
    fn take_in(&self, range: AddressRange) -> Result<()>;
    /// Pages of it that are in the device's memory.
    fn pages_inside(&self, range: AddressRange) -> Result<u64>;
}

/// How often a migration is repeated for pages that are busy for a moment.
const MOVE_RETRIES: u32 = 20;

impl Accelerator for Device {
    fn queues(&self) -> Result<usize> {
        let query = self.query()?;
        ensure!(
            query.device_features & FEATURE_PROGRAM != 0,
            "the device carries out no programs"
        );
        // The last one is for commands on addresses of processes.
        let is_taken = query.capabilities & CDM_CAN_BIND != 0;
        Ok(usize::from(query.num_command_queues) - usize::from(is_taken))
    }

    fn run(&self, code: &Code, memory: &Mapping, limit: u64) -> io::Result<Answer> {
        self.program(code, (memory, Span::all(memory)), 0, limit)
    }

    fn take_in(&self, range: AddressRange) -> Result<()> {
        let mut last = None;
        for _ in 0..MOVE_RETRIES {
            let migration = self.migrate(0, range, Direction::ToDevice)?;
            if migration.moved + migration.there == range.pages() {
                return Ok(());
            }
            last = Some(migration);
            thread::yield_now();
        }
        bail!("not all pages move to the device: {last:?}")
    }

    fn pages_inside(&self, range: AddressRange) -> Result<u64> {
        Ok(self.residency(0, range)?.this_device)
    }
}

/// One test with one casting in one place.
#[derive(Clone, Copy)]
pub struct Run {
    pub test: &'static Test,
    pub casting: &'static [Agent],
    pub place: Place,
}

/// The memory of a run.
struct Ground {
    memory: Mapping,
    layout: Layout,
}

impl Ground {
    fn new(run: Run, accelerator: &dyn Accelerator) -> Result<Self> {
        let layout = Layout::new(run.test);
        let memory = Mapping::anonymous(layout.bytes())?;
        // Locations lie side by side in two kinds of memory.
        memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
        memory.fill(0);
        let ground = Self { memory, layout };
        if run.place == Place::Device {
            accelerator.take_in(ground.memory.range())?;
        } else {
            for location in 0..ground.layout.locations() {
                if run.place.is_in_device(location) {
                    accelerator.take_in(ground.range_of(location))?;
                }
            }
        }
        ground.check(run, accelerator)?;
        Ok(ground)
    }

    fn range_of(&self, location: usize) -> AddressRange {
        let pages = self.layout.pages_of(location);
        self.memory.page_range(pages.start, pages.len())
    }

    /// Whether every location is where it should be.
    fn check(&self, run: Run, accelerator: &dyn Accelerator) -> Result<()> {
        for location in 0..self.layout.locations() {
            let range = self.range_of(location);
            let expected = match run.place.is_in_device(location) {
                true => range.pages(),
                false => 0,
            };
            let inside = accelerator.pages_inside(range)?;
            ensure!(
                inside == expected,
                "{inside} pages of location {location} are in the device, not {expected}"
            );
        }
        Ok(())
    }

    /// Makes everything as it is before a batch.
    fn reset(&self, run: Run, random: &mut Random) {
        let store = |offset: usize, value: u64| self.memory.word(offset).store(value, Relaxed);
        for (number, thread) in run.test.threads.iter().enumerate() {
            store(self.layout.meeting(number), 0);
            // What was not written is no value that anybody could have read.
            for read in 0..thread.reads() {
                let column = self.layout.reads(number, read);
                (0..INSTANCES).for_each(|at| store(column + at * WORD_BYTES, u64::MAX));
            }
            let shift_max = match run.casting[number] {
                Agent::Cpu => cpu::PAUSE_SHIFT_MAX,
                Agent::Device => code::PAUSE_SHIFT_MAX,
            };
            // How far apart threads begin is another range in each batch.
            let longest = 1 << random.below(shift_max + 1);
            let column = self.layout.pauses(number);
            for at in 0..INSTANCES {
                store(column + at * WORD_BYTES, random.below(longest) as u64);
            }
        }
        for location in 0..self.layout.locations() {
            let first = self.layout.location(location);
            (0..INSTANCES).for_each(|at| store(first + at * LINE_BYTES, 0));
        }
    }

    /// Counts the outcomes of a batch.
    fn count(&self, test: &Test, tally: &mut Tally) {
        let load = |offset: usize| self.memory.word(offset).load(Relaxed);
        let mut outcome = Vec::new();
        for at in 0..INSTANCES {
            outcome.clear();
            for (number, thread) in test.threads.iter().enumerate() {
                let reads = 0..thread.reads();
                let columns = reads.map(|read| self.layout.reads(number, read));
                outcome.extend(columns.map(|column| load(column + at * WORD_BYTES)));
            }
            let ends = test.ends.iter();
            outcome.extend(ends.map(|&end| load(self.layout.location(end) + at * LINE_BYTES)));
            tally.add(&outcome);
        }
    }
}

/// What the threads of a run share.
struct Stage<'a> {
    run: Run,
    ground: &'a Ground,
    accelerator: &'a dyn Accelerator,
    /// All threads and who conducts them meet here before and after each batch.
    barrier: Barrier,
    is_over: AtomicBool,
    is_given_up: AtomicBool,
    failure: Mutex<Option<anyhow::Error>>,
    missed: AtomicU64,
}

impl Stage<'_> {
    fn fail(&self, error: anyhow::Error) {
        let mut failure = self.failure.lock().unwrap_or_else(PoisonError::into_inner);
        failure.get_or_insert(error);
        self.is_given_up.store(true, SeqCst);
    }

    /// A thread's part in all batches.
    fn act(&self, number: usize, cpu: usize) {
        if let Err(error) = pin(cpu) {
            self.fail(error);
        }
        let thread = &self.run.test.threads[number];
        let layout = &self.ground.layout;
        let (code, limit) = program(thread, number, layout);
        loop {
            self.barrier.wait();
            if self.is_over.load(SeqCst) {
                return;
            }
            let missed = match self.run.casting[number] {
                Agent::Cpu => {
                    let memory = &self.ground.memory;
                    cpu::run(thread, number, layout, memory, &self.is_given_up).unwrap_or(0)
                }
                Agent::Device => {
                    let answer = self.accelerator.run(&code, &self.ground.memory, limit);
                    match answer.and_then(Answer::ok) {
                        Ok(missed) => missed,
                        Err(error) => {
                            let said = format!("the program of thread {number}");
                            self.fail(anyhow::Error::new(error).context(said));
                            0
                        }
                    }
                }
            };
            self.missed.fetch_add(missed, SeqCst);
            self.barrier.wait();
        }
    }

    /// Runs batches until `is_enough` says so.
    fn conduct(
        &self,
        random: &mut Random,
        is_enough: &mut dyn FnMut(&Tally) -> bool,
    ) -> Result<Tally> {
        let mut tally = Tally::new(self.run.test);
        while !is_enough(&tally) {
            self.ground.reset(self.run, random);
            self.barrier.wait();
            self.barrier.wait();
            let failure = self.failure.lock();
            if let Some(error) = failure.unwrap_or_else(PoisonError::into_inner).take() {
                return Err(error);
            }
            self.ground.count(self.run.test, &mut tally);
        }
        tally.missed = self.missed.load(SeqCst);
        self.ground.check(self.run, self.accelerator)?;
        Ok(tally)
    }
}

/// Runs a test, batch after batch, until `is_enough` says so.
pub fn run(
    run: Run,
    accelerator: &dyn Accelerator,
    random: &mut Random,
    is_enough: &mut dyn FnMut(&Tally) -> bool,
) -> Result<Tally> {
    let cpus = cpus_of(run.casting, &allowed_cpus()?, accelerator.queues()?)?;
    let ground = Ground::new(run, accelerator).context("cannot have memory for it")?;
    let stage = Stage {
        run,
        ground: &ground,
        accelerator,
        barrier: Barrier::new(run.casting.len() + 1),
        is_over: AtomicBool::new(false),
        is_given_up: AtomicBool::new(false),
        failure: Mutex::new(None),
        missed: AtomicU64::new(0),
    };
    thread::scope(|scope| {
        for (number, &cpu) in cpus.iter().enumerate() {
            let stage = &stage;
            scope.spawn(move || stage.act(number, cpu));
        }
        let tally = stage.conduct(random, is_enough);
        stage.is_over.store(true, SeqCst);
        stage.barrier.wait();
        tally
    })
}

/// CPUs that this process may use.
fn allowed_cpus() -> Result<Vec<usize>> {
    let set = sched_getaffinity(Pid::from_raw(0)).context("cannot ask for the CPUs")?;
    let is_allowed = |cpu: &usize| set.is_set(*cpu).unwrap_or(false);
    Ok((0..CpuSet::count()).filter(is_allowed).collect())
}

/// Keeps the calling thread on a CPU.
fn pin(cpu: usize) -> Result<()> {
    let mut set = CpuSet::new();
    set.set(cpu)?;
    sched_setaffinity(Pid::from_raw(0), &set).with_context(|| format!("cannot stay on CPU {cpu}"))
}

/// A CPU for each thread. Those that wait for the device want queues of their own, since a queue
/// runs one program after another; those that run on a CPU want one that no other thread uses.
fn cpus_of(casting: &[Agent], allowed: &[usize], queues: usize) -> Result<Vec<usize>> {
    let mut free = allowed.to_vec();
    let mut taken_queues = Vec::new();
    let mut cpus = vec![0; casting.len()];
    let threads_of = |agent: Agent| {
        let is_of = move |(number, known): (usize, &Agent)| (*known == agent).then_some(number);
        casting.iter().enumerate().filter_map(is_of)
    };
    for number in threads_of(Agent::Device) {
        let queue = |cpu: usize| cpu % queues.max(1);
        let place = free
            .iter()
            .position(|&cpu| !taken_queues.contains(&queue(cpu)));
        let Some(place) = place else {
            bail!(
                "{} programs at a time want as many command queues, and CPUs that use them; there \
                 are {queues} queues and {} CPUs",
                threads_of(Agent::Device).count(),
                allowed.len()
            );
        };
        cpus[number] = free.remove(place);
        taken_queues.push(queue(cpus[number]));
    }
    for number in threads_of(Agent::Cpu) {
        if free.is_empty() {
            free = allowed.to_vec();
        }
        cpus[number] = free.pop().context("there is no CPU")?;
    }
    Ok(cpus)
}

#[cfg(test)]
mod tests {
    use super::*;
    use Agent::{Cpu as C, Device as D};

    #[test]
    fn programs_get_queues_of_their_own_and_cpu_threads_cpus_of_their_own() {
        assert_eq!(cpus_of(&[C, D], &[0, 1], 2).unwrap(), [1, 0]);
        assert_eq!(cpus_of(&[D, D], &[0, 2, 3], 2).unwrap(), [0, 3]);
        let cpus = cpus_of(&[C, C, D, D], &[0, 1, 2, 3], 4).unwrap();
        assert_eq!(cpus, [3, 2, 0, 1]);
        // Too few CPUs are shared by one program and one thread each.
        let cpus = cpus_of(&[C, C, D, D], &[0, 1], 2).unwrap();
        assert_eq!((cpus[2..].to_vec(), cpus[0] != cpus[1]), (vec![0, 1], true));
    }

    #[test]
    fn programs_that_would_wait_for_each_other_are_refused() {
        let error = cpus_of(&[D, D], &[0, 1], 1).unwrap_err().to_string();
        assert!(error.contains("1 queues"), "{error}");
        assert!(cpus_of(&[D, D], &[0, 2], 2).is_err());
    }
}
