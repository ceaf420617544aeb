// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The normal life of a device.

use super::guest::*;
use super::process::Backend;
use super::queue::{INDIRECT, readable, writable};
use cdm_protocol::*;
use std::sync::atomic::{AtomicU64, Ordering};
use std::thread;
use std::time::Duration;
use vhost::vhost_user::VhostUserFrontend;
use zerocopy::IntoBytes;

/// First command queue.
const COMMAND: u16 = QUEUE_FIRST_COMMAND;

fn fill(width: u16, value: u64) -> CommandHeader {
    CommandHeader {
        width: width.into(),
        arg0: value.into(),
        ..header(Opcode::FILL)
    }
}

#[test]
fn shared_memory_region_zero_is_the_device_memory_and_there_is_no_other() {
    let backend = Backend::start();
    let mut guest = Guest::connect(&backend.socket_path());
    let config = guest.frontend.get_shmem_config().unwrap();
    assert_eq!({ config.nregions }, 1);
    assert_eq!({ config.memory_sizes }[0], 256 << 20);
}

#[test]
fn config_space_tells_what_the_command_line_asked_for() {
    let backend = Backend::start_with(&[
        "--memory-size",
        "512M",
        "--command-queues",
        "8",
        "--link-speed",
        "25",
        "--link-width",
        "8",
    ]);
    let mut guest = Guest::connect(&backend.socket_path());
    let config = guest.config();
    assert_eq!(config.magic, MAGIC);
    assert_eq!(config.version_major.get(), VERSION_MAJOR);
    assert_eq!(config.config_bytes.get() as usize, size_of::<Config>());
    let expected = FEATURES_ALL & !FEATURE_EXCLUSIVE_ATOMICS;
    assert_eq!(config.features.get(), expected);
    assert_eq!(config.memory_bytes.get(), 512 << 20);
    assert_eq!(config.num_command_queues.get(), 8);
    assert_eq!(config.link_speed_mts.get(), 25_000);
    assert_eq!(config.link_width_lanes.get(), 8);
    assert_eq!(guest.queues.len(), 10);
    for index in 0..8 {
        assert_eq!(guest.request(COMMAND + index, &nop()).status, Status::OK);
    }
}

#[test]
fn config_space_is_read_in_pieces_too() {
    let backend = Backend::start();
    let mut guest = Guest::connect(&backend.socket_path());
    let whole = guest.config();
    for (offset, bytes) in [(0u32, 8u32), (24, 8), (207, 1)] {
        let found = guest.config_bytes(offset, bytes).unwrap();
        let (offset, bytes) = (offset as usize, bytes as usize);
        assert_eq!(found, whole.as_bytes()[offset..offset + bytes]);
    }
}

#[test]
fn mapped_memory_is_one_memory_for_the_guest_and_the_device() {
    let backend = Backend::start();
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    guest.bar_write(0x1000, b"123456789");
    let crc = guest.command(0, header(Opcode::CHECKSUM), &[device(0x1000, 9)], &[]);
    assert_eq!((crc.status, crc.result.get()), (Status::OK, 0xe306_9283));
    let filled = guest.command(0, fill(2, 0xbbaa), &[], &[device(0x2000, 4)]);
    assert_eq!(filled.status, Status::OK);
    assert_eq!(guest.bar_read(0x1fff, 6), [0, 0xaa, 0xbb, 0xaa, 0xbb, 0]);
}

#[test]
fn commands_reach_guest_memory_below_and_above_the_hole() {
    let backend = Backend::start();
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    guest.write(SCRATCH, &[1; 100]);
    guest.write(HIGH_BASE, &[2; 100]);
    let src = [
        super::guest::guest(SCRATCH, 100),
        super::guest::guest(HIGH_BASE, 100),
    ];
    let copied = guest.command(0, header(Opcode::COPY), &src, &[device(0, 200)]);
    assert_eq!((copied.status, copied.bytes_done.get()), (Status::OK, 200));
    assert_eq!(guest.bar_read(0, 200), [[1; 100], [2; 100]].concat());
}

#[test]
fn the_bar_is_no_guest_memory_so_the_metadata_guard_has_no_back_door() {
    let backend = Backend::start();
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    let set = guest.control(ControlOpcode::SET_METADATA, 0, 0x1000);
    assert_eq!(set.status, Status::OK);
    let front = guest.command(0, fill(1, 1), &[], &[device(0xfff, 1)]);
    assert_eq!(front.status, Status::PROTECTED);
    let back = guest.command(
        0,
        fill(1, 1),
        &[],
        &[super::guest::guest(BAR_BASE + 0xfff, 1)],
    );
    assert_eq!(back.status, Status::BAD_ADDRESS);
    assert_eq!(guest.bar_read(0xfff, 1), [0]);
}

#[test]
fn a_second_map_request_succeeds_without_mapping_twice() {
    let backend = Backend::start();
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    guest.map();
    assert_eq!(guest.maps(), 1);
}

#[test]
fn a_mapping_that_qemu_refuses_is_a_host_error_and_the_next_try_works() {
    let backend = Backend::start();
    let mut guest = Guest::connect(&backend.socket_path());
    guest.refuse_maps(true);
    let refused = guest.control(ControlOpcode::MAP_MEMORY, 0, 0);
    assert_eq!(refused.status, Status::HOST_ERROR);
    guest.refuse_maps(false);
    guest.map();
}

