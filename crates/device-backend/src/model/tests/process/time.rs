// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What commands on a process's pages cost on a link that takes time.

use super::driver::*;
use crate::model::link::Flow;
use crate::model::tests::fixture::*;
use crate::model::{Asking, Means, PageAsker, Picoseconds, Request, Timing};
use cdm_protocol::*;
use std::thread;
use std::time::Duration;

/// The defaults' latencies.
const LINK: Picoseconds = 500_000;
const OWN: Picoseconds = 100_000;

/// A driver that takes its time.
struct Slow<'a>(&'a Driver);

impl PageAsker for Slow<'_> {
    fn ask(&self, request: PageRequest) -> Asking {
        thread::sleep(Duration::from_millis(20));
        self.0.ask(request)
    }
}

fn flow(accesses: u64, bytes: u64) -> Flow {
    Flow { accesses, bytes }
}

/// A driver whose process has one page on either side.
fn driver() -> Driver {
    let driver = Driver::on(Timing::default());
    driver.map(0, on_device(1 << 20));
    driver.map(1, on_guest(GUEST_BASE));
    driver
}

#[test]
fn a_copy_counts_pages_where_they_are_and_no_wait_for_them() {
    let driver = driver();
    let bytes = command(
        header(Opcode::COPY),
        &[process(PASID, VIRTUAL, 64)],
        &[process(PASID, VIRTUAL + PAGE, 64)],
    );
    let slow = Slow(&driver);
    let means = Means {
        guest: &driver.fixture.guest,
        asker: &slow,
        cancelled: &|| false,
    };
    let request = Request::new(&bytes, bytes.len() as u64);
    let (completion, traffic, simulated) = driver.fixture.account_with(&request, &means);
    assert_eq!(completion.status, Status::OK);
    assert_eq!(driver.num_asked(), 2);
    assert_eq!(
        (traffic.own.reads, traffic.own.writes),
        (flow(1, 64), flow(0, 0))
    );
    assert_eq!(
        (traffic.link.reads, traffic.link.writes),
        (flow(0, 0), flow(1, 64))
    );
    // A line with its head, on sixteen lanes of 16 GT/s.
    let on_link = ((64 + 24) * 8_125_000u128).div_ceil(256_000);
    assert_eq!(simulated, Some(on_link + OWN + LINK));
}

#[test]
fn atomics_on_a_page_are_counted_one_by_one_however_many_a_lease_has() {
    let driver = driver();
    for (page, own, link, each) in [(0, 2500, 0, OWN), (1, 0, 2500, LINK)] {
        let word = [process(PASID, VIRTUAL + page * PAGE, 8)];
        let (completion, traffic, simulated) = driver.account(add(2500), &[], &word);
        assert_eq!(completion.status, Status::OK);
        assert_eq!(traffic.own.atomics, flow(own, 8 * own));
        assert_eq!(traffic.link.atomics, flow(link, 8 * link));
        assert_eq!(simulated, Some(2500 * each));
    }
}

#[test]
fn a_compare_counts_no_byte_behind_the_difference() {
    let driver = driver();
    let (left, right) = ([0; 1000], [1; 1]);
    driver.poke(on_device(1 << 20), 0, &left);
    driver.poke(on_guest(GUEST_BASE), 70, &right);
    let (completion, traffic, _) = driver.account(
        header(Opcode::COMPARE),
        &[process(PASID, VIRTUAL, 1000)],
        &[process(PASID, VIRTUAL + PAGE, 1000)],
    );
    assert_eq!(completion.bytes_done.get(), 70);
    assert_eq!(traffic.own.reads, flow(2, 71));
    assert_eq!(traffic.link.reads, flow(2, 71));
}
