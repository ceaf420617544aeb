// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What commands and control requests end with.

use super::driver::*;
use crate::model::tests::fixture::*;
use crate::model::{Asking, Atomics, Capacity, PageAsker};
use cdm_protocol::*;

/// Status, blamed range and bytes done.
fn end(completion: Completion) -> (Status, u32, u64) {
    assert!(completion.status == Status::OK || completion.result.get() == 0);
    let index = completion.range_index.get();
    (completion.status, index, completion.bytes_done.get())
}

/// A driver whose process has two pages of device memory, then nothing.
fn two_pages() -> Driver {
    let driver = Driver::new();
    driver.map(0, on_device(0x10_0000));
    driver.map(1, on_device(0x30_0000));
    driver
}

#[test]
fn command_reads_and_writes_the_pages_of_its_process_and_asks_once() {
    let driver = two_pages();
    let place = VIRTUAL + PAGE - 3;
    let dst = [process(PASID, place, 8)];
    assert_eq!(end(driver.run(fill(0xab), &[], &dst)), (Status::OK, 0, 8));
    assert_eq!(driver.fixture.peek(0x10_0ffd, 4), [0xab, 0xab, 0xab, 0]);
    assert_eq!(
        driver.fixture.peek(0x30_0000, 6),
        [0xab, 0xab, 0xab, 0xab, 0xab, 0]
    );
    let sum = driver.run(header(Opcode::CHECKSUM), &dst, &[]);
    assert_eq!(sum.result.get(), u64::from(crc32c::crc32c(&[0xab; 8])));
    assert_eq!(driver.asked(), [(VIRTUAL, 2, true)]);
    let translated = driver.fixture.device.translated();
    assert_eq!(
        (translated.misses, translated.requests, translated.refusals),
        (1, 1, 0)
    );
    assert_eq!(translated.hits, 4);
}

#[test]
fn pasid_that_is_not_bound_is_refused_before_anything_is_done() {
    let driver = two_pages();
    for pasid in [0, PASID + 1, PASID_MAX, PASID_MAX + 1, u32::MAX] {
        let dst = [process(PASID, VIRTUAL, 8), process(pasid, VIRTUAL, 8)];
        let ended = end(driver.run(fill(1), &[], &dst));
        assert_eq!(ended, (Status::BAD_PASID, 1, 0));
    }
    assert_eq!(driver.asked(), []);
}

#[test]
fn range_that_leads_behind_the_last_address_is_refused() {
    let driver = two_pages();
    let dst = [process(PASID, u64::MAX - 6, 8)];
    assert_eq!(
        end(driver.run(fill(1), &[], &dst)),
        (Status::BAD_ADDRESS, 0, 0)
    );
    // Up to the last one it is a matter of what is mapped.
    let dst = [process(PASID, u64::MAX - 7, 8)];
    assert_eq!(
        end(driver.run(fill(1), &[], &dst)),
        (Status::UNMAPPED, 0, 0)
    );
}

#[test]
fn pasid_of_a_range_of_another_space_is_a_reserved_field() {
    let driver = two_pages();
    for space in [Space::DEVICE, Space::GUEST] {
        let dst = [Range {
            space,
            ..process(PASID, 0, 8)
        }];
        let ended = end(driver.run(fill(1), &[], &dst));
        assert_eq!(ended, (Status::RESERVED_FIELD, 0, 0));
    }
}

