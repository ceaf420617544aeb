// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands: the input is one request in a chain that is as it should be. It must come back,
//! with a completion that the specification knows, and nothing around that is written.
#![no_main]

use cdm_protocol::{COMPARE_EQUAL, Completion, QUEUE_FIRST_COMMAND, Status};
use fuzz_rig::{GUEST_BYTES, Guest, rings};
use libfuzzer_sys::fuzz_target;
use zerocopy::FromBytes;

/// Where request and completion are; what commands find to work on is all of the memory.
const REQUEST: usize = 0xa000;
const COMPLETION: usize = 0x9100;

/// How a command ends that was not refused.
const HAVE_BEGUN: [Status; 5] = [
    Status::OK,
    Status::CANCELLED,
    Status::BAD_POINTER,
    Status::STEP_LIMIT,
    // There is no event queue with a buffer.
    Status::PAGE_QUEUE_FULL,
];

fn descriptor(address: usize, bytes: usize, flags: u16, next: u16) -> Vec<u8> {
    let mut descriptor = (address as u64).to_le_bytes().to_vec();
    descriptor.extend((bytes as u32).to_le_bytes());
    descriptor.extend(flags.to_le_bytes());
    descriptor.extend(next.to_le_bytes());
    descriptor
}

fuzz_target!(|input: &[u8]| {
    let request = &input[..input.len().min(GUEST_BYTES - REQUEST)];
    let [descriptors, avail, used] = rings(QUEUE_FIRST_COMMAND).map(|place| place as usize);
    let mut image = vec![0; GUEST_BYTES];
    let mut put = |place: usize, bytes: &[u8]| {
        image[place..place + bytes.len()].copy_from_slice(bytes);
    };
    put(descriptors, &descriptor(REQUEST, request.len(), 1, 1));
    put(descriptors + 16, &descriptor(COMPLETION, 24, 2, 0));
    put(avail + 2, &1u16.to_le_bytes());
    put(REQUEST, request);
    let atomics = fuzz_rig::atomics_for(input);
    let guest = Guest::connect(&image, true, atomics);
    guest.kick(QUEUE_FIRST_COMMAND);

    let mut index = [0; 2];
    guest.read(used as u64 + 2, &mut index);
    let mut bytes = [0; 24];
    guest.read(COMPLETION as u64, &mut bytes);
    for queue in fuzz_rig::parts(atomics).device.queues() {
        queue.forget_line();
    }
    // A guest that had the device overwrite its own ring, or was hung up, has no claim.
    if index != [1, 0] || has_guest_destination(request) {
        return;
    }
    let completion = Completion::read_from_bytes(&bytes).expect("24 bytes");
    assert!(completion.status.name().is_some(), "{completion:?}");
    assert_eq!(completion.reserved.get(), 0);
    if !HAVE_BEGUN.contains(&completion.status) {
        assert_eq!(
            (completion.result.get(), completion.bytes_done.get()),
            (0, 0)
        );
    }
    assert!(completion.bytes_done.get() <= cdm_protocol::TRANSFER_BYTES_MAX.max(COMPARE_EQUAL));
});

/// Whether a range names guest memory, so that a command may have written anywhere there.
fn has_guest_destination(request: &[u8]) -> bool {
    request
        .get(32..)
        .unwrap_or_default()
        .chunks(24)
        .any(|range| range.starts_with(&[2, 0]))
}
