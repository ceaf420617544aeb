// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest that writes whatever it likes into its rings: the backend lives, and the
//! next guest is served.

use super::guest::*;
use super::process::{Backend, wait_until};
use super::queue::{Buffer, SIZE};
use cdm_protocol::*;
use proptest::prelude::*;
use proptest::test_runner::{Config as RunnerConfig, TestRunner};

/// One thing a hostile guest does.
#[derive(Clone, Debug)]
enum Mischief {
    Descriptor {
        queue: usize,
        index: u16,
        address: u64,
        bytes: u32,
        flags: u16,
        next: u16,
    },
    Memory {
        address: u64,
        bytes: Vec<u8>,
    },
    Publish {
        queue: usize,
        head: u16,
    },
    AvailIndex {
        queue: usize,
        index: u16,
    },
    Kick {
        queue: usize,
    },
}

/// Addresses near everything that matters.
fn any_address() -> impl Strategy<Value = u64> {
    let base = prop_oneof![
        Just(0u64),
        Just(0x1_0000),
        Just(0x2_0000),
        Just(0x3_0000),
        Just(SCRATCH),
        Just(LOW_BYTES),
        Just(HIGH_BASE),
        Just(HIGH_BASE + HIGH_BYTES),
        Just(BAR_BASE),
        Just(u64::MAX - 0x1000),
    ];
    (base, 0u64..0x1000).prop_map(|(base, offset)| base.wrapping_add(offset))
}

/// Bytes that look like requests often enough to get far.
fn any_request() -> impl Strategy<Value = Vec<u8>> {
    let word = prop_oneof![3 => Just(0u16), 2 => 0u16..16, 1 => any::<u16>()];
    prop::collection::vec(word, 12..60)
        .prop_map(|words| words.into_iter().flat_map(u16::to_le_bytes).collect())
}

fn any_mischief() -> impl Strategy<Value = Mischief> {
    let queue = 0usize..4;
    prop_oneof![
        4 => (queue.clone(), 0..SIZE, any_address(), prop_oneof![0u32..100, any::<u32>()], 0u16..8, 0..SIZE + 2)
            .prop_map(|(queue, index, address, bytes, flags, next)| {
                Mischief::Descriptor { queue, index, address, bytes, flags, next }
            }),
        2 => (any_address(), any_request()).prop_map(|(address, bytes)| Mischief::Memory { address, bytes }),
        4 => (queue.clone(), prop_oneof![9 => 0..SIZE, 1 => any::<u16>()])
            .prop_map(|(queue, head)| Mischief::Publish { queue, head }),
        1 => (queue.clone(), any::<u16>()).prop_map(|(queue, index)| Mischief::AvailIndex { queue, index }),
        3 => queue.prop_map(|queue| Mischief::Kick { queue }),
    ]
}

fn commit(guest: &mut Guest, mischief: &Mischief) {
    match mischief {
        Mischief::Descriptor {
            queue,
            index,
            address,
            bytes,
            flags,
            next,
        } => {
            let buffer = Buffer {
                address: *address,
                bytes: *bytes,
                is_writable: false,
            };
            let queue = &guest.queues[*queue];
            queue.write_descriptor(queue.descriptors(), *index, buffer, *flags, *next);
        }
        Mischief::Memory { address, bytes } => {
            use vm_memory::{Bytes, GuestAddress};
            // Where there is no memory, there is nothing to spoil.
            let _ = guest.memory.write(bytes, GuestAddress(*address));
        }
        Mischief::Publish { queue, head } => guest.queues[*queue].publish(*head),
        Mischief::AvailIndex { queue, index } => guest.queues[*queue].set_avail_index(*index),
        Mischief::Kick { queue } => guest.queues[*queue].kick.write(1).unwrap(),
    }
}

#[test]
fn random_rings_never_end_the_backend_nor_the_connection() {
    // The runner is made by hand to keep one backend for all cases: it must outlive each.
    let mut backend = Backend::start();
    let path = backend.socket_path();
    let mut runner = TestRunner::new(RunnerConfig {
        cases: 60,
        failure_persistence: None,
        // A failure is a wait that times out: shrinking would take hours.
        max_shrink_iters: 0,
        ..RunnerConfig::default()
    });
    let script = prop::collection::vec(any_mischief(), 1..120);
    let result = runner.run(&script, |script| {
        let mut guest = Guest::connect(&path);
        guest.map();
        for mischief in &script {
            commit(&mut guest, mischief);
        }
        // A decent driver takes over in the same guest: what it asks must be answered.
        guest.virtio_reset();
        guest.map();
        for index in 0..2 {
            let completion = guest.request(QUEUE_FIRST_COMMAND + index, &nop());
            prop_assert_eq!(completion.status, Status::OK);
        }
        Ok(())
    });
    if let Err(error) = result {
        panic!("{error}");
    }
    assert!(backend.is_alive());
    let (status, log) = backend.end_by("TERM");
    assert!(status.success(), "{log}");
    assert!(!log.contains("panicked"), "{log}");
}

#[test]
fn a_guest_that_dies_in_the_middle_of_everything_leaves_no_thread_and_no_descriptor() {
    let mut backend = Backend::start();
    // The one that watches for signals and the one that serves.
    let threads = 2;
    wait_until("the backend serves", || backend.threads() == threads);
    let descriptors = backend.descriptors();
    for _ in 0..20 {
        let mut guest = Guest::connect(&backend.socket_path());
        guest.map();
        for _ in 0..4 {
            guest.post(QUEUE_FIRST_COMMAND, &long_command(device(0, 8)));
        }
        guest.hang_up();
        drop(guest);
        wait_until("the backend lets go of the guest", || {
            backend.threads() == threads
        });
    }
    wait_until("no descriptor is left", || {
        backend.descriptors() == descriptors
    });
    assert!(backend.is_alive());
}

#[test]
fn rings_that_refill_themselves_stop_with_the_guest_and_keep_no_other_out() {
    let backend = Backend::start();
    for queue in 0..4 {
        let mut guest = Guest::connect(&backend.socket_path());
        guest.map();
        guest.lay_rings_over_each_other(queue);
        guest.queues[queue].kick.write(1).unwrap();
        if queue == usize::from(QUEUE_EVENT) {
            // An event that looks for a buffer in it.
            let queue = &mut guest.queues[usize::from(QUEUE_FIRST_COMMAND)];
            queue.submit(&[]);
        }
        std::thread::sleep(std::time::Duration::from_millis(20));
        drop(guest);
        Guest::connect(&backend.socket_path()).map();
    }
}

#[test]
fn a_peer_that_speaks_no_vhost_user_does_not_keep_the_next_one_out() {
    use std::io::Write;
    let backend = Backend::start();
    let mut stranger = std::os::unix::net::UnixStream::connect(backend.socket_path()).unwrap();
    stranger.write_all(b"GET / HTTP/1.1\r\n\r\n").unwrap();
    drop(stranger);
    // One that says nothing at all.
    drop(std::os::unix::net::UnixStream::connect(backend.socket_path()).unwrap());
    Guest::connect(&backend.socket_path()).map();
}
