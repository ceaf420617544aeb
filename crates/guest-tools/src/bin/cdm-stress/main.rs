// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A stress of everything at once: processes and threads with memory of all
//! sizes and kinds, which they write, fork, cut, pin and give to the device
//! while others move it.

mod ballast;
mod contents;
mod counts;
mod directory;
mod mover;
mod pin;
mod steps;
mod worker;

use std::any::Any;
use std::fs::{self, File};
use std::io::Write;
use std::process::ExitCode;
use std::sync::atomic::{AtomicBool, Ordering::Relaxed};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::{Device, memory_type_name};
use cdm_guest_tools::invariants::Snapshot;
use cdm_guest_tools::memory::HUGE_PAGE_BYTES;
use clap::Parser;
use nix::sys::signal::{SigHandler, Signal, kill, signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};
use nix::unistd::{ForkResult, Pid, fork};

use counts::{Count, Counts};
use directory::Directory;
use worker::{COMMON_BYTES, End, Worker};

const EXAMPLES: &str = "\
Examples:
  cdm-stress --seconds 60
  cdm-stress --operations 5000 --seed 7 --processes 1 --threads 1

Exit status: 0 all held, 1 something did not, or too little was done, 2 could not run.";

/// Stress memory in the device and out of it, and check every byte
#[derive(Parser)]
#[command(version, after_long_help = EXAMPLES)]
struct Cli {
    /// End after NUM seconds
    #[arg(long, value_name = "NUM", required_unless_present = "operations")]
    seconds: Option<u64>,

    /// End after NUM operations
    #[arg(long, value_name = "NUM", conflicts_with = "seconds")]
    operations: Option<u64>,

    /// Start the random sequences from NUM
    #[arg(long, value_name = "NUM", default_value_t = 1)]
    seed: u64,

    /// Run NUM processes
    #[arg(long, value_name = "NUM", default_value_t = 3, value_parser = clap::value_parser!(u64).range(1..=16))]
    processes: u64,

    /// Run NUM threads in each process, besides one that moves the memory of others
    #[arg(long, value_name = "NUM", default_value_t = 2, value_parser = clap::value_parser!(u64).range(1..=8))]
    threads: u64,

    /// Say every NUM seconds how far it is
    #[arg(long, value_name = "NUM", default_value_t = 10)]
    report_every: u64,
}

/// Below so many operations nothing was tested.
const OPERATIONS_MIN: u64 = 100;
/// How long a process may take from the end of the run to its own: it compares all of its memory
/// once more, on a machine that may be slow and not its own.
const END_LIMIT: Duration = Duration::from_secs(300);
/// How long filling the devices may take before the others start all the same.
const FILL_LIMIT: Duration = Duration::from_secs(240);
const POLL: Duration = Duration::from_millis(20);
/// Exit status of a process that failed and said why; a panic has another one.
const FAILED: i32 = 1;

const SHMEM_HUGE: &str = "/sys/kernel/mm/transparent_hugepage/shmem_enabled";

static SIGNALLED: AtomicBool = AtomicBool::new(false);

extern "C" fn on_signal(_signal: libc::c_int) {
    SIGNALLED.store(true, Relaxed);
}

fn main() -> ExitCode {
    let cli = Cli::parse();
    match run(&cli) {
        Ok(Verdict::Good) => {
            println!("result ok");
            ExitCode::SUCCESS
        }
        Ok(Verdict::Bad(why)) => {
            println!("result failed: {}", why.replace('\n', " "));
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("cdm-stress: {error:#}");
            ExitCode::from(2)
        }
    }
}

/// How a run ended that could be had.
enum Verdict {
    Good,
    Bad(String),
}

/// What the processes share.
struct Shared {
    counts: Counts,
    directory: Directory,
    common: File,
    end: End,
}

