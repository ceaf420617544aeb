// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Each allocation that a call to the driver makes fails once: the first, the second, the third
//! … until the call passes without. A failure must be a clean error and leave nothing behind, and
//! the next call must work.

use std::cell::Cell;
use std::fs::{self, File};
use std::io::{self, Write};
use std::os::fd::AsRawFd;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::batch::Command;
use cdm_guest_tools::device::{Bound, Device, Direction, Evicted, Hot, Migration, Options, Span};
use cdm_guest_tools::fail_nth::{self, Failures};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::module::Binding;
use cdm_guest_tools::uapi::{CDM_CAN_MOVE_HOT, CDM_CAN_MOVE_LARGE, cdm_query};
use cdm_protocol::Opcode;
use nix::errno::Errno;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::fixture::{Fixture, Test, move_patiently, skip};
use crate::isolate::Child;
use crate::unload::without_node;

crate::tests!("injected":
    open_fails_cleanly_at_each_allocation,
    mmap_of_a_node_is_refused_at_each_allocation,
    query_fails_cleanly_at_each_allocation,
    migration_to_the_device_fails_cleanly_at_each_allocation,
    migration_of_a_huge_page_fails_cleanly_at_each_allocation,
    migration_as_small_pages_fails_cleanly_at_each_allocation,
    migration_of_a_file_fails_cleanly_at_each_allocation,
    migration_that_faults_in_fails_cleanly_at_each_allocation,
    migration_of_another_process_fails_cleanly_at_each_allocation,
    migration_to_the_system_fails_cleanly_at_each_allocation,
    residency_fails_cleanly_at_each_allocation,
    eviction_by_frame_fails_cleanly_at_each_allocation,
    eviction_by_age_fails_cleanly_at_each_allocation,
    command_fails_cleanly_at_each_allocation,
    command_on_addresses_fails_cleanly_at_each_allocation,
    batch_fails_cleanly_at_each_allocation,
    batch_on_addresses_fails_cleanly_at_each_allocation,
    binding_fails_cleanly_at_each_allocation,
    end_of_a_binding_fails_at_no_allocation,
    wish_for_hot_memory_fails_cleanly_at_each_allocation,
    reset_fails_cleanly_at_each_allocation,
);

/// A group of its own: the driver allocates some hundred times when it takes a device, and each time
/// the device comes and goes.
pub const PROBE_TESTS: &[Test] = &[Test {
    group: "injected_probe",
    name: "probe_fails_cleanly_at_each_allocation",
    run: probe_fails_cleanly_at_each_allocation,
}];

/// More allocations than any call makes: one that never passes would go on for ever.
const NTH_MAX: u32 = 20_000;

/// Pages of the memory that calls are about.
const PAGES: usize = 24;

/// Arch code that maps device memory into the kernel's address space (phys_pmd_init() under
/// memremap_pages()) takes pages from here and does not look whether it got them: an upstream fault
/// that kills the guest.
const FATAL: &str = "alloc_low_pages";

/// What came of the failures of one call.
#[derive(Default)]
struct Score {
    /// Failures that ended the call with an error.
    refused: u32,
    /// Failures in spite of which it passed: it did without, or did less.
    survived: u32,
}

/// A call whose allocations fail, one after the other.
struct Trial<'a> {
    t: &'a Fixture,
    failures: Failures,
    /// Errors that a failed allocation may lead to.
    errors: &'static [Errno],
    /// Fewest failures without which nothing was tried.
    least: u32,
}

impl<'a> Trial<'a> {
    fn new(t: &'a Fixture, least: u32) -> Result<Self> {
        if !fail_nth::is_possible() {
            return skip("the kernel injects no failures of allocations");
        }
        Ok(Self {
            t,
            failures: Failures::prepare()?,
            errors: &[Errno::ENOMEM],
            least,
        })
    }

    /// Has each allocation of `call` fail. `before` makes what it is about, `after` expects that
    /// this is in order, and takes it away.
    fn run<S>(
        &self,
        before: impl Fn() -> Result<S>,
        call: impl Fn(&S) -> io::Result<()>,
        after: impl Fn(S) -> Result<()>,
    ) -> Result<()> {
        let free = self.t.free_pages()?;
        let mut score = Score::default();
        // What the first call of a kind allocates for good is there from now on.
        let warm = before()?;
        call(&warm).context("without a failure")?;
        after(warm)?;
        for nth in 1..NTH_MAX {
            let state = before()?;
            let (result, is_injected) = self.failures.inject(nth, || call(&state))?;
            match (result, is_injected) {
                (Ok(()), true) => score.survived += 1,
                (Ok(()), false) => {}
                (Err(error), true) if self.is_clean(&error) => score.refused += 1,
                (Err(error), _) => {
                    return Err(error).with_context(|| format!("allocation {nth} fails"));
                }
            }
            after(state).with_context(|| format!("after the failure of allocation {nth}"))?;
            if !is_injected {
                return self.finish(&score, nth - 1);
            }
            let next = || -> Result<()> {
                let state = before()?;
                call(&state)?;
                after(state)?;
                self.t.expect_free_pages(free)
            };
            next().with_context(|| format!("the call after the failure of allocation {nth}"))?;
        }
        bail!("it allocates more than {NTH_MAX} times")
    }