#[test]
fn hole_ends_a_command_where_it_is() {
    let driver = two_pages();
    let dst = [device(0, 100), process(PASID, VIRTUAL + 1000, 3 * PAGE)];
    let ended = end(driver.run(fill(0xcd), &[], &dst));
    assert_eq!(ended, (Status::UNMAPPED, 1, 100 + 2 * PAGE - 1000));
    assert_eq!(driver.fixture.peek(0x30_0000 + PAGE - 1, 2), [0xcd, 0]);
    let src = [device(0x50_0000, 3 * PAGE)];
    let dst = [process(PASID, VIRTUAL, 3 * PAGE)];
    let ended = end(driver.run(header(Opcode::COPY), &src, &dst));
    assert_eq!(ended, (Status::UNMAPPED, 1, 2 * PAGE));
    let ended = end(driver.run(header(Opcode::CHECKSUM), &dst, &[]));
    assert_eq!(ended, (Status::UNMAPPED, 0, 2 * PAGE));
    let ended = end(driver.run(header(Opcode::COMPARE), &src, &dst));
    assert_eq!(ended, (Status::UNMAPPED, 1, 2 * PAGE));
    let sum = CommandHeader {
        width: 8.into(),
        ..header(Opcode::SUM)
    };
    assert_eq!(end(driver.run(sum, &dst, &[])).0, Status::UNMAPPED);
}

/// A driver whose process has three pages of device memory, the second of which has failed.
fn with_bad_page() -> Driver {
    let driver = two_pages();
    driver.map(2, on_device(0x50_0000));
    let bad = 0x30_0000 / ERROR_BYTES;
    assert_eq!(driver.fixture.device.fail_pages(bad..bad + 1), 1);
    driver
}

#[test]
fn page_of_a_process_that_has_failed_ends_a_command_where_it_is() {
    let driver = with_bad_page();
    let all = [process(PASID, VIRTUAL, 3 * PAGE)];
    let split = [device(0, 100), process(PASID, VIRTUAL + 1000, 2 * PAGE)];
    let ended = end(driver.run(fill(0xcd), &[], &split));
    assert_eq!(ended, (Status::POISONED, 1, 100 + PAGE - 1000));
    assert_eq!(driver.fixture.peek(0x10_0000 + PAGE - 1, 1), [0xcd]);
    assert_eq!(driver.fixture.peek(0x30_0000, 1), [0]);
    let plain = [device(0x70_0000, 3 * PAGE)];
    for (header, src, dst, range) in [
        (header(Opcode::COPY), &plain, &all[..], 1),
        (header(Opcode::COPY), &all, &plain, 0),
        (header(Opcode::CHECKSUM), &all, &[], 0),
        (header(Opcode::COMPARE), &all, &all, 0),
    ] {
        let ended = end(driver.run(header, src, dst));
        assert_eq!(
            ended,
            (Status::POISONED, range, PAGE),
            "{:?}",
            header.opcode
        );
    }
    let vector = |opcode| CommandHeader {
        width: 8.into(),
        ..header(opcode)
    };
    for (header, src, dst, range) in [
        (vector(Opcode::SUM), &all, &[][..], 0),
        (vector(Opcode::AXPY), &plain, &all, 1),
    ] {
        let ended = end(driver.run(header, src, dst));
        assert_eq!((ended.0, ended.1), (Status::POISONED, range));
        assert!(ended.2 <= PAGE, "{ended:?}");
    }
    assert_eq!(driver.fixture.peek(0x30_0000, 1), [0]);
}

#[test]
fn words_of_a_page_that_has_failed_are_refused_and_those_beside_it_are_not() {
    let driver = with_bad_page();
    let word = |offset| [process(PASID, VIRTUAL + offset, 8)];
    for offset in [PAGE, 2 * PAGE - 8] {
        let ended = end(driver.run(add(1), &[], &word(offset)));
        assert_eq!(ended, (Status::POISONED, 0, 0), "{offset:#x}");
    }
    for offset in [PAGE - 8, 2 * PAGE] {
        assert_eq!(end(driver.run(add(1), &[], &word(offset))).0, Status::OK);
    }
    // From the first page to the second one.
    driver.fixture.poke(0x10_0000, &PAGE.to_le_bytes());
    let chase = CommandHeader {
        repeat: 2.into(),
        ..header(Opcode::POINTER_CHASE)
    };
    let src = [device(0x70_0000, 8)];
    assert_eq!(end(driver.run(chase, &src, &[])).0, Status::OK);
    let src = [process(PASID, VIRTUAL, 3 * PAGE)];
    let ended = end(driver.run(chase, &src, &[]));
    assert_eq!((ended.0, ended.1), (Status::POISONED, 0));
}