#[test]
fn request_and_completion_may_be_cut_into_descriptors_anywhere() {
    let backend = Backend::start();
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    guest.bar_write(0, b"123456789");
    let request = command(header(Opcode::CHECKSUM), &[device(0, 4), device(4, 5)], &[]);
    for cut in [1, 7, 31, 33] {
        let mut buffers = Vec::new();
        for part in request.chunks(cut) {
            let address = guest.place(part);
            buffers.push(readable(address, part.len()));
        }
        let parts: Vec<(u64, usize)> = [5, 1, 18]
            .into_iter()
            .map(|bytes| (guest.place(&[0xee; 32]), bytes))
            .collect();
        buffers.extend(
            parts
                .iter()
                .map(|&(address, bytes)| writable(address, bytes)),
        );
        let queue = &mut guest.queues[usize::from(COMMAND)];
        queue.submit(&buffers);
        let (_, bytes) = queue.wait_used();
        assert_eq!(bytes, 24);
        let mut completion = Vec::new();
        for &(address, bytes) in &parts {
            completion.extend(guest.read(address, bytes));
        }
        let expected = Completion {
            status: Status::OK,
            reserved: 0.into(),
            range_index: 0.into(),
            result: 0xe306_9283.into(),
            bytes_done: 9.into(),
        };
        assert_eq!(completion, expected.as_bytes(), "cut at {cut}");
    }
}

#[test]
fn a_chain_may_be_described_in_an_indirect_table() {
    let backend = Backend::start();
    let mut guest = Guest::connect(&backend.socket_path());
    let request = guest.place(&nop());
    let completion = guest.place(&[0xee; 24]);
    let table = guest.allocate(32);
    let queue = &mut guest.queues[usize::from(COMMAND)];
    queue.write_descriptor(table, 0, readable(request, 32), super::queue::NEXT, 1);
    queue.write_descriptor(table, 1, writable(completion, 24), 0, 0);
    let head = queue.chain(&[]);
    queue.write_descriptor(queue.descriptors(), head, readable(table, 32), INDIRECT, 0);
    queue.publish(head);
    queue.kick_if_wanted(1);
    assert_eq!(queue.wait_used(), (u32::from(head), 24));
    assert_eq!(guest.read(completion, 24), [0; 24]);
}

#[test]
fn commands_of_a_queue_complete_in_order_and_none_is_lost_over_many_wraps() {
    let backend = Backend::start();
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    let add = CommandHeader {
        width: 8.into(),
        repeat: 1.into(),
        arg0: 1.into(),
        ..header(Opcode::FETCH_ADD)
    };
    let request = command(add, &[], &[device(0, 8)]);
    let mut next = 0;
    for batch in (1..=100).cycle().take(700) {
        let pending: Vec<_> = (0..batch).map(|_| guest.post(COMMAND, &request)).collect();
        for pending in &pending {
            let completion = guest.wait(COMMAND, pending);
            assert_eq!(
                (completion.status, completion.result.get()),
                (Status::OK, next)
            );
            next += 1;
        }
    }
    assert_eq!(guest.bar_read(0, 8), next.to_le_bytes());
    assert!(next > 30_000, "the ring's index did not wrap often enough");
}

#[test]
fn queues_work_at_the_same_time_on_one_counter_and_no_addition_is_lost() {
    let backend = Backend::start();
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    let pending = [0, 1].map(|index| guest.post(COMMAND + index, &long_command(device(64, 8))));
    // The CPU takes part, through its own mapping.
    let own_additions = 100_000u64;
    thread::scope(|scope| {
        let guest = &guest;
        scope.spawn(move || {
            for _ in 0..own_additions {
                guest.bar_atomic(64, |word: &AtomicU64| word.fetch_add(1, Ordering::SeqCst));
            }
        });
    });
    for (index, pending) in (0..).zip(&pending) {
        assert_eq!(guest.wait(COMMAND + index, pending).status, Status::OK);
    }
    let sum = u64::from_le_bytes(guest.bar_read(64, 8).try_into().unwrap());
    assert_eq!(sum, 2 * u64::from(REPEAT_MAX) + own_additions);
}

#[test]
fn a_backend_that_had_work_and_has_none_takes_no_processor() {
    let backend = Backend::start_with(&["--memory-size=256M", "--engines=2"]);
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    let copy = command(
        header(Opcode::COPY),
        &[device(0, 4 << 20)],
        &[device(8 << 20, 4 << 20)],
    );
    // One after the other and as soon as possible, so that worker and engines look for more.
    for request in [nop(), copy] {
        for _ in 0..100 {
            assert_eq!(guest.request(COMMAND, &request).status, Status::OK);
        }
    }
    // Ends what was still to be done, and every look for more.
    thread::sleep(Duration::from_millis(20));
    let before = backend.processor_time();
    thread::sleep(Duration::from_millis(400));
    let spent = backend.processor_time() - before;
    // A single thread that looks for work takes half of the time at least, on a machine with two
    // processors and as much else to do.
    assert!(spent < Duration::from_millis(5), "{spent:?}");
}
