// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A driver with page tables, which answers page requests as they are made.

use crate::model::tests::fixture::*;
use crate::model::{
    Asking, Atomics, Capacity, ControlStep, Means, PageAsker, Picoseconds, Request, Timing, Traffic,
};
use cdm_protocol::*;
use std::collections::BTreeMap;
use std::sync::{Mutex, MutexGuard};
use zerocopy::IntoBytes;

/// Bytes of a page.
pub const PAGE: u64 = PAGE_BYTES_SMALL;
/// The process, unless there are two.
pub const PASID: u32 = 7;
/// Where its memory begins.
pub const VIRTUAL: u64 = 0x7f12_3450_0000;

/// Entries of pages, by PASID and address.
type Table = BTreeMap<(u32, u64), u64>;

/// A driver, and the device that it drives.
pub struct Driver {
    pub fixture: Fixture,
    /// Held while the driver says what is true, or makes it untrue.
    table: Mutex<Table>,
    asked: Mutex<Vec<PageRequest>>,
    reports: Mutex<Vec<AccessReport>>,
}

impl Driver {
    /// One that has bound [`PASID`].
    pub fn new() -> Self {
        Self::of(Fixture::new())
    }

    /// The same with a device whose link takes time.
    pub fn on(timing: Timing) -> Self {
        Self::of(Fixture::on(Some(timing)))
    }

    /// The same with a device that remembers so many translations, on a link that carries
    /// atomics, or none.
    pub fn with_translations(translations: Capacity, atomics: Atomics) -> Self {
        Self::of(Fixture::with_translations(translations, atomics))
    }

    /// The same with a device on a link that carries no atomics.
    pub fn exclusive() -> Self {
        Self::with_translations(Capacity::default(), Atomics::Exclusive)
    }

    fn of(fixture: Fixture) -> Self {
        let driver = Self {
            fixture,
            table: Mutex::default(),
            asked: Mutex::default(),
            reports: Mutex::default(),
        };
        driver.bind(PASID);
        driver
    }

    pub fn bind(&self, pasid: u32) {
        assert_eq!(
            self.control(ControlOpcode::BIND, pasid, 0, 0),
            (Status::OK, 0)
        );
    }

    /// Maps a page of the process, number `number` from [`VIRTUAL`] on.
    pub fn map(&self, number: u64, entry: u64) {
        self.table().insert((PASID, VIRTUAL + number * PAGE), entry);
    }

    /// What the driver says; others wait.
    pub fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap()
    }

    /// Page requests so far, as (first address, pages, stores), none of them for atomics.
    pub fn asked(&self) -> Vec<(u64, u16, bool)> {
        let asked = self.asked_with_flags().into_iter();
        let seen = |(address, pages, flags)| {
            assert_eq!(flags & !PAGE_REQUEST_WRITE, 0);
            (address, pages, flags != 0)
        };
        asked.map(seen).collect()
    }

    /// Page requests so far, as (first address, pages, flags).
    pub fn asked_with_flags(&self) -> Vec<(u64, u16, u16)> {
        let asked = self.asked.lock().unwrap();
        let seen = |request: &PageRequest| {
            let (pages, flags) = (request.pages.get(), request.flags.get());
            (request.address.get(), pages, flags)
        };
        asked.iter().map(seen).collect()
    }

    /// How many page requests there were.
    pub fn num_asked(&self) -> usize {
        self.asked.lock().unwrap().len()
    }

    /// Access reports since the last look, as (address, accesses).
    pub fn reports(&self) -> Vec<(u64, u64)> {
        let reports = std::mem::take(&mut *self.reports.lock().unwrap());
        let seen = |report: &AccessReport| {
            assert_eq!(report.kind, EventKind::ACCESS_REPORT);
            assert_eq!(report.pasid.get(), PASID);
            (report.address.get(), report.accesses.get())
        };
        reports.iter().map(seen).collect()
    }

    /// Name of the request for the pages from `address` on.
    pub fn id_of(&self, address: u64) -> u64 {
        let asked = self.asked.lock().unwrap();
        let mut requests = asked.iter();
        let request = requests.find(|request| request.address.get() == address);
        request.expect("it was asked for").id.get().into()
    }

    /// Sends a control request; status and result.
    pub fn control(
        &self,
        opcode: ControlOpcode,
        pasid: u32,
        arg0: u64,
        arg1: u64,
    ) -> (Status, u64) {
        self.control_bytes(control(opcode, pasid, arg0, arg1).as_bytes())
    }

    /// The same in bytes.
    pub fn control_bytes(&self, bytes: &[u8]) -> (Status, u64) {
        let request = Request::new(bytes, bytes.len() as u64);
        match self.fixture.device.control(&request) {
            ControlStep::Complete(done) => (done.status, done.result.get()),
            step => panic!("expected an answer, found {step:?}"),
        }
    }

    /// Answers a page request.
    pub fn respond(&self, pasid: u32, id: u64, entries: &[u64]) -> (Status, u64) {
        let count = entries.len() as u64;
        let header = control(ControlOpcode::PAGE_RESPONSE, pasid, id, count);
        let entries: Vec<u8> = entries.iter().flat_map(|bits| bits.to_le_bytes()).collect();
        self.control_bytes(&[header.as_bytes(), &entries].concat())
    }

    /// Takes a page back, as before it is unmapped or moved. The caller has the table.
    pub fn invalidate(&self, first: u64, last: u64) {
        let done = self.control(ControlOpcode::INVALIDATE, PASID, first, last);
        assert_eq!(done.0, Status::OK);
    }

    /// Carries a command out, with this driver to ask.
    pub fn run(&self, header: CommandHeader, src: &[Range], dst: &[Range]) -> Completion {
        self.run_with(header, src, dst, self, &|| false)
    }

    /// The same, and what it did to memory and how long that takes.
    pub fn account(
        &self,
        header: CommandHeader,
        src: &[Range],
        dst: &[Range],
    ) -> (Completion, Traffic, Option<Picoseconds>) {
        let bytes = command(header, src, dst);
        let means = Means {
            guest: &self.fixture.guest,
            asker: self,
            cancelled: &|| false,
        };
        let request = Request::new(&bytes, bytes.len() as u64);
        self.fixture.account_with(&request, &means)
    }

    /// The same with anybody to ask, and a reason to stop.
    pub fn run_with(
        &self,
        header: CommandHeader,
        src: &[Range],
        dst: &[Range],
        asker: &dyn PageAsker,
        cancelled: &dyn Fn() -> bool,
    ) -> Completion {
        let bytes = command(header, src, dst);
        let means = Means {
            guest: &self.fixture.guest,
            asker,
            cancelled,
        };
        let request = Request::new(&bytes, bytes.len() as u64);
        self.fixture.carry_out_with(&request, &means)
    }

    /// Writes memory that an entry leads to.
    pub fn poke(&self, entry: u64, offset: u64, bytes: &[u8]) {
        let address = (entry & PageEntry::ADDRESS_MASK) + offset;
        match entry & PageEntry::DEVICE {
            0 => self.fixture.poke_guest(address, bytes),
            _ => self.fixture.poke(address, bytes),
        }
    }

    /// Reads memory that an entry leads to.
    pub fn peek(&self, entry: u64, offset: u64, count: usize) -> Vec<u8> {
        let address = (entry & PageEntry::ADDRESS_MASK) + offset;
        match entry & PageEntry::DEVICE {
            0 => self.fixture.peek_guest(address, count),
            _ => self.fixture.peek(address, count),
        }
    }
}

