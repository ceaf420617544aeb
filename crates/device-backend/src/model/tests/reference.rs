// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Random commands on the device and on a plain byte vector must leave the same
//! bytes and give the same answers; random bytes must always have an answer.

use super::fixture::*;
use cdm_protocol::{COMPARE_EQUAL, CommandHeader, Opcode, Range, Space, Status};
use proptest::prelude::*;
use zerocopy::{FromZeros, IntoBytes};

/// Bytes of device memory in which ranges begin.
const ARENA: u64 = 0x3000;
/// Bytes of device memory that they reach.
const REACH: usize = ARENA as usize + 0x1000;
/// Driver's metadata in the middle of it.
const METADATA: std::ops::Range<u64> = 0x1800..0x1900;

/// Device memory and guest memory as a textbook would have them.
struct Reference {
    device: Vec<u8>,
    guest: Vec<u8>,
}

impl Reference {
    /// Memory behind a range, or why there is none.
    fn locate(&self, range: &Range) -> Result<(bool, usize, usize), Status> {
        let (address, bytes) = (range.address.get(), range.bytes.get());
        let is_device = range.space == Space::DEVICE;
        if is_device {
            if address + bytes > DEVICE_BYTES {
                return Err(Status::BAD_ADDRESS);
            }
            if address < METADATA.end && address + bytes > METADATA.start {
                return Err(Status::PROTECTED);
            }
            Ok((true, address as usize, bytes as usize))
        } else {
            if address < GUEST_BASE || address + bytes > GUEST_END {
                return Err(Status::BAD_ADDRESS);
            }
            Ok((false, (address - GUEST_BASE) as usize, bytes as usize))
        }
    }

    /// Every byte of a list, as (is device, offset).
    fn bytes_of(&self, list: &[Range]) -> Result<Vec<(bool, usize)>, Status> {
        let mut all = Vec::new();
        for range in list {
            let (is_device, offset, bytes) = self.locate(range)?;
            all.extend((offset..offset + bytes).map(|offset| (is_device, offset)));
        }
        Ok(all)
    }

    fn get(&self, (is_device, offset): (bool, usize)) -> u8 {
        if is_device {
            self.device[offset]
        } else {
            self.guest[offset]
        }
    }

    fn set(&mut self, (is_device, offset): (bool, usize), byte: u8) {
        let memory = if is_device {
            &mut self.device
        } else {
            &mut self.guest
        };
        memory[offset] = byte;
    }

    /// Status and result of a command of the right form.
    fn run(&mut self, header: &CommandHeader, src: &[Range], dst: &[Range]) -> (Status, u64) {
        match self.try_run(header, src, dst) {
            Ok(result) => (Status::OK, result),
            Err(status) => (status, 0),
        }
    }

    fn try_run(
        &mut self,
        header: &CommandHeader,
        src: &[Range],
        dst: &[Range],
    ) -> Result<u64, Status> {
        let total = |list: &[Range]| list.iter().map(|range| range.bytes.get()).sum::<u64>();
        let width = header.width.get() as usize;
        let arg0 = header.arg0.get();
        match header.opcode {
            Opcode::COPY | Opcode::COMPARE if total(src) != total(dst) => {
                return Err(Status::LENGTH_MISMATCH);
            }
            Opcode::FILL if !total(dst).is_multiple_of(width as u64) => {
                return Err(Status::MISALIGNED);
            }
            Opcode::FETCH_ADD | Opcode::COMPARE_SWAP => {
                let word = dst[0];
                if word.bytes.get() != width as u64
                    || !word.address.get().is_multiple_of(width as u64)
                {
                    return Err(Status::MISALIGNED);
                }
            }
            _ => {}
        }
        let src = self.bytes_of(src)?;
        let dst = self.bytes_of(dst)?;
        Ok(match header.opcode {
            Opcode::FILL => {
                let element = arg0.to_le_bytes();
                for (place, byte) in dst.into_iter().zip(element[..width].iter().cycle()) {
                    self.set(place, *byte);
                }
                0
            }
            Opcode::COPY => {
                let bytes: Vec<u8> = src.into_iter().map(|place| self.get(place)).collect();
                for (place, byte) in dst.into_iter().zip(bytes) {
                    self.set(place, byte);
                }
                0
            }
            Opcode::CHECKSUM => {
                let mut crc = !(arg0 as u32);
                for place in src {
                    crc ^= u32::from(self.get(place));
                    for _ in 0..8 {
                        // Castagnoli's polynomial, reflected.
                        crc = if crc & 1 == 1 {
                            crc >> 1 ^ 0x82f6_3b78
                        } else {
                            crc >> 1
                        };
                    }
                }
                u64::from(!crc)
            }
            Opcode::COMPARE => src
                .into_iter()
                .zip(dst)
                .position(|(left, right)| self.get(left) != self.get(right))
                .map_or(COMPARE_EQUAL, |offset| offset as u64),
            Opcode::FETCH_ADD => {
                let mut before = 0;
                for _ in 0..header.repeat.get() {
                    before = self.word(&dst);
                    self.set_word(&dst, before.wrapping_add(arg0));
                }
                before
            }
            Opcode::COMPARE_SWAP => {
                let mask = u64::MAX >> (64 - 8 * width);
                let found = self.word(&dst);
                if found == arg0 & mask {
                    self.set_word(&dst, header.arg1.get());
                }
                found
            }
            _ => 0,
        })
    }

