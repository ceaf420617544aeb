// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Golden bytes: what a peer written from the specification alone would send.

mod header;
mod spec;

use crate::*;
use zerocopy::{FromBytes, FromZeros, IntoBytes};

#[test]
fn command_header_bytes_follow_the_specification() {
    let header = CommandHeader {
        opcode: Opcode::FETCH_ADD,
        num_dst: 1.into(),
        width: 8.into(),
        repeat: 0x0102_0304.into(),
        arg0: 0x1122_3344_5566_7788.into(),
        ..CommandHeader::new_zeroed()
    };
    assert_eq!(
        header.as_bytes(),
        [
            6, 0, 0, 0, 0, 0, 1, 0, 8, 0, 0, 0, 4, 3, 2, 1, //
            0x88, 0x77, 0x66, 0x55, 0x44, 0x33, 0x22, 0x11, 0, 0, 0, 0, 0, 0, 0, 0,
        ]
    );
}

#[test]
fn range_bytes_follow_the_specification() {
    let range = Range {
        space: Space::GUEST,
        reserved: 0.into(),
        pasid: 0.into(),
        address: 0x1000.into(),
        bytes: 0x20.into(),
    };
    assert_eq!(
        range.as_bytes(),
        [
            2, 0, 0, 0, 0, 0, 0, 0, 0, 0x10, 0, 0, 0, 0, 0, 0, 0x20, 0, 0, 0, 0, 0, 0, 0
        ]
    );
    let range = Range {
        space: Space::PROCESS,
        pasid: 0x0a_0b0c.into(),
        ..range
    };
    assert_eq!(range.as_bytes()[..8], [3, 0, 0, 0, 0x0c, 0x0b, 0x0a, 0]);
}

#[test]
fn page_request_is_read_from_the_bytes_of_the_specification() {
    let bytes = [
        2, 0, 3, 0, 9, 0, 0, 0, 0, 0x10, 0xab, 0, 0, 0x7f, 0, 0, //
        5, 0, 0, 0, 0, 2, 1, 0, 0, 0, 0, 0, 0, 0, 0, 0,
    ];
    let request = PageRequest::read_from_bytes(&bytes).unwrap();
    assert_eq!(request.kind, EventKind::PAGE_REQUEST);
    assert_eq!((request.queue.get(), request.pasid.get()), (3, 9));
    assert_eq!(request.address.get(), 0x7f00_00ab_1000);
    assert_eq!((request.id.get(), request.pages.get()), (5, 512));
    assert_eq!(request.flags.get(), PAGE_REQUEST_WRITE);
}

#[test]
fn page_entry_bytes_follow_the_specification() {
    let large = PageEntry::LARGE | PageEntry::WRITABLE | PageEntry::DEVICE;
    let entry = PageEntry((0x1234_5660_0000 | large).into());
    assert_eq!(entry.as_bytes(), [7, 0, 0x60, 0x56, 0x34, 0x12, 0, 0]);
    let status = u64::from(Status::UNMAPPED.get()) << PageEntry::STATUS_SHIFT;
    let entry = PageEntry((status | PageEntry::REFUSED).into());
    assert_eq!(entry.as_bytes(), [8, 0, 23, 0, 0, 0, 0, 0]);
}

#[test]
fn completion_is_read_from_the_bytes_of_the_specification() {
    let mut bytes = [0u8; 24];
    bytes[0] = 7;
    bytes[4] = 3;
    let completion = Completion::read_from_bytes(&bytes).unwrap();
    assert_eq!(completion.status, Status::PROTECTED);
    assert_eq!(completion.range_index.get(), 3);
}

#[test]
fn unknown_status_is_kept_and_shown_as_its_number() {
    extern crate std;
    let status = Status(0x1234.into());
    assert_eq!(status.name(), None);
    assert_eq!(std::format!("{status:?}"), "Status(0x1234)");
    assert_eq!(std::format!("{:?}", Status::PROTECTED), "PROTECTED");
}

#[test]
fn config_space_fits_what_vhost_user_can_carry() {
    // VHOST_USER_MAX_CONFIG_SIZE of QEMU's hw/virtio/vhost-user.c.
    assert!(size_of::<Config>() <= 256);
}