    fn is_clean(&self, error: &io::Error) -> bool {
        let errno = error.raw_os_error().map(Errno::from_raw);
        errno.is_some_and(|errno| self.errors.contains(&errno))
    }

    fn finish(&self, score: &Score, failures: u32) -> Result<()> {
        self.t.note(format!(
            "{failures} failures: {} ended the call, {} did not",
            score.refused, score.survived
        ));
        ensure!(
            failures >= self.least,
            "only {failures} allocations failed, not {}",
            self.least
        );
        Ok(())
    }
}

/// A call with nothing to prepare.
fn alone(trial: &Trial<'_>, call: impl Fn() -> io::Result<()>) -> Result<()> {
    trial.run(|| Ok(()), |()| call(), |()| Ok(()))
}

/// Small pages with the pattern of 1, in system memory.
fn small() -> Result<Mapping> {
    let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
    memory.advise(nix::sys::mman::MmapAdvise::MADV_NOHUGEPAGE)?;
    memory.fill_pattern(1);
    Ok(memory)
}

/// The same, in the device.
fn resident(t: &Fixture) -> Result<Mapping> {
    let memory = small()?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    Ok(memory)
}

/// Expects the pattern, wherever the pages are.
fn unchanged(memory: Mapping) -> Result<()> {
    memory.check_pattern(1)?;
    Ok(())
}

/// Expects that a migration accounts for each page once.
fn counted(migration: &Migration) -> io::Result<()> {
    match migration.adds_up() {
        true => Ok(()),
        false => Err(io::Error::other(format!(
            "the counts do not add up: {migration:?}"
        ))),
    }
}

fn migrate(
    t: &Fixture,
    memory: &Mapping,
    direction: Direction,
    options: Options,
) -> io::Result<()> {
    counted(
        &t.device
            .migrate_with(0, memory.range(), direction, options)?,
    )
}

fn open_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, 2)?;
    alone(&trial, || Device::open(0).map(drop))
}

fn mmap_of_a_node_is_refused_at_each_allocation(t: &Fixture) -> Result<()> {
    // Nothing can be mapped, so the kernel refuses before it allocates anything.
    let trial = Trial::new(t, 0)?;
    let refusals = Cell::new(0);
    alone(&trial, || {
        // SAFETY: where the kernel likes; what it would map would be used by nobody.
        let result = unsafe {
            libc::mmap(
                std::ptr::null_mut(),
                PAGE_BYTES,
                libc::PROT_READ,
                libc::MAP_SHARED,
                t.device.as_raw_fd(),
                0,
            )
        };
        if result != libc::MAP_FAILED {
            return Err(io::Error::other("a node can be mapped"));
        }
        let error = io::Error::last_os_error();
        // What it says to whoever has the memory for it.
        match error.raw_os_error() {
            Some(libc::ENODEV) => {
                refusals.set(refusals.get() + 1);
                Ok(())
            }
            _ => Err(error),
        }
    })?;
    ensure!(refusals.get() > 0, "it was refused by nobody");
    Ok(())
}

fn query_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    // It needs none.
    let trial = Trial::new(t, 0)?;
    alone(&trial, || t.device.query().map(drop))
}

fn to_device(t: &Fixture, least: u32, options: Options) -> Result<()> {
    let trial = Trial::new(t, least)?;
    trial.run(
        small,
        |memory| migrate(t, memory, Direction::ToDevice, options),
        unchanged,
    )
}

fn migration_to_the_device_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    to_device(t, 7, Options::default())
}

fn migration_of_a_huge_page_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, 7)?;
    if t.start.capabilities & CDM_CAN_MOVE_LARGE == 0 {
        return skip("huge pages do not move whole to this type of memory");
    }
    trial.run(
        || t.huge_memory(1, 1),
        |memory| migrate(t, memory, Direction::ToDevice, Options::default()),
        unchanged,
    )
}

fn migration_as_small_pages_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, 7)?;
    let options = Options {
        small: true,
        ..Options::default()
    };
    trial.run(
        || t.huge_memory(1, 1),
        |memory| migrate(t, memory, Direction::ToDevice, options),
        unchanged,
    )
}

