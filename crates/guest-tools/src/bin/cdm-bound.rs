// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Has the first device work on addresses of this process, step by step, for tests of devices
//! that fail at it. Its arguments are the steps, and each says how it went in one line:
//!
//! - `fill`: the device stores to memory that nobody has touched; what it says it did is looked at.
//! - `work`: from here on the device stores to each of [`PAGES`] pages, again and again.
//! - `unmap`: all of those pages but the first are given back to the kernel.
//! - `reuse`: fresh pages get contents, which nobody else may change.
//! - `unbind`: the device is to forget this process.
//! - `answer`: what the command ended with that `work` began.
//! - `wait`: nothing; somebody kills this process.

use std::env;
use std::io::{self, Write};
use std::process::ExitCode;
use std::sync::Arc;
use std::sync::atomic::Ordering::{Acquire, Relaxed};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::accelerator::Code;
use cdm_guest_tools::device::{Answer, Bound, Span};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::uapi::{CDM_COMMAND_SVA, CDM_IOCTL_COMMAND, cdm_command};
use cdm_protocol::{MemoryOrder, Opcode, PROGRAM_STEPS_MAX, Status};
use nix::sys::mman::MmapAdvise;

/// Pages that the device stores to while this process gives them up.
const PAGES: usize = 64;
/// Memory of `fill`: more than the device asks for at a time.
const FILL_BYTES: usize = 8 << 20;
/// What `fill` stores.
const FILL: u64 = 0x0123_4567_89ab_cdef;
/// Fresh pages of `reuse` for each that was given back: who gets which is the kernel's affair.
const REUSED: usize = 4;
/// How long nobody may store to a fresh page; the device goes round in microseconds.
const LOOK: Duration = Duration::from_millis(500);
/// Longest wait for the device to begin.
const LIMIT: Duration = Duration::from_secs(20);

struct Steps {
    /// Since the first step that needs the device.
    bound: Option<Arc<Bound>>,
    memory: Mapping,
    /// The command of `work`.
    working: Option<JoinHandle<io::Result<Answer>>>,
}

fn untouched(pages: usize) -> Result<Mapping> {
    let memory = Mapping::anonymous(pages * PAGE_BYTES)?;
    memory.advise(MmapAdvise::MADV_NOHUGEPAGE)?;
    Ok(memory)
}

/// Stores a number to the first word of each page, and then a larger one, for ever.
fn storing() -> Code {
    const VALUE: u8 = 1;
    const OFFSET: u8 = 2;
    const END: u8 = 3;
    const ZERO: u8 = 4;
    let mut code = Code::new();
    code.set(END, (PAGES * PAGE_BYTES) as u64);
    let round = code.here();
    code.add(VALUE, VALUE, ZERO, 1).set(OFFSET, 0);
    let page = code.here();
    code.store(MemoryOrder::RELAXED, VALUE, OFFSET, 0)
        .add(OFFSET, OFFSET, ZERO, PAGE_BYTES as u64)
        .jump_less(OFFSET, END, page)
        .jump_equal(ZERO, ZERO, round);
    code
}

/// What a command came to, in words.
fn words(answer: &io::Result<Answer>) -> String {
    match answer {
        Ok(answer) => format!("{:?}, {} bytes", answer.status, answer.bytes_done),
        Err(error) => error.to_string(),
    }
}

impl Steps {
    fn new() -> Result<Self> {
        Ok(Self {
            bound: None,
            memory: untouched(PAGES)?,
            working: None,
        })
    }

    fn take(&mut self, step: &str) -> Result<String> {
        match step {
            "fill" => self.fill(),
            "work" => self.work(),
            "unmap" => self.unmap(),
            "reuse" => reuse(),
            "unbind" => self.unbind(),
            "answer" => self.answer(),
            "wait" => loop {
                thread::park();
            },
            _ => bail!("it is none"),
        }
    }

