// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Descriptor chains: the input is guest memory, rings and all, as far as it goes.
#![no_main]

use cdm_protocol::{QUEUE_CONTROL, QUEUE_FIRST_COMMAND};
use fuzz_rig::{Guest, rings};
use libfuzzer_sys::fuzz_target;

/// Puts the input where it matters: a piece of it in each of the rings, the rest behind them.
fn image(input: &[u8]) -> Vec<u8> {
    let mut image = vec![0; fuzz_rig::GUEST_BYTES];
    let mut rest = input;
    for queue in 0..=QUEUE_FIRST_COMMAND {
        let [descriptors, avail, _] = rings(queue);
        for (place, bytes) in [(descriptors, 256), (avail, 64)] {
            let (piece, behind) = rest.split_at(rest.len().min(bytes));
            let place = place as usize;
            image[place..place + piece.len()].copy_from_slice(piece);
            rest = behind;
        }
    }
    let room = rings(QUEUE_FIRST_COMMAND + 1)[0] as usize;
    let count = rest.len().min(image.len() - room);
    image[room..room + count].copy_from_slice(&rest[..count]);
    image
}

fuzz_target!(|input: &[u8]| {
    let atomics = fuzz_rig::atomics_for(input);
    let guest = Guest::connect(&image(input), true, atomics);
    guest.kick(QUEUE_FIRST_COMMAND);
    guest.kick(QUEUE_CONTROL);
    guest.kick(QUEUE_FIRST_COMMAND);
    // The forgotten lines of this guest's RESETs must not reach the next one.
    for queue in fuzz_rig::parts(atomics).device.queues() {
        queue.forget_line();
    }
});
