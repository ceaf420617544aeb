// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Atomics over a link that carries none.

use super::driver::*;
use crate::model::tests::fixture::*;
use cdm_protocol::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};
use zerocopy::{FromZeros, IntoBytes};

/// Pages of guest memory, the second one in the other region.
const FRAMES: [u64; 2] = [GUEST_BASE, GUEST_BORDER];
/// The word that everybody adds to.
const WORD: u64 = 64;
/// Where programs and sources lie on the device.
const CODE: u64 = 1 << 20;
/// The flags of a request for atomics.
const ATOMIC: u16 = PAGE_REQUEST_WRITE | PAGE_REQUEST_ATOMIC;

fn word_of_process() -> Range {
    process(PASID, VIRTUAL + WORD, 8)
}

fn compare_swap(expected: u64, new: u64) -> CommandHeader {
    CommandHeader {
        width: 8.into(),
        arg0: expected.into(),
        arg1: new.into(),
        ..header(Opcode::COMPARE_SWAP)
    }
}

/// Counts the bytes at [`CODE`] in one counter.
fn histogram() -> CommandHeader {
    CommandHeader {
        width: 1.into(),
        repeat: 1.into(),
        arg1: 256.into(),
        ..header(Opcode::HISTOGRAM)
    }
}

/// An access to the word of eight bytes at `offset`, with register 0 for what is read and 1 for
/// what is written.
fn access(operator: Operator, offset: u64) -> Instruction {
    Instruction {
        operator,
        order: MemoryOrder::RELAXED,
        width: 8,
        d: if operator == Operator::STORE { 0 } else { 2 },
        a: 15,
        b: if operator == Operator::LOAD { 0 } else { 1 },
        immediate: offset.into(),
    }
}

fn set(register: u8, value: u64) -> Instruction {
    Instruction {
        operator: Operator::SET,
        d: register,
        immediate: value.into(),
        ..Instruction::new_zeroed()
    }
}

/// Puts a program at [`CODE`]; how to run it, and where it is.
fn program(driver: &Driver, code: &[Instruction]) -> (CommandHeader, Range) {
    driver.fixture.poke(CODE, code.as_bytes());
    let header = CommandHeader {
        repeat: (code.len() as u32).into(),
        arg1: 1000.into(),
        ..header(Opcode::PROGRAM)
    };
    (header, device(CODE, code.as_bytes().len() as u64))
}

fn read_word(driver: &Driver, frame: u64) -> u64 {
    let bytes = driver.fixture.peek_guest(frame + WORD, 8);
    u64::from_le_bytes(bytes.try_into().unwrap())
}

#[test]
fn each_atomic_operation_asks_for_exclusive_access_and_keeps_it() {
    let add_once = [access(Operator::ATOMIC_ADD, WORD)];
    let swap = [access(Operator::ATOMIC_SWAP, WORD)];
    let compare = [access(Operator::ATOMIC_COMPARE_SWAP, WORD)];
    for number in 0..6 {
        let driver = Driver::exclusive();
        driver.map(0, on_guest(FRAMES[0]));
        let page = [process(PASID, VIRTUAL, PAGE)];
        let word = [word_of_process()];
        for _ in 0..2 {
            let done = match number {
                0 => driver.run(add(3), &[], &word),
                1 => driver.run(compare_swap(0, 1), &[], &word),
                2 => driver.run(histogram(), &[device(0, 5)], &word),
                _ => {
                    let code = [&add_once[..], &swap, &compare][number - 3];
                    let (header, code) = program(&driver, code);
                    driver.run(header, &[code], &page)
                }
            };
            assert_eq!(done.status, Status::OK, "{number}");
        }
        assert_eq!(
            driver.asked_with_flags(),
            [(VIRTUAL, 1, ATOMIC)],
            "{number}"
        );
        let translated = driver.fixture.device.translated();
        assert_eq!((translated.requests, translated.exclusive_requests), (1, 1));
    }
}

#[test]
fn loads_and_stores_ask_for_no_exclusive_access_and_go_with_it() {
    let driver = Driver::exclusive();
    driver.map(0, on_guest(FRAMES[0]));
    let page = [process(PASID, VIRTUAL, PAGE)];
    assert_eq!(driver.run(fill(1), &[], &page).status, Status::OK);
    let code = [access(Operator::LOAD, 0), access(Operator::STORE, 8)];
    let (header, code) = program(&driver, &code);
    assert_eq!(driver.run(header, &[code], &page).status, Status::OK);
    assert_eq!(driver.asked(), [(VIRTUAL, 1, true)]);
    // What is there is not enough for this, and what comes for it is for the others, too.
    let done = driver.run(add(1), &[], &[word_of_process()]);
    assert_eq!(done.status, Status::OK);
    for status in [
        driver.run(fill(1), &[], &page).status,
        driver.run(header, &[code], &page).status,
    ] {
        assert_eq!(status, Status::OK);
    }
    let asked = driver.asked_with_flags();
    assert_eq!(
        asked,
        [(VIRTUAL, 1, PAGE_REQUEST_WRITE), (VIRTUAL, 1, ATOMIC)]
    );
}

