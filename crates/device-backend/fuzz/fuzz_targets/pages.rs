// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands on memory of processes, with a driver that answers page requests with anything: the
//! input is what the driver does, step by step, as [`fuzz_rig::script`] reads it. Everything is
//! done in one thread, so an input does the same again.
//!
//! Every command must end with a status that the specification knows, and no page of the guest's
//! may change that no writable translation leads to at that moment.
#![no_main]

use cdm_backend::model::{
    Asking, Atomics, Command, ControlStep, Device, Means, PageAsker, Request,
};
use cdm_protocol::{
    CommandHeader, CommandTag, Completion, ControlOpcode, ControlRequest, FLAG_TAGGED, PageEntry,
    PageRequest, Space, Status,
};
use fuzz_rig::pages::{Known, PAGE_BYTES, PAGES, Ram};
use fuzz_rig::script::{Script, Step};
use fuzz_rig::{PASID, new_device};
use libfuzzer_sys::fuzz_target;
use std::cell::{Cell, RefCell};
use zerocopy::FromBytes;

/// Looks of a command at whether it is to end: it looks before each piece of its work.
const LOOKS_MAX: u32 = 64;

/// How a command ends that has begun, and may have come to something.
const HAVE_BEGUN: [Status; 10] = [
    Status::OK,
    Status::CANCELLED,
    Status::BAD_POINTER,
    Status::STEP_LIMIT,
    Status::UNMAPPED,
    Status::NO_ACCESS,
    Status::UNBOUND,
    Status::PAGE_QUEUE_FULL,
    Status::PAGE_ERROR,
    Status::POISONED,
];

/// The driver, and the device that it drives.
struct Driver<'a> {
    device: Device,
    ram: Ram,
    script: RefCell<Script<'a>>,
    /// What the device was told and has not been made to forget.
    known: RefCell<Known>,
    /// The guest's pages, when they were last looked at.
    seen: RefCell<Vec<u8>>,
    /// Whether a command may store anywhere in guest memory, because it names it so.
    is_wild: Cell<bool>,
    /// Whether the command is to end.
    is_over: Cell<bool>,
    looks: Cell<u32>,
}

impl<'a> Driver<'a> {
    fn new(input: &'a [u8]) -> Self {
        let driver = Self {
            device: new_device(Atomics::Link),
            ram: Ram::new(),
            script: RefCell::new(Script::new(input)),
            known: RefCell::default(),
            seen: RefCell::new(vec![0; PAGES * PAGE_BYTES]),
            is_wild: Cell::new(false),
            is_over: Cell::new(false),
            looks: Cell::new(0),
        };
        fuzz_rig::map(&driver.device);
        driver.known.borrow_mut().bind(PASID);
        driver
    }

    /// Takes steps until there is none.
    fn drive(&self) {
        loop {
            let step = self.script.borrow_mut().next();
            match step {
                None => return,
                Some(Step::Memory(page, bytes)) => {
                    self.ram.write(page, bytes);
                    self.look_at_memory(false);
                }
                Some(Step::Command(bytes)) => self.command(bytes),
                // There is no page request to answer.
                Some(step) => drop(self.control(&step, None)),
            }
        }
    }

    fn command(&self, bytes: &[u8]) {
        self.is_over.set(false);
        self.looks.set(0);
        self.is_wild.set(stores_to_guest(bytes));
        let request = Request::new(bytes, bytes.len() as u64);
        let cancelled = || {
            self.looks.set(self.looks.get() + 1);
            self.is_over.get() || self.looks.get() > LOOKS_MAX
        };
        let means = Means {
            guest: &self.ram,
            asker: self,
            cancelled: &cancelled,
        };
        let completion = match self.device.begin(Command::parse(&request), &self.ram) {
            Err(completion) => completion,
            Ok(task) => {
                self.device.work(&task, &means);
                self.device.finish(&task)
            }
        };
        self.look_at_memory(true);
        judge(&completion);
    }

    /// Nothing has changed since the last look but what the device could store to, if it was the
    /// device's turn.
    fn look_at_memory(&self, is_after_device: bool) {
        let now = self.ram.read();
        if is_after_device && !self.is_wild.get() {
            let known = self.known.borrow();
            let seen = self.seen.borrow();
            for page in 0..PAGES {
                let range = page * PAGE_BYTES..(page + 1) * PAGE_BYTES;
                assert!(
                    now[range.clone()] == seen[range] || known.can_store_to(page),
                    "guest page {page} was stored to"
                );
            }
        }
        self.seen.replace(now);
    }