    fn word(&self, places: &[(bool, usize)]) -> u64 {
        let bytes = places.iter().rev().map(|&place| self.get(place));
        bytes.fold(0, |word, byte| word << 8 | u64::from(byte))
    }

    fn set_word(&mut self, places: &[(bool, usize)], word: u64) {
        for (&place, byte) in places.iter().zip(word.to_le_bytes()) {
            self.set(place, byte);
        }
    }
}

fn any_range() -> impl Strategy<Value = Range> {
    prop_oneof![
        4 => (0..ARENA - 400, 1u64..300).prop_map(|(address, bytes)| device(address, bytes)),
        3 => (GUEST_BASE..GUEST_END - 400, 1u64..300).prop_map(|(address, bytes)| guest(address, bytes)),
        1 => (GUEST_END - 100..GUEST_END, 1u64..150).prop_map(|(address, bytes)| guest(address, bytes)),
        1 => (DEVICE_BYTES..u64::MAX - 2000, 11u64..20).prop_map(|(address, bytes)| device(address, bytes)),
    ]
}

/// Cuts a destination so that it is as long as the source.
fn fit(src: &[Range], mut dst: Vec<Range>) -> Vec<Range> {
    let total: u64 = src.iter().map(|range| range.bytes.get()).sum();
    let mut left = total;
    for range in &mut dst {
        let bytes = range.bytes.get().min(left);
        range.bytes = bytes.into();
        left -= bytes;
    }
    if let Some(last) = dst.last_mut() {
        last.bytes = (last.bytes.get() + left).into();
    }
    dst.retain(|range| range.bytes.get() > 0);
    dst
}

fn any_lists() -> impl Strategy<Value = (Vec<Range>, Vec<Range>)> {
    let list = || prop::collection::vec(any_range(), 1..5);
    (list(), list(), prop::bool::weighted(0.9)).prop_map(|(src, dst, fits)| {
        let dst = if fits { fit(&src, dst) } else { dst };
        (src, dst)
    })
}

fn any_word(width: u16) -> impl Strategy<Value = Range> {
    let width = u64::from(width);
    (any::<bool>(), 0..ARENA / width, prop::bool::weighted(0.1)).prop_map(
        move |(on_device, word, is_odd)| {
            let address = word * width + u64::from(is_odd);
            if on_device {
                device(address, width)
            } else {
                guest(GUEST_BASE + address, width)
            }
        },
    )
}

type AnyCommand = (CommandHeader, Vec<Range>, Vec<Range>);