fn migration_of_a_file_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    t.need_files()?;
    let trial = Trial::new(t, 7)?;
    trial.run(
        || {
            let file = File::from(memfd_create(c"injected", MFdFlags::empty())?);
            file.set_len((PAGES * PAGE_BYTES) as u64)?;
            let memory = Mapping::shared_file(&file, PAGES * PAGE_BYTES)?;
            memory.fill_pattern(1);
            Ok(memory)
        },
        |memory| migrate(t, memory, Direction::ToDevice, Options::default()),
        unchanged,
    )
}

fn migration_that_faults_in_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, 8)?;
    let options = Options {
        populate: true,
        make_room: true,
        ..Options::default()
    };
    trial.run(
        || Ok(Mapping::anonymous(PAGES * PAGE_BYTES)?),
        |memory| migrate(t, memory, Direction::ToDevice, options),
        |memory| Ok(memory.check_fill(0)?),
    )
}

fn migration_of_another_process_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, 7)?;
    let memory = small()?;
    let mut child = Child::spawn(|parent| {
        parent.meet()?;
        memory.check_pattern(1)?;
        Ok(())
    })?;
    child.wait_for_arrival()?;
    let pid = child.pid();
    trial.run(
        || Ok(()),
        |()| {
            let range = memory.range();
            counted(&t.device.migrate(pid, range, Direction::ToDevice)?)
        },
        |()| {
            let system = Direction::ToSystem;
            move_patiently(&t.device, pid, memory.range(), system)?;
            Ok(())
        },
    )?;
    child.release()?;
    child.finish()
}

fn migration_to_the_system_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, PAGES as u32)?;
    trial.run(
        || resident(t),
        |memory| migrate(t, memory, Direction::ToSystem, Options::default()),
        unchanged,
    )
}

fn residency_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, 3)?;
    let memory = resident(t)?;
    alone(&trial, || t.device.residency(0, memory.range()).map(drop))?;
    let map = Cell::new(None);
    alone(&trial, || {
        map.set(Some(t.device.places(0, memory.range())?));
        Ok(())
    })?;
    ensure!(map.take().is_some_and(|map| map.len() == PAGES), "no map");
    unchanged(memory)
}

fn eviction(t: &Fixture, which: Evicted, pages_max: u64) -> Result<()> {
    let trial = Trial::new(t, PAGES as u32)?;
    trial.run(
        || resident(t),
        |_| t.device.evict(which, pages_max).map(drop),
        unchanged,
    )
}

fn eviction_by_frame_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    eviction(t, Evicted::All, 0)
}

fn eviction_by_age_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    eviction(t, Evicted::Oldest, PAGES as u64)
}

/// Expects that the device has done it.
fn done(answer: io::Result<cdm_guest_tools::device::Answer>) -> io::Result<()> {
    answer?.ok().map(drop)
}

fn command_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, 10)?;
    // Half of it in the device, and half of it not.
    let both = || -> Result<(Mapping, Mapping)> {
        let (source, destination) = (resident(t)?, small()?);
        Ok((source, destination))
    };
    trial.run(
        both,
        |(source, destination)| {
            let (from, to) = (Span::all(source), Span::all(destination));
            done(t.device.copy((source, from), (destination, to)))
        },
        |(source, destination)| {
            unchanged(source)?;
            unchanged(destination)
        },
    )
}

fn command_on_addresses_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, 4)?;
    let bound = Bound::open(0)?;
    trial.run(
        small,
        |memory| done(bound.copy((memory, Span::all(memory)), (memory, Span::all(memory)))),
        unchanged,
    )
}

/// Many commands on many pieces of memory in one call.
fn batch(device: &Device, memory: &Mapping) -> io::Result<()> {
    let page = |index: usize| Span {
        offset: index * PAGE_BYTES,
        bytes: PAGE_BYTES,
    };
    let commands = (0..PAGES / 2)
        .map(|index| {
            Command::new(Opcode::COPY)
                .source(memory, page(2 * index))?
                .source(memory, page(2 * index + 1))?
                .destination(memory, page(2 * index))?
                .destination(memory, page(2 * index + 1))
        })
        .collect::<io::Result<Vec<_>>>()?;
    device.batch(&commands, false)?.ok().map(drop)
}

fn batch_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, 80)?;
    trial.run(|| resident(t), |memory| batch(&t.device, memory), unchanged)
}

fn batch_on_addresses_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, 40)?;
    let bound = Bound::open(0)?;
    trial.run(small, |memory| batch(&bound, memory), unchanged)
}

fn binding_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, 10)?;
    trial.run(
        || Ok(Cell::new(Some(Device::open(0)?))),
        |device| {
            let Some(open) = device.take() else {
                return Err(io::Error::other("it was bound before"));
            };
            // Closing it is part of the call, and ends a binding.
            open.bind()?.nop()?.ok().map(drop)
        },
        |_| Ok(()),
    )
}