#[test]
fn device_memory_needs_no_exclusive_access() {
    let driver = Driver::exclusive();
    driver.map(0, on_device(64 << 20));
    let done = driver.run(add(5), &[], &[word_of_process()]);
    assert_eq!((done.status, done.result.get()), (Status::OK, 4));
    assert_eq!(driver.peek(on_device(64 << 20), WORD, 1), [5]);
    // Named directly as well.
    let done = driver.run(add(5), &[], &[device((64 << 20) + WORD, 8)]);
    assert_eq!((done.status, done.result.get()), (Status::OK, 9));
}

/// A driver that never keeps a CPU away.
struct Careless<'a>(&'a Driver, u64);

impl crate::model::PageAsker for Careless<'_> {
    fn ask(&self, request: PageRequest) -> crate::model::Asking {
        self.0.respond(PASID, request.id.get().into(), &[self.1]);
        crate::model::Asking::Sent
    }
}

#[test]
fn atomic_without_exclusive_access_is_not_done() {
    let driver = Driver::exclusive();
    let careless = Careless(&driver, on_guest(FRAMES[0]));
    let word = [word_of_process()];
    let done = driver.run_with(add(1), &[], &word, &careless, &|| false);
    assert_eq!((done.status, done.bytes_done.get()), (Status::NO_ACCESS, 0));
    assert_eq!(read_word(&driver, FRAMES[0]), 0);
}

#[test]
fn exclusive_access_means_nothing_to_a_device_whose_link_carries_atomics() {
    let driver = Driver::new();
    let entry = on_guest(FRAMES[0]) | PageEntry::EXCLUSIVE;
    let careless = Careless(&driver, entry);
    let word = [word_of_process()];
    let done = driver.run_with(add(1), &[], &word, &careless, &|| false);
    assert_eq!(done.status, Status::PAGE_ERROR);
    assert_eq!(read_word(&driver, FRAMES[0]), 0);
}

#[test]
fn atomics_on_guest_memory_that_the_driver_names_are_refused() {
    let driver = Driver::exclusive();
    driver.map(0, on_guest(FRAMES[0]));
    let word = [guest(FRAMES[0] + WORD, 8)];
    let source = [device(0, 5)];
    for (done, range_index) in [
        (driver.run(add(1), &[], &word), 0),
        (driver.run(compare_swap(0, 1), &[], &word), 0),
        (driver.run(histogram(), &source, &word), 1),
    ] {
        assert_eq!(
            (done.status, done.range_index.get(), done.bytes_done.get()),
            (Status::BAD_SPACE, range_index, 0)
        );
    }
    assert_eq!(read_word(&driver, FRAMES[0]), 0);
    // What only loads and stores there is carried out, as far as it does.
    let store = [guest(FRAMES[0], PAGE)];
    assert_eq!(driver.run(fill(0), &[], &store).status, Status::OK);
    let code = [
        set(1, 7),
        access(Operator::STORE, PAGE + WORD),
        access(Operator::ATOMIC_ADD, WORD),
        access(Operator::ATOMIC_ADD, PAGE + WORD),
    ];
    let (header, code) = program(&driver, &code);
    let mixed = [device(64 << 20, PAGE), guest(FRAMES[0], PAGE)];
    let done = driver.run(header, &[code], &mixed);
    assert_eq!(
        (done.status, done.range_index.get(), done.bytes_done.get()),
        (Status::BAD_SPACE, 2, 3)
    );
    assert_eq!(read_word(&driver, FRAMES[0]), 7);
    assert_eq!(driver.peek(on_device(64 << 20), WORD, 1), [7]);
    assert_eq!(driver.num_asked(), 0);
}

/// Adds to the word of a page as a CPU does.
fn add_as_cpu(driver: &Driver, frame: u64) {
    let slice = crate::model::GuestMemory::stretch(&driver.fixture.guest, frame + WORD, 8);
    let place = slice.unwrap().ptr_guard_mut().as_ptr();
    // SAFETY: aligned, eight bytes long, alive as long as the guest, and used by atomics alone.
    let word = unsafe { AtomicU64::from_ptr(place.cast()) };
    word.fetch_add(1, Ordering::SeqCst);
}

