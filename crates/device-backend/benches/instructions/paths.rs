// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The paths that are counted.

use super::cdm_counted;
use super::rig::work::{self, Driver, HOPS, PAGES, copy, scattered_copy};
use super::rig::{self, Rig, guest};
use cdm_backend::model::{Command, Request};
use std::hint::black_box;
use std::thread;
use std::time::Duration;

/// Rounds before anything is counted: tables grow, and room is made that is kept.
const WARM_UP: u64 = 20;
/// Rounds that are counted.
const ROUNDS: u64 = 50;
/// Longer than the device looks for work before it sleeps: how often it looks is a matter of time.
const PAUSE: Duration = Duration::from_millis(1);

/// A path.
pub struct Path {
    /// Its name.
    pub name: &'static str,
    /// How many operations are counted.
    pub operations: u64,
    /// Runs it.
    pub run: fn(),
}

/// All of them.
pub const PATHS: &[Path] = &[
    path("parse/NOP", 1, || parse(&guest::nop())),
    path("parse/COPY", 1, || parse(&copy(64))),
    path("parse/COPY of 512 ranges", 1, || parse(&scattered_copy())),
    path("dispatch/NOP, one a kick", 1, || dispatch(1, guest::nop())),
    path("dispatch/NOP, 56 a kick", DEPTH, || {
        dispatch(rig::DEPTH_MAX, guest::nop());
    }),
    path("dispatch/COPY of 64 bytes, 56 a kick", DEPTH, || {
        dispatch(rig::DEPTH_MAX, copy(64));
    }),
    path("dispatch/COPY of 512 ranges, one a kick", 1, || {
        dispatch(1, scattered_copy());
    }),
    path("dispatch/COPY of 1 MiB, one a kick", 1, || {
        dispatch(1, copy(1 << 20));
    }),
    path("translation/load a word of the device", HOPS as u64, || {
        chase(false);
    }),
    path("translation/load a word of a process", HOPS as u64, || {
        chase(true);
    }),
    path("translation/forget pages", PAGES, forget),
];

const DEPTH: u64 = rig::DEPTH_MAX as u64;

/// A path of which each round is so many operations.
const fn path(name: &'static str, operations: u64, run: fn()) -> Path {
    Path {
        name,
        operations: operations * ROUNDS,
        run,
    }
}

/// Does `round` again and again; what it hands over is counted from some time on.
fn rounds(mut round: impl FnMut(&dyn Fn(&mut dyn FnMut()))) {
    for _ in 0..WARM_UP {
        round(&|work| work());
    }
    for _ in 0..ROUNDS {
        round(&|work| cdm_counted(work));
    }
}

/// From the bytes of a request to a command whose form was checked.
fn parse(bytes: &[u8]) {
    rounds(|count| {
        count(&mut || {
            let request = Request::new(black_box(bytes), bytes.len() as u64);
            black_box(Command::parse(&request).bytes());
        });
    });
}

/// From a kick to the completions, of so many commands at once.
fn dispatch(depth: usize, request: Vec<u8>) {
    let mut rig = Rig::new(0);
    rig.prepare(&vec![request; depth]);
    rounds(|count| {
        rig.post();
        thread::sleep(PAUSE);
        count(&mut || rig.kick());
        rig.collect();
    });
}

/// From one word of memory to the next.
fn chase(is_translated: bool) {
    let device = work::device_of_process();
    let driver = Driver::new(&device);
    driver.carry_out(&work::learn());
    let chase = work::chase(is_translated);
    rounds(|count| count(&mut || driver.carry_out(&chase)));
}

/// Pages that the device knows are the process's no more.
fn forget() {
    let device = work::device_of_process();
    let driver = Driver::new(&device);
    let (learn, forget) = (work::learn(), work::forget());
    rounds(|count| {
        driver.carry_out(&learn);
        count(&mut || rig::control(&device, &forget));
    });
}
