// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Processes that read and write each other's memory by system calls.

use std::fs::File;
use std::io::{IoSlice, IoSliceMut};
use std::os::unix::fs::FileExt;
use std::process;
use std::sync::atomic::Ordering::SeqCst;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use nix::sys::uio::{RemoteIoVec, process_vm_readv, process_vm_writev};
use nix::unistd::Pid;

use crate::contents::Contents;
use crate::counts::Count;
use crate::hand::{Hand, while_moved};
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

/// Each has the next one for its peer.
const WORKERS: usize = 3;
/// Pages of a worker: the first half is its own to write, the second half its peer's.
const PAGES: usize = 64;
const HALF: usize = PAGES / 2;

pub const PEERS: Scenario = Scenario {
    name: "address_space::peers_read_and_write_each_others_pages",
    property: "Process_vm_readv, process_vm_writev and /proc/PID/mem reach the pages of another \
               process wherever they are.",
    needs: Needs::DEVICE,
    alone: false,
    operations: 60,
    least: &[
        Least::PerThousand(Count::PeerPages, 8000),
        Least::PerThousand(Count::PagesToDevice, 2000),
        Least::InAll(Count::Foreign, 10),
    ],
    body,
};

/// Where a worker says that it is there (its process id), and later that it has ended its visits.
struct Board(Mapping);

impl Board {
    fn arrive(&self, index: usize) {
        self.0.words()[index].store(process::id().into(), SeqCst);
    }

    /// The process of a worker; nothing if the scenario ends before it arrives.
    fn find(&self, index: usize, stage: &Stage) -> Option<Pid> {
        loop {
            match self.0.words()[index].load(SeqCst) {
                0 if stage.is_over() => return None,
                0 => std::thread::yield_now(),
                pid => return Some(Pid::from_raw(pid as i32)),
            }
        }
    }

    fn leave(&self, index: usize) {
        self.0.words()[WORKERS + index].store(1, SeqCst);
    }

    /// Waits until a worker's visitor has ended its visits.
    fn wait_for_leave(&self, index: usize, stage: &Stage) {
        while self.0.words()[WORKERS + index].load(SeqCst) == 0 && !stage.counts().is_stopped() {
            std::thread::yield_now();
        }
    }
}

fn body(stage: &Stage) -> Result<()> {
    let board = Board(Mapping::shared(PAGE_BYTES)?);
    // At one address in all of them, each with pages of its own.
    let place = Mapping::anonymous(PAGES * PAGE_BYTES)?;
    let fixed = |index: usize| stage.seed().wrapping_add(index as u64);
    while_moved(stage, WORKERS, 1, |hand| {
        place.fill_pattern_pages(fixed(hand.index), 0..HALF);
        place.fill_pattern_pages(0, HALF..PAGES);
        hand.publish(0, place.range());
        board.arrive(hand.index);
        let peer = (hand.index + 1) % WORKERS;
        let visited = match board.find(peer, stage) {
            Some(pid) => visit(hand, pid, &place, fixed(peer)),
            None => Ok(()),
        };
        board.leave(hand.index);
        // The memory stays until its visitor is done with it.
        board.wait_for_leave((hand.index + WORKERS - 1) % WORKERS, stage);
        visited?;
        place
            .check_pattern_pages(fixed(hand.index), 0..HALF)
            .context("a page that nobody wrote to")
    })
}

/// Reads what a peer has written, and writes to the other half of its memory.
fn visit(hand: &mut Hand, peer: Pid, place: &Mapping, fixed: u64) -> Result<()> {
    let memory = File::options()
        .read(true)
        .write(true)
        .open(format!("/proc/{peer}/mem"))
        .context("cannot open the memory of the peer")?;
    let access = Access { peer, memory };
    let mut written: Vec<Contents> = (HALF..PAGES)
        .map(|page| Contents::pattern(0, page))
        .collect();
    while hand.stage.round() {
        hand.move_some(place)?;
        let pages = hand.random.piece(HALF);
        let read = access.read(
            hand,
            place.page_range(pages.start, pages.len()).start(),
            pages.len(),
        )?;
        for (page, found) in pages.clone().zip(read.chunks(PAGE_BYTES)) {
            ensure!(
                found == Contents::pattern(fixed, page).bytes(),
                "page {page} of the peer reads as something else"
            );
        }
        let pages = hand.random.piece(HALF);
        let seed = hand.random.number();
        let mut bytes = Vec::with_capacity(pages.len() * PAGE_BYTES);
        for page in pages.clone() {
            written[page] = Contents::pattern(seed, page);
            bytes.extend(written[page].bytes());
        }
        let address = place.page_range(HALF + pages.start, pages.len()).start();
        access.write(hand, address, &bytes)?;
        let read = access.read(hand, place.page_range(HALF, HALF).start(), HALF)?;
        for (page, found) in read.chunks(PAGE_BYTES).enumerate() {
            ensure!(
                found == written[page].bytes(),
                "page {} of the peer is not as it was written",
                HALF + page
            );
        }
        let count = 2 * pages.len() + HALF;
        hand.stage.add(Count::Verified, (pages.len() + HALF) as u64);
        hand.stage.add(Count::PeerPages, count as u64);
    }
    Ok(())
}

/// Ways into the memory of a process.
struct Access {
    peer: Pid,
    memory: File,
}

impl Access {
    fn read(&self, hand: &mut Hand, address: u64, pages: usize) -> Result<Vec<u8>> {
        let mut bytes = vec![0; pages * PAGE_BYTES];
        if hand.random.one_in(2) {
            let read = self.memory.read_exact_at(&mut bytes, address);
            read.context("/proc/PID/mem")?;
            return Ok(bytes);
        }
        let remote = [RemoteIoVec {
            base: address as usize,
            len: bytes.len(),
        }];
        let read = process_vm_readv(self.peer, &mut [IoSliceMut::new(&mut bytes)], &remote)
            .context("process_vm_readv")?;
        ensure!(read == bytes.len(), "process_vm_readv got {read} bytes");
        Ok(bytes)
    }

    fn write(&self, hand: &mut Hand, address: u64, bytes: &[u8]) -> Result<()> {
        if hand.random.one_in(2) {
            let written = self.memory.write_all_at(bytes, address);
            return written.context("/proc/PID/mem");
        }
        let remote = [RemoteIoVec {
            base: address as usize,
            len: bytes.len(),
        }];
        let written = process_vm_writev(self.peer, &[IoSlice::new(bytes)], &remote)
            .context("process_vm_writev")?;
        ensure!(written == bytes.len(), "process_vm_writev wrote {written}");
        Ok(())
    }
}