#[test]
fn updates_are_lost_if_a_driver_says_exclusive_and_does_not_keep_the_cpus_away() {
    let deadline = Instant::now() + Duration::from_secs(60);
    let lost = |driver: &Driver| {
        let (is_over, cpus) = (AtomicBool::new(false), AtomicU64::new(0));
        let before = read_word(driver, FRAMES[0]);
        thread::scope(|scope| {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    add_as_cpu(driver, FRAMES[0]);
                    cpus.fetch_add(1, Ordering::Relaxed);
                }
            });
            let done = driver.run(add(20_000), &[], &[word_of_process()]);
            is_over.store(true, Ordering::Relaxed);
            assert_eq!(done.status, Status::OK);
        });
        let added = 20_000 + cpus.into_inner();
        before + added - read_word(driver, FRAMES[0])
    };
    let driver = Driver::exclusive();
    driver.map(0, on_guest(FRAMES[0]));
    while lost(&driver) == 0 {
        assert!(Instant::now() < deadline, "nothing was lost");
    }
    // A link that carries atomics asks for no such care.
    let driver = Driver::new();
    driver.map(0, on_guest(FRAMES[0]));
    for _ in 0..5 {
        assert_eq!(lost(&driver), 0);
    }
}

/// Commands of the device on one word, until told to end; what they have added.
fn add_all_the_time(driver: &Driver, is_over: &AtomicBool, added: &AtomicU64) {
    while !is_over.load(Ordering::Relaxed) {
        let done = driver.run(add(700), &[], &[word_of_process()]);
        assert_eq!(done.status, Status::OK);
        added.fetch_add(700, Ordering::Relaxed);
    }
}

#[test]
fn additions_are_none_lost_between_engines_and_cpus_that_take_the_page_back_and_move_it() {
    const TURNS: u64 = 300;
    let driver = Driver::exclusive();
    driver.map(0, on_guest(FRAMES[0]));
    let (is_over, added) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        for _ in 0..3 {
            scope.spawn(|| add_all_the_time(&driver, &is_over, &added));
        }
        for turn in 0..TURNS {
            let before = driver.num_asked();
            let mut table = driver.table();
            driver.invalidate(VIRTUAL, VIRTUAL + PAGE - 1);
            // The page is the CPUs' alone: they need no atomics, and may take their time.
            let old = FRAMES[turn as usize % 2];
            let new = FRAMES[(turn as usize + 1) % 2];
            let found = read_word(&driver, old);
            thread::yield_now();
            driver.fixture.poke_guest(old, &[0xee; PAGE as usize]);
            driver
                .fixture
                .poke_guest(new + WORD, &(found + 1).to_le_bytes());
            table.insert((PASID, VIRTUAL), on_guest(new));
            drop(table);
            while driver.num_asked() == before {
                thread::yield_now();
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let sum = read_word(&driver, FRAMES[TURNS as usize % 2]);
    assert_eq!(sum, TURNS + added.into_inner(), "an addition was lost");
    let left = driver.fixture.peek_guest(FRAMES[1], PAGE as usize);
    assert!(left.iter().all(|&byte| byte == 0xee), "written afterwards");
    let translated = driver.fixture.device.translated();
    assert_eq!(translated.invalidations, TURNS);
    assert!(translated.exclusive_requests >= TURNS, "{translated:?}");
    let is_atomic = |request: &(u64, u16, u16)| request.2 == ATOMIC;
    assert!(driver.asked_with_flags().iter().all(is_atomic));
}

#[test]
fn store_of_a_program_does_not_come_between_the_halves_of_an_addition() {
    /// Far above what the additions come to.
    const MARK: u64 = 1 << 40;
    const ADDITIONS: u32 = 20_000;
    let driver = Driver::exclusive();
    driver.map(0, on_guest(FRAMES[0]));
    let code = [set(1, MARK), access(Operator::STORE, WORD)];
    let (header, code) = program(&driver, &code);
    // By either name of the word.
    for page in [process(PASID, VIRTUAL, PAGE), guest(FRAMES[0], PAGE)] {
        for _ in 0..20 {
            driver.fixture.poke_guest(FRAMES[0] + WORD, &[0; 8]);
            thread::scope(|scope| {
                let adding = scope.spawn(|| driver.run(add(ADDITIONS), &[], &[word_of_process()]));
                while read_word(&driver, FRAMES[0]) == 0 {
                    thread::yield_now();
                }
                let done = driver.run(header, &[code], &[page]);
                assert_eq!(done.status, Status::OK);
                assert_eq!(adding.join().unwrap().status, Status::OK);
            });
            let found = read_word(&driver, FRAMES[0]);
            let expected = MARK..MARK + u64::from(ADDITIONS);
            assert!(expected.contains(&found), "{found:#x}");
        }
    }
}
