// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What is counted of commands on a process's pages.

use super::driver::*;
use crate::model::tests::fixture::*;
use cdm_protocol::*;

/// Pages of guest memory, and of a granule.
const PAGES: u64 = GRANULE_BYTES / PAGE;
/// Accesses to a granule from its beginning to its end.
const LINES: u64 = GRANULE_BYTES / ACCESS_BYTES;

/// A driver whose process has a granule of guest memory, and then one of device memory.
fn driver() -> Driver {
    let driver = Driver::new();
    for number in 0..PAGES {
        driver.map(number, on_guest(GUEST_BASE + number * PAGE));
        driver.map(PAGES + number, on_device((4 << 20) + number * PAGE));
    }
    driver
}

fn switch(driver: &Driver, threshold: u64) {
    let done = driver.control(ControlOpcode::COUNT_ACCESSES, PASID, threshold, 0);
    assert_eq!(done, (Status::OK, 0));
}

fn counted(driver: &Driver) -> u64 {
    driver.fixture.device.counted().accesses
}

fn run(driver: &Driver, header: CommandHeader, src: &[Range], dst: &[Range]) {
    assert_eq!(driver.run(header, src, dst).status, Status::OK);
}

#[test]
fn memory_across_the_link_is_counted_and_the_device_s_own_is_not() {
    let driver = driver();
    switch(&driver, u64::MAX);
    let all = [process(PASID, VIRTUAL, 2 * GRANULE_BYTES)];
    run(&driver, fill(7), &[], &all);
    assert_eq!(counted(&driver), LINES);
    run(&driver, header(Opcode::CHECKSUM), &all, &[]);
    assert_eq!(counted(&driver), 2 * LINES);
    // Named otherwise it is nobody's.
    run(
        &driver,
        fill(7),
        &[],
        &[guest(GUEST_BASE, 4096), device(0, 4096)],
    );
    assert_eq!(counted(&driver), 2 * LINES);
    assert_eq!(driver.reports(), []);
    assert_eq!(driver.fixture.device.counted().granules, 1);
}

#[test]
fn what_is_counted_is_what_the_link_model_counts_across_the_link() {
    let driver = driver();
    switch(&driver, u64::MAX);
    let (near, far) = (VIRTUAL, VIRTUAL + GRANULE_BYTES);
    let vector = |opcode| CommandHeader {
        width: 8.into(),
        arg0: 1.into(),
        ..header(opcode)
    };
    let whole = |address| [process(PASID, address, GRANULE_BYTES)];
    let chase = CommandHeader {
        repeat: 9.into(),
        ..header(Opcode::POINTER_CHASE)
    };
    let word = [process(PASID, near + 8, 8)];
    driver.poke(on_guest(GUEST_BASE), 0, &[0; 64]);
    for (header, src, dst) in [
        (chase, &whole(near)[..], &[][..]),
        (fill(1), &[], &whole(near)),
        (header(Opcode::COPY), &whole(far), &whole(near)),
        (header(Opcode::COPY), &whole(near), &whole(far)),
        (header(Opcode::COMPARE), &whole(near), &whole(far)),
        (vector(Opcode::SUM), &whole(near), &[]),
        (vector(Opcode::AXPY), &whole(near), &whole(far)),
        (vector(Opcode::AXPY), &whole(far), &whole(near)),
        (add(2500), &[], &word),
    ] {
        let before = counted(&driver);
        let (done, traffic, _) = driver.account(header, src, dst);
        assert_eq!(done.status, Status::OK, "{:?}", header.opcode);
        let link = traffic.link;
        let expected = link.reads.accesses + link.writes.accesses + link.atomics.accesses;
        assert_ne!(expected, 0, "{:?}", header.opcode);
        assert_eq!(counted(&driver) - before, expected, "{:?}", header.opcode);
    }
}

#[test]
fn granule_is_reported_when_its_count_reaches_the_threshold_and_begins_anew() {
    let driver = driver();
    switch(&driver, 10);
    let word = [process(PASID, VIRTUAL + 0x1238, 8)];
    run(&driver, add(9), &[], &word);
    assert_eq!(driver.reports(), []);
    run(&driver, add(1), &[], &word);
    assert_eq!(driver.reports(), [(VIRTUAL, 10)]);
    run(&driver, add(9), &[], &word);
    assert_eq!(driver.reports(), []);
    run(&driver, add(9), &[], &word);
    assert_eq!(driver.reports(), [(VIRTUAL, 18)]);
}

#[test]
fn every_report_and_what_is_left_add_up_to_all_accesses() {
    let driver = driver();
    switch(&driver, 100);
    for _ in 0..3 {
        run(
            &driver,
            fill(3),
            &[],
            &[process(PASID, VIRTUAL, GRANULE_BYTES)],
        );
    }
    let told: u64 = driver.reports().iter().map(|(_, accesses)| accesses).sum();
    assert!(told > 0 && 3 * LINES - told < 100, "{told}");
}

#[test]
fn off_means_off_and_reset_and_unbind_count_from_zero() {
    let driver = driver();
    let word = [process(PASID, VIRTUAL, 8)];
    run(&driver, add(50), &[], &word);
    assert_eq!(counted(&driver), 0);
    switch(&driver, 100);
    run(&driver, add(99), &[], &word);
    driver.fixture.device.finish_reset(0);
    run(&driver, add(99), &[], &word);
    assert_eq!(driver.reports(), []);
    switch(&driver, 0);
    run(&driver, add(99), &[], &word);
    assert_eq!(driver.reports(), []);
    assert_eq!(counted(&driver), 198);
    switch(&driver, 1);
    assert_eq!(
        driver.control(ControlOpcode::UNBIND, PASID, 0, 0).0,
        Status::OK
    );
    driver.bind(PASID);
    run(&driver, add(99), &[], &word);
    assert_eq!(driver.reports(), []);
    switch(&driver, 1);
    driver.fixture.device.unplug();
    assert_eq!(driver.fixture.device.counted().spaces, 0);
}

#[test]
fn switch_is_refused_for_who_is_not_bound_and_with_a_second_argument() {
    let driver = driver();
    let switch = |pasid, arg1| {
        driver
            .control(ControlOpcode::COUNT_ACCESSES, pasid, 5, arg1)
            .0
    };
    assert_eq!(switch(PASID + 1, 0), Status::BAD_PASID);
    assert_eq!(switch(0, 0), Status::BAD_PASID);
    assert_eq!(switch(PASID, 1), Status::RESERVED_FIELD);
    assert_eq!(driver.fixture.device.counted().spaces, 0);
}
