// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Who moves or copies memory, each in its own way and all by the same hand.

mod between;
mod cdm;
mod copier;
mod copy;
mod nodes;
mod test_hmm;

use anyhow::Result;
use cdm_guest_tools::memory::Mapping;

use crate::memory::{self, PageSize};
use crate::sample::SUBJECT;

use between::Between;
use cdm::Cdm;
use copier::Copier;
pub use copy::Copy;
use nodes::Nodes;
use test_hmm::{Kind, TestHmm};

/// Makes a mover for a task.
pub type Make = fn(&Task<'_>) -> Result<Box<dyn Mover>>;

/// Who moves anonymous memory: the subject, and those whom it is compared with.
pub const ANONYMOUS: [(&str, Make); 5] = [
    (SUBJECT, |task| on_device(task, 0)),
    (test_hmm::PRIVATE, |task| {
        Ok(Box::new(TestHmm::new(task, Kind::Private)?))
    }),
    (test_hmm::COHERENT, |task| {
        Ok(Box::new(TestHmm::new(task, Kind::Coherent)?))
    }),
    ("move_pages", |task| Ok(Box::new(Nodes::new(task)?))),
    ("memcpy", |task| Ok(Box::new(Copy::new(task)?))),
];

/// The same, and the subject with its copies left to either of those who can make them.
pub const BY_COPIER: [(&str, Make); 7] = [
    ANONYMOUS[0],
    (copier::BY_CPU, |task| {
        Ok(Box::new(Copier::new(on_device(task, 0)?, "cpu")?))
    }),
    (copier::BY_ENGINE, |task| {
        Ok(Box::new(Copier::new(on_device(task, 0)?, "engine")?))
    }),
    ANONYMOUS[1],
    ANONYMOUS[2],
    ANONYMOUS[3],
    ANONYMOUS[4],
];

/// Who moves anonymous memory on a kernel without the series.
pub const UNPATCHED: [(&str, Make); 1] = [(test_hmm::UNPATCHED, |task| {
    Ok(Box::new(TestHmm::new(task, Kind::Private)?))
})];

/// The subject, with the device of that number.
pub fn on_device(task: &Task<'_>, number: u32) -> Result<Box<dyn Mover>> {
    Ok(Box::new(Cdm::new(task, number)?))
}

/// Who moves memory of files: nobody else does.
pub const FILES: [(&str, Make); 2] = [ANONYMOUS[0], ANONYMOUS[4]];

/// Who moves memory from one device to another, and those whom it is compared with.
pub const BETWEEN: [(&str, Make); 5] = [
    (SUBJECT, |task| between(task)),
    (copier::BY_CPU, |task| {
        Ok(Box::new(Copier::new(between(task)?, "cpu")?))
    }),
    (copier::BY_ENGINE, |task| {
        Ok(Box::new(Copier::new(between(task)?, "engine")?))
    }),
    ANONYMOUS[3],
    ANONYMOUS[4],
];

fn between(task: &Task<'_>) -> Result<Box<dyn Mover>> {
    Ok(Box::new(Between::new(task)?))
}

/// The name of a mover without what it does besides moving.
pub fn bare(by: &str) -> Option<&'static str> {
    match by {
        test_hmm::PRIVATE => Some("test_hmm-private-bare"),
        test_hmm::COHERENT => Some("test_hmm-coherent-bare"),
        test_hmm::UNPATCHED => Some("test_hmm-unpatched-bare"),
        _ => None,
    }
}

/// Moves memory there and back. What fails to move all of it has failed.
pub trait Mover: Sync {
    /// Moves the part of one thread.
    fn there(&self, part: usize) -> Result<()>;

    /// Moves it back.
    fn back(&self, part: usize) -> Result<()>;

    /// Fails unless all of the memory is there, in pages of the size that is measured. Nobody
    /// measures how long this takes.
    fn expect_there(&self) -> Result<()>;

    /// Fails unless all of the memory is where it was before.
    fn expect_back(&self, memory: &Mapping, pages: PageSize) -> Result<()> {
        memory::expect_pages(memory, pages)
    }

    /// Does by itself, for all of the memory, what else one thread's `there` does besides moving;
    /// nothing if there is no such thing.
    fn besides(&self) -> Option<Result<()>> {
        None
    }
}

/// What a mover is made for.
pub struct Task<'a> {
    /// The memory.
    pub memory: &'a Mapping,
    /// What it is in.
    pub pages: PageSize,
    /// Threads that move it.
    pub threads: usize,
}
