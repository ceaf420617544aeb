// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands of the real program, kicks and interrupts included, against two processes that do
//! nothing but wake each other through a pair of eventfds.

use super::Arguments;
use super::figure::{Figure, in_turn};
use super::rig::guest::{Guest, nop};
use super::rig::process::Backend;
use cdm_protocol::QUEUE_FIRST_COMMAND;
use std::env;
use std::io::{Read, Write};
use std::os::fd::{AsFd, OwnedFd};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::eventfd::{EfdFlags, EventFd};
use std::fs::File;

/// How long one measurement takes.
const SPAN: Duration = Duration::from_millis(100);
/// Commands that are made available before one is waited for.
const DEPTHS: [usize; 2] = [1, 64];

/// Measures the time of a command, alone and among others.
pub fn measure(arguments: &Arguments, note: &mut impl FnMut(Figure)) {
    for depth in DEPTHS {
        let name = format!("round trip at depth {depth}");
        if !arguments.want(&name) {
            continue;
        }
        let backend = Backend::start();
        let mut guest = Guest::connect(&backend.socket_path());
        let mut echo = Echo::start();
        let request = nop();
        let own = || {
            microseconds(|| {
                let pending: Vec<_> = (0..depth)
                    .map(|_| guest.post_silently(QUEUE_FIRST_COMMAND, &request))
                    .collect();
                guest.queues[usize::from(QUEUE_FIRST_COMMAND)].kick_if_wanted(depth as u16);
                for pending in &pending {
                    guest.wait(QUEUE_FIRST_COMMAND, pending);
                }
                depth as u64
            })
        };
        let floor = || {
            microseconds(|| {
                echo.once();
                1
            })
        };
        note(in_turn(name, "us", arguments.rounds, own, floor));
    }
}

/// Time of each of what `work` does, which says how many that were.
fn microseconds(mut work: impl FnMut() -> u64) -> f64 {
    let begin = Instant::now();
    let mut times = 0;
    while begin.elapsed() < SPAN {
        times += work();
    }
    begin.elapsed().as_secs_f64() * 1e6 / times as f64
}

/// Another process that answers each wake with one.
struct Echo {
    child: Child,
    there: File,
    back: File,
}

impl Echo {
    fn start() -> Self {
        let [there, back] = [(); 2].map(|()| {
            let fd = EventFd::from_flags(EfdFlags::EFD_CLOEXEC).expect("an eventfd");
            OwnedFd::from(fd)
        });
        let lend = |fd: &OwnedFd| Stdio::from(fd.try_clone().expect("a descriptor"));
        let program = env::current_exe().expect("this program");
        let child = Command::new(program)
            .arg("--echo")
            .stdin(lend(&there))
            .stdout(lend(&back))
            .spawn()
            .expect("this program starts");
        Self {
            child,
            there: there.into(),
            back: back.into(),
        }
    }

    /// There and back again.
    fn once(&mut self) {
        self.there.write_all(&1u64.to_ne_bytes()).expect("written");
        self.back.read_exact(&mut [0; 8]).expect("an answer");
    }
}

impl Drop for Echo {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The other process: answers until it is killed.
pub fn echo() {
    let fd = |fd: &dyn AsFd| File::from(fd.as_fd().try_clone_to_owned().expect("a descriptor"));
    let (mut there, mut back) = (fd(&std::io::stdin()), fd(&std::io::stdout()));
    let mut value = [0; 8];
    while there.read_exact(&mut value).is_ok() && back.write_all(&value).is_ok() {}
}