    /// Sends what a step says; whether that ended the page request.
    fn control(&self, step: &Step<'_>, asked: Option<&PageRequest>) -> bool {
        let bytes = step.request(asked);
        let request = Request::new(&bytes, bytes.len() as u64);
        let raw = ControlRequest::read_from_prefix(&bytes).map(|(raw, _)| raw);
        let completion = match self.device.control(&request) {
            ControlStep::Complete(completion) => completion,
            ControlStep::MapMemory => self.device.finish_map(true),
            ControlStep::CancelCommands => {
                self.is_over.set(true);
                self.known.borrow_mut().forget_all();
                self.device.finish_reset(u64::from(asked.is_some()))
            }
            // No command is on a queue.
            ControlStep::CancelCommand { .. } => return false,
        };
        assert!(completion.status.name().is_some(), "{completion:?}");
        let Ok(raw) = raw else {
            return false;
        };
        let (pasid, status) = (raw.pasid.get(), completion.status);
        let mut known = self.known.borrow_mut();
        match raw.opcode {
            ControlOpcode::BIND if status == Status::OK => {
                known.bind(pasid);
                false
            }
            ControlOpcode::UNBIND if status == Status::OK => {
                known.unbind(pasid);
                asked.is_some_and(|asked| asked.pasid.get() == pasid)
            }
            ControlOpcode::INVALIDATE if status == Status::OK => {
                known.forget(pasid, raw.arg0.get()..=raw.arg1.get());
                false
            }
            ControlOpcode::PAGE_RESPONSE => {
                let Some(asked) = asked.filter(|asked| u64::from(asked.id.get()) == raw.arg0.get())
                else {
                    return false;
                };
                let count = completion.result.get();
                if status == Status::OK {
                    let entries = &bytes[size_of::<ControlRequest>()..];
                    let entries = <[PageEntry]>::ref_from_bytes(entries).expect("it was taken");
                    assert!(count <= entries.len() as u64, "{completion:?}");
                    known.learn(pasid, asked.address.get(), &entries[..count as usize]);
                    return count > 0;
                }
                [Status::BAD_ARGUMENT, Status::BAD_PASID].contains(&status)
            }
            _ => false,
        }
    }
}

impl PageAsker for Driver<'_> {
    fn ask(&self, request: PageRequest) -> Asking {
        self.look_at_memory(true);
        assert_eq!(request.address.get() % PAGE_BYTES as u64, 0);
        assert!((1..=cdm_protocol::PAGE_REQUEST_PAGES_MAX).contains(&request.pages.get()));
        let mut is_ended = false;
        loop {
            let step = self.script.borrow_mut().next_answer();
            let Some((step, is_last)) = step else {
                // A question without an answer ends with its command.
                self.is_over.set(true);
                return Asking::Sent;
            };
            match step {
                Step::NoBuffer if !is_ended => return Asking::NoBuffer,
                // The device would wait for who asked to use the page, which is this thread's turn.
                step if is_ended && step.is_invalidation() => {}
                // Unbound meanwhile, and perhaps bound anew, which is another space.
                step => is_ended |= self.control(&step, Some(&request)),
            }
            if is_last && is_ended {
                return Asking::Sent;
            }
        }
    }
}

fn judge(completion: &Completion) {
    assert!(completion.status.name().is_some(), "{completion:?}");
    assert_eq!(completion.reserved.get(), 0);
    if completion.status != Status::OK {
        assert_eq!(completion.result.get(), 0, "{completion:?}");
    }
    if !HAVE_BEGUN.contains(&completion.status) {
        assert_eq!(completion.bytes_done.get(), 0, "{completion:?}");
    }
}

/// Whether a range of a command is guest memory by its address.
fn stores_to_guest(request: &[u8]) -> bool {
    let Ok((header, mut rest)) = CommandHeader::read_from_prefix(request) else {
        return false;
    };
    if header.flags.get() & FLAG_TAGGED != 0 {
        rest = rest.get(size_of::<CommandTag>()..).unwrap_or_default();
    }
    rest.chunks(size_of::<cdm_protocol::Range>())
        .filter_map(|range| Space::read_from_prefix(range).ok())
        .any(|(space, _)| space == Space::GUEST)
}

fuzz_target!(|input: &[u8]| Driver::new(input).drive());
