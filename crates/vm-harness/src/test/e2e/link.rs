// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest whose device is on a link that takes time: what known commands count, and how long they
//! take there, by the arithmetic of docs/reference/link-model.md.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cdm_control_protocol::{AccessState, Ask, State};
use nix::sys::signal::Signal;

use super::faults::LIMIT;
use super::{Session, silent};

/// Latencies, by default.
const LINK_PS: u64 = 500_000;
const MEMORY_PS: u64 = 100_000;
/// Bytes that are read in one access.
const LINE: u64 = 64;

/// Additions of a command that takes long, and how long the device's process stands still during it.
const MANY: u64 = 400_000;
const STANDSTILL: Duration = Duration::from_millis(700);

/// What commands did, and how long that took.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Sums {
    own: Accesses,
    link: Accesses,
    simulated_ps: u64,
}

/// Number and bytes of each kind.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
struct Accesses {
    reads: [u64; 2],
    writes: [u64; 2],
    atomics: [u64; 2],
}

impl Accesses {
    fn of(state: &AccessState) -> Self {
        Self {
            reads: [state.reads, state.read_bytes],
            writes: [state.writes, state.write_bytes],
            atomics: [state.atomics, state.atomic_bytes],
        }
    }

    fn combined(self, other: Self, f: fn(u64, u64) -> u64) -> Self {
        let both = |a: [u64; 2], b: [u64; 2]| [f(a[0], b[0]), f(a[1], b[1])];
        Self {
            reads: both(self.reads, other.reads),
            writes: both(self.writes, other.writes),
            atomics: both(self.atomics, other.atomics),
        }
    }
}

impl Sums {
    fn of(state: &State) -> Result<Self> {
        let mut sums = Self::default();
        for queue in &state.queues {
            let add = |sum: Accesses, found| sum.combined(Accesses::of(found), |a, b| a + b);
            sums.own = add(sums.own, &queue.own);
            sums.link = add(sums.link, &queue.link);
            sums.simulated_ps += queue.simulated_ps.context("no simulated time is told")?;
        }
        Ok(sums)
    }

    fn since(self, before: Self) -> Self {
        Self {
            own: self.own.combined(before.own, |a, b| a - b),
            link: self.link.combined(before.link, |a, b| a - b),
            simulated_ps: self.simulated_ps - before.simulated_ps,
        }
    }
}

fn sums(session: &mut Session) -> Result<Sums> {
    let state = session.vm()?.backends()[0].control().ask(Ask::State)?;
    Sums::of(&state.state.context("no state")?)
}

/// Bytes on the way, in one direction of 16 lanes of 16 GT/s: 130 bits for 128.
fn on_link(bytes: u64) -> u64 {
    (bytes * 8 * 130 * 1_000_000).div_ceil(128 * 16_000 * 16)
}

/// Bytes read or written in the device's memory, at 77 GB/s.
fn in_memory(bytes: u64) -> u64 {
    (bytes * 1_000_000).div_ceil(77_000)
}

/// Accesses to whole lines.
fn lines(bytes: u64) -> [u64; 2] {
    [bytes / LINE, bytes]
}

/// Commands, and what each comes to.
fn known_commands() -> Vec<(&'static str, Sums)> {
    let (large, small) = (512 << 10, 64 << 10);
    let reads = |bytes| Accesses {
        reads: lines(bytes),
        ..Accesses::default()
    };
    let both = |bytes| Accesses {
        writes: lines(bytes),
        ..reads(bytes)
    };
    let own = |own, simulated_ps| Sums {
        own,
        simulated_ps,
        ..Sums::default()
    };
    let link = |link, simulated_ps| Sums {
        link,
        simulated_ps,
        ..Sums::default()
    };
    let atomics = Accesses {
        atomics: [1000, 8000],
        ..Accesses::default()
    };
    let hops = Accesses {
        reads: [1000, 8000],
        ..Accesses::default()
    };
    let written = Accesses {
        writes: lines(small),
        ..Accesses::default()
    };
    // A response or an acknowledgement takes 20 bytes towards the device, a request 24 away from it.
    let copied = on_link(24 * 2 * (large / LINE) + large);
    let summed = on_link(20 * (small / LINE) + small);
    vec![
        ("nop", Sums::default()),
        (
            "copy --size 512K --in system",
            link(both(large), copied + 2 * LINK_PS),
        ),
        (
            "copy --size 512K --in device",
            own(both(large), in_memory(2 * large) + 2 * MEMORY_PS),
        ),
        (
            "checksum --size 64K --in system",
            link(reads(small), summed + LINK_PS),
        ),
        (
            "checksum --size 64K --in system --bind",
            link(reads(small), summed + LINK_PS),
        ),
        (
            "fill --size 64K --value 1 --in device",
            own(written, in_memory(small) + MEMORY_PS),
        ),
        (
            "fetch-add --times 1000 --in system",
            link(atomics, 1000 * LINK_PS),
        ),
        (
            "fetch-add --times 1000 --in device --bind",
            own(atomics, 1000 * MEMORY_PS),
        ),
        (
            "chase --size 64K --hops 1000 --in system",
            link(hops, 1000 * LINK_PS),
        ),
        (
            "chase --size 64K --hops 1000 --in device",
            own(hops, 1000 * MEMORY_PS),
        ),
    ]
}

/// Each known command counts and takes what the arithmetic says, to the access and to the picosecond.
pub fn known_commands_come_to_what_the_arithmetic_says(session: &mut Session) -> Result<()> {
    for (arguments, expected) in known_commands() {
        let before = sums(session)?;
        session.text(&format!("cdmctl run {arguments}"))?;
        let found = sums(session)?.since(before);
        ensure!(
            found == expected,
            "'{arguments}' is {found:?}, not {expected:?}"
        );
    }
    Ok(())
}

/// A device's process that stands still in the middle of a command is late, and accounts for the same.
pub fn host_that_stands_still_changes_no_account(session: &mut Session) -> Result<()> {
    let before = sums(session)?;
    let start = Instant::now();
    session.text(&format!(
        "(cdmctl run fetch-add --times {MANY} --in system; echo \"exit $?\") > /tmp/slow 2>&1 &"
    ))?;
    thread::sleep(Duration::from_millis(100));
    silent::signal(session, Signal::SIGSTOP)?;
    thread::sleep(STANDSTILL);
    silent::signal(session, Signal::SIGCONT)?;
    let said = session.text("while ! grep -q exit /tmp/slow; do sleep 0.1; done; cat /tmp/slow")?;
    let took = start.elapsed();
    ensure!(said.contains("exit 0") && took < LIMIT, "{took:?}: {said}");
    let found = sums(session)?.since(before);
    let expected = Sums {
        link: Accesses {
            atomics: [MANY, 8 * MANY],
            ..Accesses::default()
        },
        simulated_ps: MANY * LINK_PS,
        ..Sums::default()
    };
    ensure!(found == expected, "{found:?}, not {expected:?}");
    // A completion may be late, and is never early.
    let simulated = Duration::from_nanos(MANY * LINK_PS / 1000);
    ensure!(took >= simulated, "it took {took:?}, not {simulated:?}");
    Ok(())
}
