// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Scenarios that do wrong, for tests of what has to find it. They are in no list and run only if
//! they are called by name.

use std::fs;
use std::process;
use std::sync::atomic::Ordering::Relaxed;
use std::thread;
use std::time::Duration;

use anyhow::{Context, Result};
use cdm_guest_tools::device::{Direction, Options};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use nix::sys::signal::{Signal, raise};
use nix::unistd::{ForkResult, fork, setsid};

use crate::counts::Count;
use crate::scenario::{Least, Needs, Scenario};
use crate::share::Share;
use crate::stage::Stage;

const fn planted(name: &'static str, body: fn(&Stage) -> Result<()>) -> Scenario {
    Scenario {
        name,
        property: "It must fail.",
        needs: Needs::DEVICE,
        alone: true,
        operations: 1,
        least: &[Least::InAll(Count::Rewrite, 1)],
        body,
    }
}

pub const SCENARIOS: &[Scenario] = &[
    planted("planted::wrong_word", wrong_word),
    planted("planted::too_little", |stage| {
        stage.round();
        Ok(())
    }),
    planted("planted::killed", |stage| {
        stage.processes(2, |index| {
            if index == 1 {
                raise(Signal::SIGKILL)?;
            }
            while stage.round() {}
            Ok(())
        })
    }),
    planted("planted::endless", |stage| {
        stage.processes(1, |_| {
            loop {
                thread::sleep(PAUSE);
            }
        })
    }),
    planted("planted::warning", |stage| {
        stage.round();
        stage.add(Count::Rewrite, 1);
        fs::write("/dev/kmsg", "<4>WARNING: planted").context("cannot write to the log")
    }),
    planted("planted::crash", |_| {
        fs::write("/proc/sysrq-trigger", "c").context("cannot crash the kernel")
    }),
    planted("planted::left_behind", left_behind),
];

const PAUSE: Duration = Duration::from_millis(100);
/// How long what is left behind stays: longer than anybody waits for it to go.
const STAYS: Duration = Duration::from_secs(60);

fn wrong_word(stage: &Stage) -> Result<()> {
    let memory = Mapping::anonymous(8 * PAGE_BYTES)?;
    let mut share = Share::interleaved(&memory, 0, 2);
    stage.round();
    share.work(stage, &mut stage.random(0), 8)?;
    // One bit of one word.
    memory.word(6 * PAGE_BYTES + 8).fetch_xor(1 << 17, Relaxed);
    share.check_all(stage)
}

/// A process that leaves the group of the scenario, and keeps pages in a device.
fn left_behind(stage: &Stage) -> Result<()> {
    let memory = Mapping::anonymous(16 * PAGE_BYTES)?;
    memory.fill_pattern(1);
    stage.round();
    stage.add(Count::Rewrite, 1);
    let device = &stage.devices()?[0];
    let options = Options::default();
    stage.migrate(device, 0, memory.range(), Direction::ToDevice, options)?;
    // SAFETY: this process has one thread, so no lock of another can be held in the child.
    if let ForkResult::Child = unsafe { fork() }? {
        let _ = setsid();
        thread::sleep(STAYS);
        process::exit(0);
    }
    // It has its own group before the old one is ended.
    thread::sleep(PAUSE);
    Ok(())
}