#[test]
fn page_of_a_process_that_fails_under_a_translation_is_refused_at_the_next_use() {
    let driver = two_pages();
    let dst = [process(PASID, VIRTUAL, 2 * PAGE)];
    assert_eq!(end(driver.run(fill(1), &[], &dst)).0, Status::OK);
    let bad = 0x30_0000 / ERROR_BYTES;
    driver.fixture.device.fail_pages(bad..bad + 1);
    assert_eq!(
        end(driver.run(fill(2), &[], &dst)),
        (Status::POISONED, 0, PAGE)
    );
    // Known pages are not asked for: the device itself knows better.
    assert_eq!(driver.num_asked(), 1);
    // The driver has given the process another page.
    {
        let mut table = driver.table();
        driver.invalidate(VIRTUAL + PAGE, VIRTUAL + 2 * PAGE - 1);
        table.insert((PASID, VIRTUAL + PAGE), on_device(0x60_0000));
    }
    assert_eq!(end(driver.run(fill(2), &[], &dst)).0, Status::OK);
    assert_eq!(driver.fixture.peek(0x60_0000, 1), [2]);
    assert_eq!(driver.fixture.peek(0x30_0000, 1), [1]);
}

#[test]
fn memory_beside_a_process_that_fails_is_refused_when_the_command_begins() {
    let driver = with_bad_page();
    let src = [process(PASID, VIRTUAL, PAGE)];
    let dst = [device(0x30_0000, PAGE)];
    let ended = end(driver.run(header(Opcode::COPY), &src, &dst));
    assert_eq!(ended, (Status::POISONED, 1, 0));
    assert_eq!(driver.num_asked(), 0);
}

#[test]
fn difference_before_a_hole_is_found() {
    let driver = two_pages();
    driver.fixture.poke(0x30_0005, &[1]);
    let src = [device(0x50_0000, 3 * PAGE)];
    let dst = [process(PASID, VIRTUAL, 3 * PAGE)];
    let found = driver.run(header(Opcode::COMPARE), &src, &dst);
    assert_eq!(end(found), (Status::OK, 0, PAGE + 5));
    assert_eq!(found.result.get(), PAGE + 5);
}

#[test]
fn stores_to_a_page_for_loads_end_with_no_access_and_loads_do_not() {
    let driver = two_pages();
    driver.map(1, 0x30_0000 | PageEntry::DEVICE);
    let both = [process(PASID, VIRTUAL, 2 * PAGE)];
    let sum = driver.run(header(Opcode::CHECKSUM), &both, &[]);
    assert_eq!(end(sum), (Status::OK, 0, 2 * PAGE));
    assert_eq!(
        end(driver.run(fill(9), &[], &both)),
        (Status::NO_ACCESS, 0, PAGE)
    );
    let same = driver.run(header(Opcode::COMPARE), &both, &both);
    assert_eq!(end(same), (Status::OK, 0, 2 * PAGE));
    let word = [process(PASID, VIRTUAL + PAGE, 8)];
    assert_eq!(
        end(driver.run(add(1), &[], &word)),
        (Status::NO_ACCESS, 0, 0)
    );
    assert_eq!(driver.fixture.peek(0x30_0000, 1), [0]);
}

#[test]
fn driver_without_a_buffer_for_the_request_is_told_so() {
    let driver = two_pages();
    let dst = [process(PASID, VIRTUAL, 8)];
    let ended = driver.run_with(fill(1), &[], &dst, &NoBuffers, &|| false);
    assert_eq!(end(ended), (Status::PAGE_QUEUE_FULL, 0, 0));
    assert_eq!(driver.fixture.device.translated().requests, 0);
}