impl PageAsker for Driver {
    fn ask(&self, request: PageRequest) -> Asking {
        // Whoever has the table knows which requests it has answered.
        let table = self.table();
        self.asked.lock().unwrap().push(request);
        let (pasid, first) = (request.pasid.get(), request.address.get());
        assert_eq!(first % PAGE, 0);
        assert!((1..=PAGE_REQUEST_PAGES_MAX).contains(&request.pages.get()));
        let is_write = request.flags.get() & PAGE_REQUEST_WRITE != 0;
        let is_atomic = request.flags.get() & PAGE_REQUEST_ATOMIC != 0;
        assert!(is_write || !is_atomic);
        let mut entries = Vec::new();
        for number in 0..u64::from(request.pages.get()) {
            let found = table.get(&(pasid, first + number * PAGE));
            let entry = match found {
                None => refused(Status::UNMAPPED),
                Some(entry) if is_write && entry & PageEntry::WRITABLE == 0 => {
                    refused(Status::NO_ACCESS)
                }
                // The CPUs have no part in this but by `invalidate`.
                Some(&entry) if is_atomic && entry & PageEntry::DEVICE == 0 => {
                    entry | PageEntry::EXCLUSIVE
                }
                Some(&entry) => entry,
            };
            entries.push(entry);
            if entry & PageEntry::REFUSED != 0 {
                break;
            }
        }
        let answered = self.respond(pasid, request.id.get().into(), &entries);
        // Zero if the command was ended meanwhile by somebody else.
        assert_eq!(answered.0, Status::OK);
        Asking::Sent
    }

    fn report(&self, report: AccessReport) {
        self.reports.lock().unwrap().push(report);
    }
}

/// A driver that never answers.
pub struct Silent<'a>(pub &'a Driver);

impl PageAsker for Silent<'_> {
    fn ask(&self, request: PageRequest) -> Asking {
        self.0.asked.lock().unwrap().push(request);
        Asking::Sent
    }
}

fn control(opcode: ControlOpcode, pasid: u32, arg0: u64, arg1: u64) -> ControlRequest {
    ControlRequest {
        opcode,
        flags: 0.into(),
        pasid: pasid.into(),
        arg0: arg0.into(),
        arg1: arg1.into(),
    }
}

/// The entry of a page of device memory.
pub fn on_device(address: u64) -> u64 {
    address | PageEntry::DEVICE | PageEntry::WRITABLE
}

/// The entry of a page of guest memory.
pub fn on_guest(address: u64) -> u64 {
    address | PageEntry::WRITABLE
}

/// The entry of no page.
pub fn refused(status: Status) -> u64 {
    u64::from(status.get()) << PageEntry::STATUS_SHIFT | PageEntry::REFUSED
}

/// A FILL with bytes.
pub fn fill(byte: u8) -> CommandHeader {
    CommandHeader {
        width: 1.into(),
        arg0: u64::from(byte).into(),
        ..header(Opcode::FILL)
    }
}

/// So many additions of one.
pub fn add(repeat: u32) -> CommandHeader {
    CommandHeader {
        width: 8.into(),
        repeat: repeat.into(),
        arg0: 1.into(),
        ..header(Opcode::FETCH_ADD)
    }
}
