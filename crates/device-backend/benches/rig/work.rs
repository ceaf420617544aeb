// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests of the device's hot paths, and a driver that sees them to their end at once.

use super::guest::{self, command, control_of, header, process};
use cdm_backend::model::{Asking, Command, Device, GuestMemory, Means, PageAsker, Request};
use cdm_protocol::{
    CommandHeader, ControlOpcode, Opcode, PAGE_BYTES_SMALL, PageEntry, PageRequest, RANGES_MAX,
    Range, Status,
};
use std::cell::Cell;
use std::time::{Duration, Instant};
use vm_memory::VolatileSlice;
use zerocopy::IntoBytes;

/// The process whose memory is translated.
pub const PASID: u32 = 1;
/// Pages of the memory of a process that is translated: what one answer tells of.
pub const PAGES: u64 = 512;
/// Where that memory begins.
pub const BASE: u64 = 0x7f00_0000_0000;
/// Pages between one of a chase and the next: no divisor of all pages, so it comes to each.
const STEP: u64 = 97;
/// Words that a chase goes over.
pub const HOPS: u32 = 4096;

/// A device that sees all pages of the process in its own memory.
pub fn device_of_process() -> Device {
    let device = super::device(0);
    super::map(&device);
    super::control(&device, &control_of(ControlOpcode::BIND, PASID, 0, 0));
    link_pages(&device);
    device
}

/// A command that goes over all pages of the process.
pub fn learn() -> Vec<u8> {
    let bytes = PAGES * PAGE_BYTES_SMALL;
    command(
        header(Opcode::CHECKSUM),
        &[process(PASID, BASE, bytes)],
        &[],
    )
}

/// A request that has the device forget all pages of the process.
pub fn forget() -> Vec<u8> {
    let last = BASE + PAGES * PAGE_BYTES_SMALL - 1;
    control_of(ControlOpcode::INVALIDATE, PASID, BASE, last)
}

/// A chase over the process's memory: in the device itself, or by translation.
pub fn chase(is_translated: bool) -> Vec<u8> {
    let bytes = PAGES * PAGE_BYTES_SMALL;
    let place = match is_translated {
        true => process(PASID, BASE, bytes),
        false => guest::device(0, bytes),
    };
    let chase = CommandHeader {
        repeat: HOPS.into(),
        arg0: BASE.into(),
        arg1: BASE.into(),
        ..header(Opcode::POINTER_CHASE)
    };
    command(chase, &[place], &[])
}

/// A copy of so many bytes.
pub fn copy(bytes: u64) -> Vec<u8> {
    let ranges = [0, 1 << 20].map(|address| guest::device(address, bytes));
    command(header(Opcode::COPY), &ranges[..1], &ranges[1..])
}

/// A copy of as many ranges as there can be.
pub fn scattered_copy() -> Vec<u8> {
    let ranges: Vec<Range> = (0..RANGES_MAX as u64)
        .map(|index| guest::device(index * 8192, 64))
        .collect();
    let (source, destination) = ranges.split_at(RANGES_MAX / 2);
    command(header(Opcode::COPY), source, destination)
}

/// Has each page's first word lead to a page that lies far from it.
fn link_pages(device: &Device) {
    for page in 0..PAGES {
        let next = (page + STEP) % PAGES;
        let word = device.pool().slice(page * PAGE_BYTES_SMALL, 8);
        let pointer = BASE + next * PAGE_BYTES_SMALL;
        word.expect("inside").copy_from(&pointer.to_le_bytes());
    }
}

/// A driver that answers at once: each page of the process is that of the device in the same place.
pub struct Driver<'a> {
    device: &'a Device,
    /// What the device took for the answers.
    pub answering: Cell<Duration>,
}

impl<'a> Driver<'a> {
    /// That of a device.
    pub fn new(device: &'a Device) -> Self {
        Self {
            device,
            answering: Cell::default(),
        }
    }

    /// Sees a command to its end, which is a good one.
    pub fn carry_out(&self, request: &[u8]) {
        let command = Command::parse(&Request::new(request, request.len() as u64));
        let task = self.device.begin(command, &NoMemory).expect("it begins");
        let means = Means {
            guest: &NoMemory,
            asker: self,
            cancelled: &|| false,
        };
        self.device.work(&task, &means);
        assert_eq!(self.device.finish(&task).status, Status::OK);
    }
}

impl PageAsker for Driver<'_> {
    fn ask(&self, request: PageRequest) -> Asking {
        let (first, pages) = (request.address.get(), u64::from(request.pages.get()));
        let entry = |page: u64| {
            let address = first - BASE + page * PAGE_BYTES_SMALL;
            PageEntry((address | PageEntry::DEVICE | PageEntry::WRITABLE).into())
        };
        let entries: Vec<PageEntry> = (0..pages).map(entry).collect();
        let id = request.id.get().into();
        let head = control_of(ControlOpcode::PAGE_RESPONSE, PASID, id, pages);
        let response = [&head, entries.as_bytes()].concat();
        let begin = Instant::now();
        super::control(self.device, &response);
        self.answering.set(self.answering.get() + begin.elapsed());
        Asking::Sent
    }
}

/// All memory here is the device's.
struct NoMemory;

impl GuestMemory for NoMemory {
    fn stretch(&self, _: u64, _: u64) -> Option<VolatileSlice<'_>> {
        None
    }
}