fn run(cli: &Cli) -> Result<Verdict> {
    let device = Device::open(0).context("cannot open /dev/cdm0: is the module loaded?")?;
    let query = device.query()?;
    let memory_type = memory_type_name(query.memory_type);
    drop(device);
    println!(
        "cdm-stress: seed {}, {} processes of {} threads, memory type {memory_type}, {} devices, {}",
        cli.seed,
        cli.processes,
        cli.threads,
        Device::numbers()?.len(),
        match (cli.seconds, cli.operations) {
            (Some(seconds), _) => format!("{seconds} s"),
            (None, operations) => format!("{} operations", operations.unwrap_or(0)),
        }
    );
    let handler = SigHandler::Handler(on_signal);
    for number in [Signal::SIGTERM, Signal::SIGINT] {
        // SAFETY: the handler stores to an atomic, which is allowed in a handler.
        unsafe { signal(number, handler) }.context("cannot handle signals")?;
    }
    let before = Snapshot::take()?;
    let was_huge = chosen(&fs::read_to_string(SHMEM_HUGE).context("no huge pages of files")?)?;
    fs::write(SHMEM_HUGE, "advise").context("cannot have huge pages of files")?;
    let verdict = stress(cli, query.capabilities);
    fs::write(SHMEM_HUGE, was_huge).context("cannot set back huge pages of files")?;
    let verdict = verdict?;
    if let Err(error) = before.compare() {
        return Ok(Verdict::Bad(match verdict {
            Verdict::Good => format!("left behind: {error:#}"),
            Verdict::Bad(why) => format!("{why}; left behind: {error:#}"),
        }));
    }
    Ok(verdict)
}

/// The word in brackets, which is the one in force.
fn chosen(text: &str) -> Result<String> {
    let (_, rest) = text.split_once('[').context("no word is in brackets")?;
    let (word, _) = rest.split_once(']').context("no word is in brackets")?;
    Ok(word.to_owned())
}

fn stress(cli: &Cli, capabilities: u32) -> Result<Verdict> {
    let origin = Instant::now();
    let workers = (cli.processes * cli.threads) as usize;
    let bytes = (workers * COMMON_BYTES).next_multiple_of(HUGE_PAGE_BYTES);
    let shared = Shared {
        counts: Counts::new(capabilities)?,
        directory: Directory::new()?,
        common: contents::memory_file(bytes)?,
        end: match (cli.seconds, cli.operations) {
            (Some(_), _) => End::At(origin),
            (None, operations) => End::After(operations.unwrap_or(0)),
        },
    };
    let mut processes = Vec::new();
    for number in Device::numbers()? {
        let name = format!("ballast of device {number}");
        let body = || ballast::run(cli.seed, &shared.counts, number, shared.end);
        processes.push(start(&shared, &name, body)?);
    }
    // A slow machine takes long to fill the devices, and only then is there something to fight for.
    while shared.counts.full() < processes.len() as u64
        && !shared.counts.is_stopped()
        && !SIGNALLED.load(Relaxed)
        && origin.elapsed() < FILL_LIMIT
    {
        thread::sleep(POLL);
    }
    let started = Instant::now();
    if let Some(seconds) = cli.seconds {
        let end = origin.elapsed() + Duration::from_secs(seconds);
        shared.counts.set_deadline(end.as_millis() as u64);
    }
    for number in 0..cli.processes {
        processes.push(start(&shared, &format!("process {number}"), || {
            process(cli, &shared, number)
        })?);
    }
    let failure = watch(cli, &shared, processes, started);
    report("total", &shared.counts, started);
    let below = shared.counts.below_minimum();
    for (name, found, least) in &below {
        println!("below minimum {name}: {found} < {least}");
    }
    let operations = shared.counts.get(Count::Operations);
    Ok(match failure {
        Some(why) => Verdict::Bad(why),
        None if operations < OPERATIONS_MIN && !SIGNALLED.load(Relaxed) => {
            Verdict::Bad(format!("only {operations} operations were done"))
        }
        None if !below.is_empty() && operations >= OPERATIONS_MIN => {
            Verdict::Bad("too little was done of some kinds".into())
        }
        None => Verdict::Good,
    })
}

/// Waits for all processes, reports meanwhile; why the run failed, if it did.
fn watch(cli: &Cli, shared: &Shared, processes: Vec<Pid>, started: Instant) -> Option<String> {
    let mut running = processes;
    let mut failure = None;
    let mut reported = started;
    let mut ending: Option<Instant> = None;
    while !running.is_empty() {
        running.retain(|pid| match waitpid(*pid, Some(WaitPidFlag::WNOHANG)) {
            Ok(WaitStatus::StillAlive) => true,
            Ok(WaitStatus::Exited(_, 0)) => false,
            other => {
                // The process itself said why, if it could.
                failure.get_or_insert(format!("process {pid} ended with {other:?}"));
                shared.counts.stop();
                false
            }
        });
        if SIGNALLED.load(Relaxed) {
            shared.counts.stop();
        }
        if ending.is_none() && shared.end.has_come(&shared.counts) {
            ending = Some(Instant::now());
        }
        if ending.is_some_and(|since| since.elapsed() > END_LIMIT) {
            failure.get_or_insert(format!(
                "{} processes did not come to their end in {} s",
                running.len(),
                END_LIMIT.as_secs()
            ));
            for pid in &running {
                // Whether they die of it is to be seen; they are not waited for any more.
                let _ = kill(*pid, Signal::SIGKILL);
            }
            break;
        }
        if reported.elapsed() >= Duration::from_secs(cli.report_every) {
            reported = Instant::now();
            progress(&shared.counts, started);
        }
        thread::sleep(POLL);
    }
    failure
}

