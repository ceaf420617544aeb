// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Ends the machine: processes first, then dirty data, then the power.

use std::thread::sleep;
use std::time::{Duration, Instant};

use cdm_agent_protocol::Ending;
use nix::errno::Errno;
use nix::sys::reboot::{RebootMode, reboot};
use nix::sys::signal::{Signal, kill};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::Pid;

use super::kmsg::log;

/// The agent waits [`crate::agent::FAREWELL_TIMEOUT`] for the host at most; beyond
/// that it is stuck.
const AGENT_TIMEOUT: Duration = Duration::from_secs(4);
/// What a process may take to clean up after SIGTERM.
const TERM_TIMEOUT: Duration = Duration::from_secs(2);
/// What the kernel may take to bury a killed process. Pages in device memory go
/// back to the driver then; a process stuck in the kernel is left to its fate.
const KILL_TIMEOUT: Duration = Duration::from_secs(5);
/// Between two looks; short, because a guest usually has next to no processes.
const LOOK_INTERVAL: Duration = Duration::from_millis(2);

/// Ends the machine in good order. `reap` buries dead children and tells whether
/// the agent, which was told of the ending, was among them.
pub fn end(ending: Ending, reap: &mut dyn FnMut() -> bool) -> ! {
    wait_until(AGENT_TIMEOUT, || reap() || no_children());
    for (signal, timeout) in [
        (Signal::SIGTERM, TERM_TIMEOUT),
        (Signal::SIGKILL, KILL_TIMEOUT),
    ] {
        if no_children() {
            break;
        }
        // Interactive shells ignore SIGTERM, and a stopped process hears nothing.
        for signal in [signal, Signal::SIGHUP, Signal::SIGCONT] {
            // Fails only when nobody is left.
            let _ = kill(Pid::from_raw(-1), signal);
        }
        wait_until(timeout, || {
            reap();
            no_children()
        });
    }
    end_now(ending)
}

/// Ends the machine at once; only dirty data is saved.
pub fn end_now(ending: Ending) -> ! {
    nix::unistd::sync();
    super::root::settle();
    let mode = match ending {
        Ending::PowerOff => RebootMode::RB_POWER_OFF,
        Ending::Reboot => RebootMode::RB_AUTOBOOT,
    };
    loop {
        // reboot(2) returns nothing but errors.
        let Err(error) = reboot(mode);
        log(&format!("cannot end the machine: {error}"));
        sleep(TERM_TIMEOUT);
    }
}

fn wait_until(timeout: Duration, mut done: impl FnMut() -> bool) {
    let deadline = Instant::now() + timeout;
    while !done() && Instant::now() < deadline {
        sleep(LOOK_INTERVAL);
    }
}

/// Whether nobody but process 1 and the kernel's threads is left: every orphan is
/// a child of process 1.
fn no_children() -> bool {
    let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOHANG | WaitPidFlag::WNOWAIT;
    waitid(Id::All, flags) == Err(Errno::ECHILD)
}
