// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory moves from one device to another.

use anyhow::{Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Place, Span};
use cdm_guest_tools::memory::Mapping;

use crate::fixture::{
    Fixture, device_memory, expect_free_pages, free_pages, move_patiently, physical_addresses, skip,
};

crate::tests!("two_devices":
    memory_moves_from_device_to_device_and_back,
    each_device_counts_its_own_pages,
    places_tell_this_device_from_the_other,
    mixed_range_gathers_in_one_device,
);

const PAGES: usize = 512;

fn second(t: &Fixture) -> Result<Device> {
    if !Device::numbers()?.contains(&1) {
        return skip("needs a second device");
    }
    let second = Device::open(1)?;
    let query = second.query()?;
    ensure!(query.device == 1, "/dev/cdm1 is device {}", query.device);
    let (a, b) = (t.device_memory(), device_memory(&query));
    ensure!(
        a.end <= b.start || b.end <= a.start,
        "the devices overlap: {a:x?}, {b:x?}"
    );
    Ok(second)
}

fn gather(device: &Device, memory: &Mapping) -> Result<u64> {
    let (migration, _) = move_patiently(device, 0, memory.range(), Direction::ToDevice)?;
    let arrived = migration.moved + migration.there;
    ensure!(
        arrived == memory.pages() as u64,
        "device {}: {migration:?}",
        device.number()
    );
    let inside = device_memory(&device.query()?);
    let outside = physical_addresses(memory.range())?
        .into_iter()
        .find(|page| !inside.contains(page));
    ensure!(
        outside.is_none(),
        "page at {outside:x?} is outside device {}",
        device.number()
    );
    Ok(migration.moved)
}

fn memory_moves_from_device_to_device_and_back(t: &Fixture) -> Result<()> {
    let second = second(t)?;
    let free = free_pages(&second)?;
    let memory = t.resident_memory(PAGES, 1)?;
    ensure!(
        gather(&second, &memory)? == PAGES as u64,
        "not every page moved"
    );
    memory.check_pattern(1)?;
    let by_second = second.checksum(&memory, Span::all(&memory), 0)?;
    ensure!(
        by_second == memory.crc32c(memory.bytes()),
        "the second device reads {by_second:#010x}"
    );
    second.fill(&memory, Span::all(&memory), 8, 0x2222)?.ok()?;
    ensure!(
        gather(&t.device, &memory)? == PAGES as u64,
        "not every page moved back"
    );
    memory.check_fill(0x2222)?;
    t.expect_in_device(memory.range())?;
    expect_free_pages(&second, free)
}

fn each_device_counts_its_own_pages(t: &Fixture) -> Result<()> {
    let second = second(t)?;
    let (free_first, free_second) = (t.free_pages()?, free_pages(&second)?);
    let memory = t.resident_memory(PAGES, 2)?;
    t.expect_free_pages(free_first - PAGES as u64)?;
    expect_free_pages(&second, free_second)?;
    gather(&second, &memory)?;
    t.expect_free_pages(free_first)?;
    expect_free_pages(&second, free_second - PAGES as u64)?;
    // A device brings home its own pages only.
    let others = t.device.migrate(0, memory.range(), Direction::ToSystem)?;
    ensure!(
        others.moved == 0,
        "device 0 moved pages of device 1: {others:?}"
    );
    let (home, _) = move_patiently(&second, 0, memory.range(), Direction::ToSystem)?;
    ensure!(home.moved == PAGES as u64, "{home:?}");
    memory.check_pattern(2)?;
    expect_free_pages(&second, free_second)
}

fn places_tell_this_device_from_the_other(t: &Fixture) -> Result<()> {
    let second = second(t)?;
    let memory = t.system_memory(9, 3)?;
    t.move_all(memory.page_range(0, 3), Direction::ToDevice)?;
    let (migration, _) = move_patiently(&second, 0, memory.page_range(3, 3), Direction::ToDevice)?;
    ensure!(migration.moved == 3, "{migration:?}");
    let seen = |device: &Device| device.places(0, memory.range());
    let expect = |a, b| [[a; 3], [b; 3], [Place::System; 3]].concat();
    let by_first = seen(&t.device)?;
    ensure!(
        by_first == expect(Place::ThisDevice, Place::OtherDevice),
        "{by_first:?}"
    );
    let by_second = seen(&second)?;
    ensure!(
        by_second == expect(Place::OtherDevice, Place::ThisDevice),
        "{by_second:?}"
    );
    Ok(())
}

fn mixed_range_gathers_in_one_device(t: &Fixture) -> Result<()> {
    let second = second(t)?;
    let memory = t.system_memory(PAGES, 4)?;
    let third = PAGES / 3;
    t.move_all(memory.page_range(0, third), Direction::ToDevice)?;
    let (migration, _) = move_patiently(
        &second,
        0,
        memory.page_range(third, third),
        Direction::ToDevice,
    )?;
    ensure!(migration.moved == third as u64, "{migration:?}");
    let moved = gather(&second, &memory)?;
    ensure!(moved == (PAGES - third) as u64, "{moved} pages moved");
    memory.check_pattern(4)?;
    Ok(())
}