fn progress(counts: &Counts, started: Instant) {
    let figures: Vec<String> = counts
        .all()
        .map(|(name, number)| format!("{name} {number}"))
        .collect();
    println!(
        "progress {} s, {}",
        started.elapsed().as_secs(),
        figures.join(", ")
    );
    // Whoever reads it through a pipe wants it now.
    let _ = std::io::stdout().flush();
}

fn report(word: &str, counts: &Counts, started: Instant) {
    println!("{word} seconds {}", started.elapsed().as_secs());
    for (name, number) in counts.all() {
        println!("{word} {name} {number}");
    }
}

/// Starts a process that does `body`; if that fails it says why, and all the others end.
fn start(shared: &Shared, name: &str, body: impl FnOnce() -> Result<()>) -> Result<Pid> {
    // SAFETY: this process has one thread, so no lock of another can be held in the child.
    let pid = match unsafe { fork() }.context("cannot fork")? {
        ForkResult::Parent { child } => child,
        ForkResult::Child => {
            let status = match body() {
                Ok(()) => 0,
                Err(error) => {
                    eprintln!("{name} failed: {error:#}");
                    shared.counts.stop();
                    FAILED
                }
            };
            // SAFETY: `_exit` takes any status and does not return.
            unsafe { libc::_exit(status) }
        }
    };
    Ok(pid)
}

/// What a process of the run does.
fn process(cli: &Cli, shared: &Shared, number: u64) -> Result<()> {
    let seed = |thread: u64| {
        let threads = cli.threads + 1;
        let first = cli.seed.wrapping_mul(cli.processes * threads);
        first.wrapping_add(number * threads + thread)
    };
    thread::scope(|scope| {
        let workers: Vec<_> = (0..cli.threads)
            .map(|thread| {
                let index = (number * cli.threads + thread) as usize;
                let seed = seed(thread);
                scope.spawn(move || work(shared, seed, index).inspect_err(|_| shared.counts.stop()))
            })
            .collect();
        let mover = seed(cli.threads);
        let moved = mover::run(mover, &shared.counts, &shared.directory, shared.end);
        for worker in workers {
            match worker.join() {
                Ok(result) => result?,
                Err(panic) => bail!("a worker panicked: {}", message(&*panic)),
            }
        }
        moved
    })
}

/// What a panic said.
fn message(panic: &(dyn Any + Send)) -> &str {
    match (panic.downcast_ref::<&str>(), panic.downcast_ref::<String>()) {
        (Some(text), _) => text,
        (_, Some(text)) => text,
        _ => "it does not say why",
    }
}

fn work(shared: &Shared, seed: u64, index: usize) -> Result<()> {
    let pages = COMMON_BYTES / cdm_guest_tools::memory::PAGE_BYTES;
    let own = index * pages..(index + 1) * pages;
    let mut worker = Worker::new(seed, &shared.counts, &shared.directory, &shared.common, own)?;
    ensure!(!worker.devices.is_empty(), "there is no device");
    worker
        .run(shared.end)
        .with_context(|| format!("worker {index}, seed {seed}"))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn arguments_are_defined_consistently() {
        Cli::command().debug_assert();
    }

    #[test]
    fn an_end_must_be_given() {
        assert!(Cli::try_parse_from(["cdm-stress"]).is_err());
        assert!(Cli::try_parse_from(["cdm-stress", "--seconds", "1"]).is_ok());
        assert!(
            Cli::try_parse_from(["cdm-stress", "--seconds", "1", "--operations", "1"]).is_err()
        );
    }

    #[test]
    fn panic_says_why() {
        let caught = |panics: fn()| std::panic::catch_unwind(panics).unwrap_err();
        assert_eq!(message(&*caught(|| panic!("plain"))), "plain");
        let made = || std::panic::panic_any(String::from("made"));
        assert_eq!(message(&*caught(made)), "made");
    }

    #[test]
    fn the_word_in_force_is_the_one_in_brackets() {
        assert_eq!(chosen("always [never] advise\n").unwrap(), "never");
        assert!(chosen("always never").is_err());
    }
}