/// What becomes of every request.
struct Always(Asking);

impl PageAsker for Always {
    fn ask(&self, _: PageRequest) -> Asking {
        self.0
    }
}

#[test]
fn request_that_never_reaches_the_driver_ends_as_is_said() {
    let driver = two_pages();
    let dst = [process(PASID, VIRTUAL, 8)];
    let run = |asking| driver.run_with(fill(1), &[], &dst, &Always(asking), &|| false);
    let refused = run(Asking::Refused(Status::NO_ACCESS));
    assert_eq!(end(refused), (Status::NO_ACCESS, 0, 0));
    assert_eq!(end(run(Asking::Stopped)), (Status::CANCELLED, 0, 0));
}

#[test]
fn every_reason_for_a_refusal_reaches_the_command() {
    for status in [
        Status::UNMAPPED,
        Status::NO_ACCESS,
        Status::UNBOUND,
        Status::PAGE_ERROR,
    ] {
        let driver = Driver::new();
        driver.map(0, refused(status));
        let src = [device(0, 5), process(PASID, VIRTUAL, 8)];
        let ended = end(driver.run(header(Opcode::CHECKSUM), &src, &[]));
        assert_eq!(ended, (status, 1, 5));
        assert_eq!(driver.fixture.device.translated().refusals, 1);
    }
}

#[test]
fn entry_that_leads_to_no_memory_ends_the_command_with_an_error_of_the_page() {
    for entry in [
        on_device(DEVICE_BYTES),
        on_guest(GUEST_END),
        // The driver's own memory.
        on_device(0x20_0000),
    ] {
        let driver = Driver::new();
        let fixture = &driver.fixture;
        fixture.control_status(ControlOpcode::SET_METADATA, 0x20_0800, 8);
        driver.map(0, entry);
        let dst = [process(PASID, VIRTUAL, PAGE)];
        assert_eq!(
            end(driver.run(fill(1), &[], &dst)),
            (Status::PAGE_ERROR, 0, 0)
        );
        let word = [process(PASID, VIRTUAL + 0x800, 8)];
        let ended = end(driver.run(add(1), &[], &word));
        assert_eq!(ended, (Status::PAGE_ERROR, 0, 0));
    }
}

/// Makes one request and has `answer` answer it; how the command ended, and the answer.
fn with_answer(answer: impl Fn(&Driver, &PageRequest) -> (Status, u64)) -> (Status, (Status, u64)) {
    struct Asked<'a, F>(&'a Driver, F, std::cell::Cell<Option<(Status, u64)>>);
    impl<F: Fn(&Driver, &PageRequest) -> (Status, u64)> PageAsker for Asked<'_, F> {
        fn ask(&self, request: PageRequest) -> Asking {
            self.2.set(Some((self.1)(self.0, &request)));
            Asking::Sent
        }
    }
    let driver = two_pages();
    let asker = Asked(&driver, answer, std::cell::Cell::new(None));
    let dst = [process(PASID, VIRTUAL, 8)];
    let ended = driver.run_with(fill(1), &[], &dst, &asker, &|| false);
    (ended.status, asker.2.get().expect("it asked"))
}

#[test]
fn answer_that_makes_no_sense_ends_the_command_with_an_error_of_the_page() {
    let good = on_device(0x10_0000);
    for entries in [
        vec![good | 1 << 5],
        vec![refused(Status::OK)],
        vec![refused(Status::UNMAPPED), good],
        vec![good | PageEntry::LARGE],
        vec![],
        vec![good; usize::from(PAGE_REQUEST_PAGES_MAX) + 1],
    ] {
        let ended =
            with_answer(|driver, request| driver.respond(PASID, request.id.get().into(), &entries));
        assert_eq!(ended, (Status::PAGE_ERROR, (Status::BAD_ARGUMENT, 0)));
    }
    let ended = with_answer(|driver, request| {
        driver.bind(PASID + 1);
        driver.respond(PASID + 1, request.id.get().into(), &[good])
    });
    assert_eq!(ended, (Status::PAGE_ERROR, (Status::BAD_PASID, 0)));
}

