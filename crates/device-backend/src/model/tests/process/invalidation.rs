// SPDX-License-Identifier: Apache-2.0 OR MIT

//! No access after an acknowledged invalidation.

use super::driver::*;
use crate::model::tests::fixture::*;
use cdm_protocol::*;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;

/// Pages that all commands work on.
const PAGES: u64 = 16;
/// Two places for each of them.
const FRAMES: [u64; 2] = [64 << 20, 65 << 20];
/// What nobody but the driver writes.
const POISON: u8 = 0xee;
/// How often a page is moved.
const MOVES: u64 = 100;
/// What the device needs to come by, if it comes by at all.
const TURNS: u32 = 3;

/// The word that writers of atomics use: the last page is theirs.
const WORD: u64 = VIRTUAL + PAGES * PAGE;

/// Commands that write all pages all the time, until told to end.
fn write(driver: &Driver, byte: u8, is_over: &AtomicBool) {
    let all = [process(PASID, VIRTUAL, PAGES * PAGE)];
    let copy_source = [device(0, PAGES * PAGE)];
    while !is_over.load(Ordering::Relaxed) {
        let done = match byte {
            1 => driver.run(fill(byte), &[], &all),
            _ => driver.run(header(Opcode::COPY), &copy_source, &all),
        };
        assert_eq!(done.status, Status::OK);
    }
}

#[test]
fn nothing_is_written_to_a_page_after_it_was_taken_back() {
    let driver = Driver::new();
    driver.fixture.poke(0, &[2; (PAGES * PAGE) as usize]);
    for number in 0..=PAGES {
        driver.map(number, on_device(FRAMES[0] + number * PAGE));
    }
    let (is_over, added) = (AtomicBool::new(false), AtomicU64::new(0));
    thread::scope(|scope| {
        scope.spawn(|| write(&driver, 1, &is_over));
        scope.spawn(|| write(&driver, 2, &is_over));
        for _ in 0..2 {
            scope.spawn(|| {
                while !is_over.load(Ordering::Relaxed) {
                    let done = driver.run(add(3000), &[], &[process(PASID, WORD, 8)]);
                    assert_eq!(done.status, Status::OK);
                    added.fetch_add(3000, Ordering::Relaxed);
                }
            });
        }
        let mut place = [0; PAGES as usize + 1];
        for moved in 0..MOVES {
            // The page of the word every other time.
            let number = if moved % 2 == 0 {
                PAGES
            } else {
                moved / 2 % PAGES
            };
            let address = VIRTUAL + number * PAGE;
            let old = FRAMES[place[number as usize]] + number * PAGE;
            place[number as usize] ^= 1;
            let new = FRAMES[place[number as usize]] + number * PAGE;
            let mut table = driver.table();
            driver.invalidate(address, address + PAGE - 1);
            // From here on the old page is the driver's alone.
            let bytes = driver.fixture.peek(old, PAGE as usize);
            driver.fixture.poke(old, &[POISON; PAGE as usize]);
            for _ in 0..TURNS {
                thread::yield_now();
            }
            let now = driver.fixture.peek(old, PAGE as usize);
            if now.iter().any(|&byte| byte != POISON) {
                is_over.store(true, Ordering::Relaxed);
                panic!("move {moved}: written after it was taken back");
            }
            driver.fixture.poke(new, &bytes);
            table.insert((PASID, address), on_device(new));
            let before = driver.num_asked();
            drop(table);
            // Somebody misses the page, and is about to use it when it is taken back again.
            while driver.num_asked() == before {
                thread::yield_now();
            }
        }
        is_over.store(true, Ordering::Relaxed);
    });
    let entry = driver.table()[&(PASID, WORD)];
    let sum = u64::from_le_bytes(driver.peek(entry, 0, 8).try_into().unwrap());
    assert_eq!(sum, added.into_inner(), "an addition was lost");
    let translated = driver.fixture.device.translated();
    assert_eq!(translated.invalidations, MOVES);
    assert!(translated.requests >= MOVES, "{translated:?}");
}
