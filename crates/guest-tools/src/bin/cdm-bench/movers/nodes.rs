// SPDX-License-Identifier: Apache-2.0 OR MIT

//! move_pages(2) between the guest's nodes of ordinary memory.
//!
//! A folio of 2 MiB moves whole for one address of it, so that is what it gets.

use std::io;
use std::sync::atomic::{AtomicI32, Ordering::Relaxed};

use anyhow::{Context, Result, ensure};

use super::{Mover, Task};
use crate::memory;

/// The node that memory is on first, and the other one.
const NODES: [i32; 2] = [0, 1];

/// Move pages that this process alone maps (linux/mempolicy.h).
const MPOL_MF_MOVE: i32 = 2;

/// The system call.
pub struct Nodes {
    parts: Vec<Part>,
}

/// What a thread moves: prepared, since that is the same each time.
struct Part {
    addresses: Vec<u64>,
    /// Where they should go.
    nodes: [Vec<i32>; 2],
    /// Where they are then, as the kernel says.
    status: Vec<AtomicI32>,
}

impl Nodes {
    /// Prepares the calls, and has the memory on the first node.
    pub fn new(task: &Task<'_>) -> Result<Self> {
        let parts = memory::parts(task.memory, task.threads)
            .into_iter()
            .map(|range| {
                let addresses: Vec<u64> = (range.start()..range.end())
                    .step_by(task.pages.bytes())
                    .collect();
                Part {
                    nodes: NODES.map(|node| vec![node; addresses.len()]),
                    status: addresses.iter().map(|_| AtomicI32::new(-1)).collect(),
                    addresses,
                }
            })
            .collect();
        let nodes = Self { parts };
        for part in 0..nodes.parts.len() {
            nodes.back(part)?;
        }
        Ok(nodes)
    }
}

impl Part {
    fn move_to(&self, node: usize) -> Result<()> {
        self.call(Some(&self.nodes[node]))
            .context("move_pages: is there a second node?")?;
        self.expect_on(node)
    }

    fn expect_on(&self, node: usize) -> Result<()> {
        let there = |status: &&AtomicI32| status.load(Relaxed) == NODES[node];
        let moved = self.status.iter().filter(there).count();
        ensure!(
            moved == self.addresses.len(),
            "{moved} of {} folios are on node {}",
            self.addresses.len(),
            NODES[node]
        );
        Ok(())
    }

    /// Moves to these nodes, or asks only where everything is.
    fn call(&self, nodes: Option<&Vec<i32>>) -> io::Result<()> {
        let nodes = nodes.map_or(std::ptr::null(), |nodes| nodes.as_ptr());
        // SAFETY: the three lists are as long as the call is told, and the kernel writes to the last
        // one alone, whose elements may be written to; where pages are changes nothing that a
        // program can see.
        let result = unsafe {
            libc::syscall(
                libc::SYS_move_pages,
                0,
                self.addresses.len(),
                self.addresses.as_ptr(),
                nodes,
                self.status.as_ptr(),
                MPOL_MF_MOVE,
            )
        };
        match result {
            0 => Ok(()),
            -1 => Err(io::Error::last_os_error()),
            left => Err(io::Error::other(format!("{left} pages did not move"))),
        }
    }
}

impl Mover for Nodes {
    fn there(&self, part: usize) -> Result<()> {
        self.parts[part].move_to(1)
    }

    fn back(&self, part: usize) -> Result<()> {
        self.parts[part].move_to(0)
    }

    fn expect_there(&self) -> Result<()> {
        self.parts.iter().try_for_each(|part| {
            part.call(None).context("move_pages")?;
            part.expect_on(1)
        })
    }
}