#[test]
fn answer_that_is_cut_off_is_malformed_and_the_right_one_may_follow() {
    let good = on_device(0x10_0000);
    let ended = with_answer(|driver, request| {
        let id: u64 = request.id.get().into();
        let mut bytes = vec![7, 0, 0, 0];
        bytes.extend(PASID.to_le_bytes());
        bytes.extend(id.to_le_bytes());
        bytes.extend(2u64.to_le_bytes());
        bytes.extend(good.to_le_bytes());
        assert_eq!(driver.control_bytes(&bytes), (Status::MALFORMED, 0));
        assert_eq!(driver.respond(PASID, id + 1, &[good]), (Status::OK, 0));
        driver.respond(PASID, id, &[good])
    });
    assert_eq!(ended, (Status::OK, (Status::OK, 1)));
}

#[test]
fn control_requests_of_address_spaces_are_checked() {
    use ControlOpcode as Op;
    let driver = two_pages();
    let control = |op, pasid, arg0, arg1| driver.control(op, pasid, arg0, arg1).0;
    for op in [Op::BIND, Op::UNBIND] {
        assert_eq!(control(op, PASID, 1, 0), Status::RESERVED_FIELD);
        assert_eq!(control(op, PASID, 0, 1), Status::RESERVED_FIELD);
        assert_eq!(control(op, 0, 0, 0), Status::BAD_PASID);
    }
    assert_eq!(control(Op::BIND, PASID, 0, 0), Status::BAD_PASID);
    assert_eq!(control(Op::UNBIND, PASID + 1, 0, 0), Status::BAD_PASID);
    assert_eq!(control(Op::INVALIDATE, PASID + 1, 0, 0), Status::BAD_PASID);
    assert_eq!(control(Op::INVALIDATE, PASID, 1, 0), Status::BAD_ARGUMENT);
    assert_eq!(control(Op::INVALIDATE, PASID, 0, u64::MAX), Status::OK);
    for op in [Op::MAP_MEMORY, Op::SET_METADATA, Op::RESET, Op::CANCEL] {
        assert_eq!(control(op, PASID, 0, 0), Status::RESERVED_FIELD);
    }
    for pasid in (1..=ADDRESS_SPACES_MAX as u32).filter(|&pasid| pasid != PASID) {
        driver.bind(pasid);
    }
    let one_more = ADDRESS_SPACES_MAX as u32 + 1;
    assert_eq!(control(Op::BIND, one_more, 0, 0), Status::TOO_MANY_SPACES);
    assert_eq!(control(Op::UNBIND, PASID, 0, 0), Status::OK);
    assert_eq!(control(Op::BIND, one_more, 0, 0), Status::OK);
}

#[test]
fn large_page_is_one_entry() {
    let driver = Driver::with_translations(Capacity::default(), Atomics::Link);
    let (large, bytes) = (PageEntry::LARGE, PAGE_BYTES_LARGE);
    let ahead = 0x7f00_0000_0000 + bytes - PAGE;
    driver
        .table()
        .insert((PASID, ahead), on_device(16 << 20) | large);
    let second = ahead + PAGE;
    driver
        .table()
        .insert((PASID, second), on_device(32 << 20) | large);
    // The driver's table says it of each small page: the first entry is the one that counts.
    let dst = [process(PASID, ahead, PAGE + bytes)];
    assert_eq!(
        end(driver.run(fill(5), &[], &dst)),
        (Status::OK, 0, PAGE + bytes)
    );
    let fixture = &driver.fixture;
    assert_eq!(fixture.peek((18 << 20) - PAGE - 1, 2), [0, 5]);
    assert_eq!(fixture.peek((34 << 20) - 1, 2), [5, 0]);
}