fn end_of_a_binding_fails_at_no_allocation(t: &Fixture) -> Result<()> {
    let mut trial = Trial::new(t, 0)?;
    // There is no way to fail: a process that ends must be able to end it.
    trial.errors = &[];
    trial.run(|| Ok(Bound::open(0)?), Bound::unbind, |_| Ok(()))
}

fn wish_for_hot_memory_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, 5)?;
    if t.start.capabilities & CDM_CAN_MOVE_HOT == 0 {
        return skip("the device does not count what it uses");
    }
    let wish = Hot {
        threshold: 1000,
        pages_per_second: 1,
        pages_burst: 1,
        make_room: false,
    };
    trial.run(
        || Ok(Bound::open(0)?),
        |bound| {
            bound.move_hot(wish)?;
            bound.hot_counters()?;
            bound.leave_hot()
        },
        |_| Ok(()),
    )
}

fn reset_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let trial = Trial::new(t, 0)?;
    trial.run(
        || resident(t),
        |_| t.device.reset(),
        |memory| {
            t.device.nop()?.ok()?;
            unchanged(memory)
        },
    )
}

/// How often the device is looked at after a failure; in between, what the driver comes to when the
/// next allocation fails tells that it has got as far again.
const LOOK_EVERY: u32 = 16;

/// The driver takes the device, and every allocation of that fails once.
fn probe_fails_cleanly_at_each_allocation(t: &Fixture) -> Result<()> {
    let mut trial = Trial::new(t, 100)?;
    if !trial.failures.spare_function(FATAL)? {
        t.note(format!(
            "this kernel cannot spare {FATAL}(): allocations of pages succeed"
        ));
        trial.failures.spare_pages()?;
    }
    let binding = Binding::of(0)?;
    let driver = binding.driver();
    let query = t.device.query()?;
    let device = Binder {
        bind: File::options().write(true).open(driver.join("bind"))?,
        unbind: File::options().write(true).open(driver.join("unbind"))?,
        name: binding.name().to_owned(),
    };
    without_node(t, || {
        device.unbind()?;
        let score = fail_each_of_probe(&trial, &device, &query);
        if score.is_err() && !fs::exists("/dev/cdm0")? {
            // For the tests behind this one.
            device.bind().context("cannot bind the driver again")?;
        }
        let score = score?;
        trial.finish(&score, score.refused + score.survived)
    })
}

/// The driver's files to take a device and to let go of it.
struct Binder {
    bind: File,
    unbind: File,
    name: String,
}

impl Binder {
    fn bind(&self) -> io::Result<()> {
        (&self.bind).write_all(self.name.as_bytes())
    }

    fn unbind(&self) -> io::Result<()> {
        (&self.unbind).write_all(self.name.as_bytes())
    }
}

/// Begins and ends without and with the driver on the device.
fn fail_each_of_probe(trial: &Trial<'_>, device: &Binder, query: &cdm_query) -> Result<Score> {
    let mut score = Score::default();
    for nth in 1..NTH_MAX {
        let (bound, is_injected) = trial.failures.inject(nth, || device.bind())?;
        match (&bound, is_injected) {
            (Ok(()), true) => score.survived += 1,
            (Ok(()), false) => {
                works(query)?;
                return Ok(score);
            }
            (Err(error), true) if trial.is_clean(error) => score.refused += 1,
            (Err(error), _) => bail!("allocation {nth} fails: {error}"),
        }
        let context = || format!("after the failure of allocation {nth}");
        match bound {
            // What it did without must not be needed.
            Ok(()) => works(query).with_context(context)?,
            Err(_) if nth.is_multiple_of(LOOK_EVERY) => {
                device.bind().with_context(context)?;
                works(query).with_context(context)?;
            }
            Err(_) => {
                ensure!(
                    !fs::exists("/dev/cdm0")?,
                    "/dev/cdm0 is there {}",
                    context()
                );
                continue;
            }
        }
        device.unbind().with_context(context)?;
    }
    bail!("it allocates more than {NTH_MAX} times")
}

/// Expects the device as it was before, and that pages move into it.
fn works(before: &cdm_query) -> Result<()> {
    let device = Device::open(0)?;
    let query = device.query()?;
    ensure!(
        (query.bytes_total, query.bytes_free) == (before.bytes_total, before.bytes_free),
        "{} of {} bytes are free, and {} of {} were",
        query.bytes_free,
        query.bytes_total,
        before.bytes_free,
        before.bytes_total
    );
    let memory = small()?;
    let (migration, _) = move_patiently(&device, 0, memory.range(), Direction::ToDevice)?;
    ensure!(migration.moved == PAGES as u64, "{migration:?}");
    unchanged(memory)
}