fn any_command() -> impl Strategy<Value = AnyCommand> {
    let small = prop_oneof![0u64..3, any::<u64>()];
    let fill = (
        any_lists(),
        prop_oneof![Just(1u16), Just(2), Just(4), Just(8)],
        any::<u64>(),
    )
        .prop_map(|((_, dst), width, arg0)| {
            let header = CommandHeader {
                width: width.into(),
                arg0: arg0.into(),
                ..header(Opcode::FILL)
            };
            (header, vec![], dst)
        });
    let copy = any_lists().prop_map(|(src, dst)| (header(Opcode::COPY), src, dst));
    let compare = any_lists().prop_map(|(src, dst)| (header(Opcode::COMPARE), src, dst));
    let checksum = (any_lists(), any::<u32>()).prop_map(|((src, _), initial)| {
        let header = CommandHeader {
            arg0: u64::from(initial).into(),
            ..header(Opcode::CHECKSUM)
        };
        (header, src, vec![])
    });
    let width = prop_oneof![Just(4u16), Just(8)];
    let atomic = width.prop_flat_map(move |width| {
        (
            any_word(width),
            small.clone(),
            small.clone(),
            1u32..20,
            any::<bool>(),
        )
            .prop_map(move |(word, arg0, arg1, repeat, is_add)| {
                let mut command = CommandHeader {
                    width: width.into(),
                    arg0: arg0.into(),
                    ..CommandHeader::new_zeroed()
                };
                if is_add {
                    command.opcode = Opcode::FETCH_ADD;
                    command.repeat = repeat.into();
                } else {
                    command.opcode = Opcode::COMPARE_SWAP;
                    command.arg1 = arg1.into();
                }
                (command, vec![], vec![word])
            })
    });
    prop_oneof![fill, copy, compare, checksum, atomic]
}

/// Whether a list reads what another writes: there the specification leaves the bytes open.
fn overlaps(reference: &Reference, src: &[Range], dst: &[Range]) -> bool {
    let Ok(mut places) = reference.bytes_of(&[src, dst].concat()) else {
        return false;
    };
    let count = places.len();
    places.sort_unstable();
    places.dedup();
    places.len() != count
}

proptest! {
    #![proptest_config(ProptestConfig::with_cases(200))]

    #[test]
    fn commands_do_what_a_plain_byte_vector_does(
        commands in prop::collection::vec(any_command(), 1..12),
        seed in prop::collection::vec(any::<u8>(), 1..50),
    ) {
        let fixture = Fixture::new();
        let noise: Vec<u8> = seed.iter().copied().cycle().take(REACH).collect();
        fixture.poke(0, &noise);
        fixture.control_status(cdm_protocol::ControlOpcode::SET_METADATA, METADATA.start, METADATA.end - METADATA.start);
        let mut reference = Reference {
            device: noise,
            guest: vec![0; (GUEST_END - GUEST_BASE) as usize],
        };
        for (header, src, dst) in commands {
            if header.opcode == Opcode::COPY && overlaps(&reference, &src, &dst) {
                continue;
            }
            let completion = fixture.run(header, &src, &dst);
            let expected = reference.run(&header, &src, &dst);
            prop_assert_eq!((completion.status, completion.result.get()), expected, "{:?}", header);
        }
        prop_assert_eq!(fixture.peek(0, REACH), reference.device);
        let guest = fixture.peek_guest(GUEST_BASE, (GUEST_END - GUEST_BASE) as usize);
        prop_assert_eq!(guest, reference.guest);
    }

    #[test]
    fn any_bytes_have_an_answer_and_keep_out_of_the_metadata(
        opcode in 0u16..16,
        counts in (0u16..4, 0u16..4),
        tail in prop::collection::vec(prop_oneof![3 => Just(0u8), 1 => any::<u8>(), 1 => 0u8..3], 0..150),
    ) {
        let fixture = Fixture::new();
        fixture.control_status(cdm_protocol::ControlOpcode::SET_METADATA, METADATA.start, METADATA.end - METADATA.start);
        let header = CommandHeader {
            num_src: counts.0.into(),
            num_dst: counts.1.into(),
            ..header(Opcode(opcode.into()))
        };
        let mut bytes = header.as_bytes()[..8].to_vec();
        bytes.extend(tail);
        let completion = fixture.run_bytes(&bytes);
        prop_assert!(completion.status.name().is_some());
        prop_assert_eq!(completion.reserved.get(), 0);
        let metadata = fixture.peek(METADATA.start, (METADATA.end - METADATA.start) as usize);
        prop_assert!(metadata.iter().all(|&byte| byte == 0));
    }
}
