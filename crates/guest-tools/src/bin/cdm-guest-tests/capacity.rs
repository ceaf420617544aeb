// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device that is full says so, and nothing is lost.

use anyhow::{Result, ensure};
use cdm_guest_tools::device::{Direction, Span};
use cdm_guest_tools::memory::PAGE_BYTES;

use crate::fixture::{Fixture, move_patiently};
use crate::isolate::Child;

crate::tests!("capacity":
    full_device_takes_a_part_and_says_so,
    room_that_another_process_leaves_is_used,
);

/// Pages beyond what the device can hold.
const EXCESS: u64 = 2048;

fn full_device_takes_a_part_and_says_so(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let memory = t.system_memory((free + EXCESS) as usize, 1)?;
    let (migration, _) = move_patiently(&t.device, 0, memory.range(), Direction::ToDevice)?;
    t.note(format!("{migration:?}"));
    ensure!(
        migration.moved == free,
        "{} of {free} free pages were filled",
        migration.moved
    );
    ensure!(
        migration.no_memory == EXCESS,
        "{EXCESS} pages have no room: {migration:?}"
    );
    ensure!(
        t.device.query()?.bytes_free == 0,
        "a full device has free bytes"
    );
    let residency = t.device.residency(0, memory.range())?;
    ensure!(
        (residency.this_device, residency.system) == (free, EXCESS),
        "pages were lost: {residency:?}"
    );
    // Both halves are one operand of the device.
    let crc = t.device.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(
        crc == memory.crc32c(memory.bytes()),
        "the device reads {crc:#010x}"
    );
    memory.check_pattern(1)?;
    // A full device moves nothing, and takes no harm.
    let again = t.device.migrate(0, memory.range(), Direction::ToDevice)?;
    ensure!((again.moved, again.there) == (0, free), "{again:?}");
    t.move_all(memory.range(), Direction::ToSystem)?;
    memory.check_pattern(1)?;
    t.expect_free_pages(free)
}

fn room_that_another_process_leaves_is_used(t: &Fixture) -> Result<()> {
    let free = t.free_pages()?;
    let mut child = Child::spawn(|parent| {
        let _memory = t.resident_memory(free as usize, 2)?;
        parent.meet()
    })?;
    child.wait_for_arrival()?;
    t.expect_free_pages(0)?;
    let memory = t.system_memory(EXCESS as usize, 3)?;
    let migration = t.device.migrate(0, memory.range(), Direction::ToDevice)?;
    ensure!(
        migration.moved == 0,
        "a full device took {} pages",
        migration.moved
    );
    child.release()?;
    child.finish()?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    memory.check_pattern(3)?;
    ensure!(
        memory.bytes() == EXCESS as usize * PAGE_BYTES,
        "the mapping changed its size"
    );
    Ok(())
}