    /// The device, bound to this process.
    fn bound(&mut self) -> Result<Arc<Bound>> {
        if let Some(bound) = &self.bound {
            return Ok(bound.clone());
        }
        let bound = Arc::new(Bound::open(0).context("cannot bind this process")?);
        self.bound = Some(bound.clone());
        Ok(bound)
    }

    fn fill(&mut self) -> Result<String> {
        let memory = untouched(FILL_BYTES / PAGE_BYTES)?;
        let answer = self.bound()?.fill(&memory, Span::all(&memory), 8, FILL);
        if let Ok(answer) = &answer {
            let done = answer.bytes_done as usize;
            ensure!(
                answer.status != Status::OK || done == FILL_BYTES,
                "only {done} bytes"
            );
            for word in &memory.words()[..done / 8] {
                ensure!(word.load(Relaxed) == FILL, "not all that it says it did");
            }
        }
        Ok(words(&answer))
    }

    fn work(&mut self) -> Result<String> {
        ensure!(self.working.is_none(), "the device works already");
        let code = storing();
        let home = Mapping::anonymous(code.bytes().len())?;
        home.write_bytes(code.bytes());
        let mut command = cdm_command {
            opcode: Opcode::PROGRAM.get().into(),
            flags: CDM_COMMAND_SVA,
            source: home.address(),
            destination: self.memory.address(),
            length: self.memory.bytes() as u64,
            repeat: code.instructions().len() as u32,
            arg1: PROGRAM_STEPS_MAX,
            ..Default::default()
        };
        let bound = self.bound()?;
        let working = thread::spawn(move || {
            // SAFETY: the driver writes the structure. The device stores to `memory`, which is
            // accessed by atomics alone, and to addresses that this process gave up.
            unsafe { bound.ioctl(CDM_IOCTL_COMMAND, (&raw mut command).cast()) }?;
            drop(home);
            Ok(Answer::from(&command))
        });
        let deadline = Instant::now() + LIMIT;
        // Once round: the device knows all pages.
        while self.memory.word(0).load(Acquire) < 2 {
            if working.is_finished() {
                let answer = working.join().expect("the thread only waits");
                bail!("the device does not store: {}", words(&answer));
            }
            ensure!(Instant::now() < deadline, "the device does not begin");
            thread::sleep(Duration::from_millis(1));
        }
        self.working = Some(working);
        Ok("the device stores".to_owned())
    }

    fn unmap(&mut self) -> Result<String> {
        let start = Instant::now();
        self.memory.unmap_tail((PAGES - 1) * PAGE_BYTES)?;
        Ok(format!("took {} ms", start.elapsed().as_millis()))
    }

    fn unbind(&mut self) -> Result<String> {
        let bound = self.bound()?;
        let start = Instant::now();
        bound.unbind()?;
        Ok(format!("took {} ms", start.elapsed().as_millis()))
    }

    fn answer(&mut self) -> Result<String> {
        let working = self.working.take().context("there is no command")?;
        Ok(words(&working.join().expect("the thread only waits")))
    }
}

/// Pages that this process gave back are its own once more, or somebody's; the device may store to
/// none of them.
fn reuse() -> Result<String> {
    let fresh = untouched(REUSED * PAGES)?;
    let end = Instant::now() + LOOK;
    for seed in 1.. {
        fresh.fill_pattern(seed);
        thread::sleep(LOOK / 10);
        fresh.check_pattern(seed).context("somebody else stores")?;
        if Instant::now() >= end {
            break;
        }
    }
    Ok("nobody else stores".to_owned())
}

fn main() -> ExitCode {
    let steps = || -> Result<()> {
        let mut steps = Steps::new()?;
        for step in env::args().skip(1) {
            let said = steps
                .take(&step)
                .with_context(|| format!("step '{step}'"))?;
            println!("{step}: {said}");
            io::stdout().flush()?;
        }
        Ok(())
    };
    match steps() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cdm-bound: {error:#}");
            ExitCode::from(2)
        }
    }
}
