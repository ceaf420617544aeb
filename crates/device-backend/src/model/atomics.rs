// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How the device's atomic operations reach memory of the system.
//!
//! A coherent link carries them as they are, and they are atomic towards the CPUs. Over a link that
//! does not, the device loads and stores, and it is for the driver to keep the CPUs away from the
//! page in between. That such an operation is two accesses is no pretence: a driver that lets a CPU
//! at the page loses updates.

use std::hint;
use std::sync::{Mutex, MutexGuard, PoisonError};

/// What the link does with an atomic operation on memory of the system.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Atomics {
    /// Carries it.
    #[default]
    Link,
    /// Carries loads and stores only: the page has to be the device's alone.
    Exclusive,
}

/// Locks of an [`AtomicUnit`]: far more than there are engines that could meet at one.
const TURNS: usize = 256;
/// Bytes of a line, which no word crosses, of whatever width.
const LINE_BYTES: usize = 64;
/// What passes between the halves of an operation, some 100 ns: about a round trip on the link.
const CROSSING_SPINS: u32 = 8;

/// Has the engines of the device take turns at a line. It orders nobody else.
#[derive(Debug)]
pub struct AtomicUnit {
    turns: [Mutex<()>; TURNS],
}

/// The line is this engine's. Whoever has it waits for nothing.
#[derive(Debug)]
pub struct Turn<'u> {
    _guard: MutexGuard<'u, ()>,
}

impl AtomicUnit {
    /// With all lines free.
    pub fn new() -> Self {
        Self {
            turns: [const { Mutex::new(()) }; TURNS],
        }
    }

    /// Waits for the line of an address. Who waits may have a lease: who has the turn ends soon.
    pub fn turn(&self, address: usize) -> Turn<'_> {
        let turn = &self.turns[address / LINE_BYTES % TURNS];
        Turn {
            _guard: turn.lock().unwrap_or_else(PoisonError::into_inner),
        }
    }
}

impl Turn<'_> {
    /// The time between a load's answer and the store that follows it.
    pub fn cross_the_link(&self) {
        for _ in 0..CROSSING_SPINS {
            hint::spin_loop();
        }
    }
}
