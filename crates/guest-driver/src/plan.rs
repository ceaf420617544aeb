// SPDX-License-Identifier: GPL-2.0

//! From a command on a process's memory to commands that the device takes. Pure logic.
//!
//! The memory of an operand is a list of [`Segment`]s, neighbours merged. The device
//! takes at most [`wire::RANGES_MAX`] ranges at a time, so a [`Job`] may need several
//! commands; it carries checksum, comparison and byte count from one to the next, so
//! that the caller sees one command with one answer.

use crate::wire::{self, CommandHeader, Completion, Opcode, Range, Space, Status};

/// A piece of an operand that is contiguous for the device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Segment {
    /// What `address` counts in.
    pub space: Space,
    /// First byte.
    pub address: u64,
    /// Length in bytes, not zero.
    pub bytes: u64,
}

impl Segment {
    /// Appends `next` to the segment if it follows it directly; says whether it did.
    pub fn absorb(&mut self, next: &Segment) -> bool {
        let follows =
            self.space == next.space && self.address.checked_add(self.bytes) == Some(next.address);
        if follows {
            self.bytes += next.bytes;
        }
        follows
    }
}

/// A command as the caller gives it; an address of zero means that there is no such operand.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Number of the operation.
    pub opcode: u32,
    /// Address of the first source byte.
    pub source: u64,
    /// Address of the first destination byte.
    pub destination: u64,
    /// Bytes of each operand.
    pub length: u64,
    /// Bytes of an element.
    pub width: u32,
    /// How often.
    pub repeat: u32,
    /// First argument.
    pub arg0: u64,
    /// Second argument.
    pub arg1: u64,
}

impl Request {
    /// Whether the ranges are ranges: not empty where there is an operand, and not wrapping.
    pub fn is_valid(&self) -> bool {
        let operands = [self.source, self.destination];
        if operands == [0, 0] {
            return self.length == 0;
        }
        self.length != 0
            && operands
                .iter()
                .all(|address| address.checked_add(self.length).is_some())
    }

    /// Whether the device stores to the destination. An operation that the driver does
    /// not know is taken to do so, which asks for the stronger right.
    pub fn writes_destination(&self) -> bool {
        self.opcode != u32::from(Opcode::COMPARE.get())
    }
}

/// What the caller gets back.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Outcome.
    pub status: Status,
    /// Result of the operation.
    pub result: u64,
    /// Bytes that the device processed.
    pub bytes_done: u64,
}

impl Answer {
    /// The answer that the device gives to a request with that fault.
    pub fn refusal(status: Status) -> Self {
        Self {
            status,
            result: 0,
            bytes_done: 0,
        }
    }
}

/// A place in a list of segments.
#[derive(Clone, Copy, Debug, Default)]
struct Cursor {
    index: usize,
    offset: u64,
}

impl Cursor {
    /// Bytes from here to the end of the segment; zero at the end of the list.
    fn left(&self, list: &[Segment]) -> u64 {
        list.get(self.index)
            .map_or(0, |segment| segment.bytes - self.offset)
    }

    /// Moves on within the segment, or to the start of the next one.
    fn advance(&mut self, list: &[Segment], bytes: u64) {
        self.offset += bytes;
        if self.offset == list[self.index].bytes {
            *self = Self {
                index: self.index + 1,
                offset: 0,
            };
        }
    }

    /// Emits ranges for the next `bytes` bytes and moves past them; how many ranges.
    fn emit<E>(
        &mut self,
        list: &[Segment],
        mut bytes: u64,
        sink: &mut impl FnMut(Range) -> Result<(), E>,
    ) -> Result<u16, E> {
        let mut count = 0;
        while bytes > 0 && !list.is_empty() {
            let segment = &list[self.index];
            let piece = self.left(list).min(bytes);
            sink(Range {
                space: segment.space,
                reserved: Default::default(),
                address: (segment.address + self.offset).into(),
                bytes: piece.into(),
            })?;
            self.advance(list, piece);
            bytes -= piece;
            count += 1;
        }
        Ok(count)
    }
}

/// One command of a job.
#[derive(Clone, Copy, Debug)]
pub struct Step {
    /// What goes to the device before the ranges.
    pub header: CommandHeader,
    /// Bytes of each operand that it covers.
    pub bytes: u64,
}

/// What to do next with a [`Job`].
#[derive(Clone, Copy, Debug)]
pub enum Next {
    /// Give the device this command, with the ranges that the sink got.
    Submit(Step),
    /// The job has its answer.
    Done(Answer),
}

/// A request on its way through the device.
///
/// # Invariants
///
/// `source` and `destination` stand `done` bytes into their lists.
#[derive(Clone, Copy, Debug)]
pub struct Job {
    opcode: Opcode,
    width: u16,
    repeat: u32,
    arg0: u64,
    arg1: u64,
    length: u64,
    source: Cursor,
    destination: Cursor,
    done: u64,
    answer: Option<Answer>,
}

impl Job {
    /// A job for a valid request.
    ///
    /// A value that does not fit its field of the wire, or an operand that is longer
    /// than a command can carry, has its answer at once: the one that the device would
    /// give.
    pub fn new(request: &Request) -> Self {
        let refusal = if request.opcode > u32::from(u16::MAX) {
            Some(Status::UNKNOWN_OPCODE)
        } else if request.width > u32::from(u16::MAX) {
            Some(Status::BAD_WIDTH)
        } else if request.length > wire::TRANSFER_BYTES_MAX {
            Some(Status::TOO_LONG)
        } else {
            None
        };
        Self {
            opcode: Opcode((request.opcode as u16).into()),
            width: request.width as u16,
            repeat: request.repeat,
            arg0: request.arg0,
            arg1: request.arg1,
            length: request.length,
            source: Cursor::default(),
            destination: Cursor::default(),
            done: 0,
            answer: refusal.map(Answer::refusal),
        }
    }

    /// The answer, if there is one already.
    pub fn answer(&self) -> Option<Answer> {
        self.answer
    }

    /// The next command; its ranges, source first, go to `sink`.
    ///
    /// The lists cover the request's operands and are the same in every call; a list is
    /// empty where there is no operand.
    pub fn next<E>(
        &mut self,
        source: &[Segment],
        destination: &[Segment],
        mut sink: impl FnMut(Range) -> Result<(), E>,
    ) -> Result<Next, E> {
        if let Some(answer) = self.answer {
            return Ok(Next::Done(answer));
        }
        let mut bytes = self.measure(source, destination);
        if self.width != 0 && self.done + bytes < self.length {
            // A command takes whole elements. If they do not come out even at the end,
            // the device would refuse the last command only, with the others done.
            let width = u64::from(self.width);
            if !self.length.is_multiple_of(width) {
                return Ok(Next::Done(
                    *self.answer.insert(Answer::refusal(Status::MISALIGNED)),
                ));
            }
            bytes -= bytes % width;
        }
        let num_src = self.source.emit(source, bytes, &mut sink)?;
        let num_dst = self.destination.emit(destination, bytes, &mut sink)?;
        let header = CommandHeader {
            opcode: self.opcode,
            flags: 0.into(),
            num_src: num_src.into(),
            num_dst: num_dst.into(),
            width: self.width.into(),
            reserved: 0.into(),
            repeat: self.repeat.into(),
            arg0: self.arg0.into(),
            arg1: self.arg1.into(),
        };
        Ok(Next::Submit(Step { header, bytes }))
    }

    /// Takes in the completion of a step.
    pub fn complete(&mut self, step: &Step, completion: &Completion) {
        let before = self.done;
        self.done += step.bytes;
        let mut answer = Answer {
            status: completion.status,
            result: completion.result.get(),
            bytes_done: before + completion.bytes_done.get(),
        };
        let mut is_last = self.done == self.length || completion.status != Status::OK;
        if completion.status == Status::OK {
            if self.opcode == Opcode::CHECKSUM {
                self.arg0 = answer.result;
            } else if self.opcode == Opcode::COMPARE && answer.result != wire::COMPARE_EQUAL {
                answer.result += before;
                is_last = true;
            }
        }
        if is_last {
            self.answer = Some(answer);
        }
    }

    /// Bytes that the next command can cover with the ranges that it may have.
    fn measure(&self, source: &[Segment], destination: &[Segment]) -> u64 {
        let (mut src, mut dst) = (self.source, self.destination);
        let mut ranges = 0;
        let (mut src_open, mut dst_open) = (source.is_empty(), destination.is_empty());
        let mut bytes = 0;
        while self.done + bytes < self.length {
            ranges += usize::from(!src_open) + usize::from(!dst_open);
            if ranges > wire::RANGES_MAX {
                break;
            }

            let mut piece = self.length - self.done - bytes;
            if !source.is_empty() {
                piece = piece.min(src.left(source));
            }
            if !destination.is_empty() {
                piece = piece.min(dst.left(destination));
            }
            if !source.is_empty() {
                src.advance(source, piece);
                src_open = src.offset != 0;
            }
            if !destination.is_empty() {
                dst.advance(destination, piece);
                dst_open = dst.offset != 0;
            }
            bytes += piece;
        }
        bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    /// A device on one flat memory, with a checksum that is easy to follow.
    struct Model {
        memory: Vec<u8>,
        commands: usize,
    }

    impl Model {
        fn gather(&self, ranges: &[Range]) -> Vec<u8> {
            ranges
                .iter()
                .flat_map(|range| {
                    let first = range.address.get() as usize;
                    self.memory[first..first + range.bytes.get() as usize].to_vec()
                })
                .collect()
        }

        fn scatter(&mut self, ranges: &[Range], mut bytes: &[u8]) {
            for range in ranges {
                let first = range.address.get() as usize;
                let (now, later) = bytes.split_at(range.bytes.get() as usize);
                self.memory[first..first + now.len()].copy_from_slice(now);
                bytes = later;
            }
            assert!(bytes.is_empty(), "lists differ in length");
        }

        fn run(&mut self, header: &CommandHeader, ranges: &[Range]) -> Completion {
            self.commands += 1;
            assert!(ranges.len() <= wire::RANGES_MAX);
            let (src, dst) = ranges.split_at(header.num_src.get() as usize);
            assert_eq!(dst.len(), header.num_dst.get() as usize);
            assert!(ranges.iter().all(|range| range.bytes.get() > 0));
            if header.width.get() != 0 {
                let total: u64 = ranges.iter().map(|range| range.bytes.get()).sum();
                assert_eq!(total % u64::from(header.width.get()), 0);
            }
            let source = self.gather(src);
            let bytes = |list: &[Range]| list.iter().map(|range| range.bytes.get()).sum::<u64>();
            let mut result = 0;
            let mut bytes_done = bytes(dst).max(bytes(src));
            match header.opcode {
                Opcode::FILL => {
                    let width = header.width.get() as usize;
                    let element = &header.arg0.get().to_le_bytes()[..width];
                    let fill: Vec<u8> = element
                        .iter()
                        .copied()
                        .cycle()
                        .take(bytes(dst) as usize)
                        .collect();
                    self.scatter(dst, &fill);
                }
                Opcode::COPY => self.scatter(dst, &source),
                Opcode::CHECKSUM => {
                    result = checksum(header.arg0.get(), &source);
                }
                Opcode::COMPARE => {
                    let other = self.gather(dst);
                    assert_eq!(source.len(), other.len());
                    result = wire::COMPARE_EQUAL;
                    if let Some(at) = source.iter().zip(&other).position(|(a, b)| a != b) {
                        result = at as u64;
                        bytes_done = at as u64;
                    }
                }
                _ => {}
            }
            Completion {
                status: Status::OK,
                reserved: 0.into(),
                range_index: 0.into(),
                result: result.into(),
                bytes_done: bytes_done.into(),
            }
        }
    }

    fn checksum(start: u64, bytes: &[u8]) -> u64 {
        bytes.iter().fold(start, |sum, byte| {
            sum.wrapping_mul(31).wrapping_add(u64::from(*byte) + 1)
        })
    }

    /// Cuts `[start, start + bytes)` of the flat memory into segments, in another order.
    fn segments(pieces: &[(u64, u64)]) -> Vec<Segment> {
        let mut list: Vec<Segment> = Vec::new();
        for (address, bytes) in pieces {
            let next = Segment {
                space: Space::GUEST,
                address: *address,
                bytes: *bytes,
            };
            if !list.last_mut().is_some_and(|last| last.absorb(&next)) {
                list.push(next);
            }
        }
        list
    }

    fn play(
        request: &Request,
        source: &[Segment],
        destination: &[Segment],
        device: &mut Model,
    ) -> Answer {
        let mut job = Job::new(request);
        loop {
            let mut ranges = Vec::new();
            let next = job.next(source, destination, |range| {
                ranges.push(range);
                Ok::<(), ()>(())
            });
            match next.expect("the sink takes every range") {
                Next::Done(answer) => return answer,
                Next::Submit(step) => {
                    let completion = device.run(&step.header, &ranges);
                    job.complete(&step, &completion);
                }
            }
        }
    }

    fn request(opcode: Opcode) -> Request {
        Request {
            opcode: opcode.get().into(),
            ..Request::default()
        }
    }

    #[test]
    fn ranges_that_are_none_are_refused() {
        let good = Request {
            source: 0x1000,
            length: 8,
            ..request(Opcode::CHECKSUM)
        };
        assert!(good.is_valid());
        assert!(request(Opcode::NOP).is_valid());
        assert!(!Request { length: 0, ..good }.is_valid());
        assert!(!Request { source: 0, ..good }.is_valid());
        let high = u64::MAX - 6;
        let source = Request {
            source: high,
            ..good
        };
        assert!(!source.is_valid());
        let destination = Request {
            destination: high,
            ..good
        };
        assert!(!destination.is_valid());
    }

    #[test]
    fn only_a_comparison_leaves_the_destination_alone() {
        assert!(!request(Opcode::COMPARE).writes_destination());
        assert!(request(Opcode::COPY).writes_destination());
        let unknown = Request {
            opcode: 99,
            ..Request::default()
        };
        assert!(unknown.writes_destination());
    }

    #[test]
    fn a_nop_is_one_command_without_ranges() {
        let mut device = Model {
            memory: Vec::new(),
            commands: 0,
        };
        let answer = play(&request(Opcode::NOP), &[], &[], &mut device);
        assert_eq!(
            answer,
            Answer {
                status: Status::OK,
                result: 0,
                bytes_done: 0
            }
        );
        assert_eq!(device.commands, 1);
    }

    #[test]
    fn what_the_wire_cannot_carry_is_answered_without_the_device() {
        let cases = [
            (
                Request {
                    opcode: 0x1_0001,
                    ..Request::default()
                },
                Status::UNKNOWN_OPCODE,
            ),
            (
                Request {
                    width: 0x1_0001,
                    ..request(Opcode::FILL)
                },
                Status::BAD_WIDTH,
            ),
            (
                Request {
                    source: 1,
                    length: wire::TRANSFER_BYTES_MAX + 1,
                    ..request(Opcode::CHECKSUM)
                },
                Status::TOO_LONG,
            ),
        ];
        for (request, status) in cases {
            assert_eq!(Job::new(&request).answer(), Some(Answer::refusal(status)));
        }
    }

    #[test]
    fn a_broken_last_element_is_refused_before_the_first_command() {
        // Every other page, so that nothing merges and one command does not hold them all.
        let pieces: Vec<_> = (0..600).map(|page| (page * 8192, 4096)).collect();
        let list = segments(&pieces);
        let request = Request {
            destination: 0x1000,
            length: 599 * 4096 + 12,
            width: 8,
            ..request(Opcode::FILL)
        };
        let mut device = Model {
            memory: vec![7; 600 * 8192],
            commands: 0,
        };
        assert_eq!(
            play(&request, &[], &list, &mut device),
            Answer::refusal(Status::MISALIGNED)
        );
        assert_eq!(device.commands, 0);
    }

    #[test]
    fn an_error_of_a_later_command_ends_the_job_and_counts_the_earlier_ones() {
        let pieces: Vec<_> = (0..600).map(|page| (page * 8192, 4096)).collect();
        let list = segments(&pieces);
        let request = Request {
            source: 0x1000,
            length: 600 * 4096,
            ..request(Opcode::CHECKSUM)
        };
        let mut job = Job::new(&request);
        let take = |job: &mut Job| {
            job.next(&list, &[], |_| Ok::<(), ()>(()))
                .expect("sink takes all")
        };
        let Next::Submit(first) = take(&mut job) else {
            panic!("the job has just begun")
        };
        assert_eq!(first.bytes, 512 * 4096);
        let done = |status, bytes: u64| Completion {
            status,
            reserved: 0.into(),
            range_index: 0.into(),
            result: 5.into(),
            bytes_done: bytes.into(),
        };
        job.complete(&first, &done(Status::OK, first.bytes));
        let Next::Submit(second) = take(&mut job) else {
            panic!("88 pages are left")
        };
        assert_eq!(second.header.arg0.get(), 5);
        job.complete(&second, &done(Status::CANCELLED, 4096));
        let Next::Done(answer) = take(&mut job) else {
            panic!("the device gave up")
        };
        assert_eq!(answer.status, Status::CANCELLED);
        assert_eq!(answer.bytes_done, 513 * 4096);
    }

    /// `pages` pages of the flat memory in the order of `keys`, cut to `bytes` from `skip` on.
    fn scattered(base: u64, keys: &[u32], skip: u64, bytes: u64) -> Vec<Segment> {
        let mut order: Vec<u64> = (0..keys.len() as u64).collect();
        order.sort_by_key(|page| keys[*page as usize]);
        let mut pieces = Vec::new();
        let (mut skip, mut left) = (skip, bytes);
        for page in order {
            let take = (64 - skip).min(left);
            if take > 0 {
                pieces.push((base + page * 64 + skip, take));
            }
            skip = 0;
            left -= take;
        }
        segments(&pieces)
    }

    proptest! {
        #![proptest_config(ProptestConfig::with_cases(64))]
        /// Pages of 64 bytes in random order; a split job does what one command would do.
        #[test]
        fn a_split_job_does_what_one_command_would(
            src_keys in prop::collection::vec(any::<u32>(), 1200),
            dst_keys in prop::collection::vec(any::<u32>(), 1200),
            sorted in any::<bool>(),
            skips in (0..64u64, 0..64u64),
            length in 1..9500u64,
            difference in prop::option::of(any::<prop::sample::Index>()),
        ) {
            let length = length * 8;
            prop_assume!(length + 64 < 1200 * 64);
            let mut src_keys = src_keys;
            if sorted {
                src_keys.sort_unstable();
            }
            let source = scattered(0, &src_keys, skips.0, length);
            let destination = scattered(1200 * 64, &dst_keys, skips.1, length);
            let bytes = |list: &[Segment]| list.iter().map(|segment| segment.bytes).sum::<u64>();
            prop_assert_eq!(bytes(&source), length);
            prop_assert_eq!(bytes(&destination), length);

            let memory: Vec<u8> = (0..2400 * 64u32).map(|at| (at.wrapping_mul(2_654_435_761) >> 24) as u8).collect();
            let flat = |list: &[Segment], memory: &[u8]| -> Vec<u8> {
                list.iter()
                    .flat_map(|segment| memory[segment.address as usize..][..segment.bytes as usize].to_vec())
                    .collect()
            };
            let mut device = Model { memory, commands: 0 };
            let both = Request { source: 1, destination: 1, length, ..Request::default() };

            let expected = checksum(77, &flat(&source, &device.memory));
            let sum = Request { destination: 0, arg0: 77, ..both };
            let sum = Request { opcode: Opcode::CHECKSUM.get().into(), ..sum };
            let answer = play(&sum, &source, &[], &mut device);
            prop_assert_eq!(answer, Answer { status: Status::OK, result: expected, bytes_done: length });

            let copy = Request { opcode: Opcode::COPY.get().into(), ..both };
            let expected = flat(&source, &device.memory);
            let answer = play(&copy, &source, &destination, &mut device);
            prop_assert_eq!(answer.bytes_done, length);
            prop_assert_eq!(&flat(&destination, &device.memory), &expected);

            let compare = Request { opcode: Opcode::COMPARE.get().into(), ..both };
            let answer = play(&compare, &source, &destination, &mut device);
            prop_assert_eq!(answer.result, wire::COMPARE_EQUAL);
            prop_assert_eq!(answer.bytes_done, length);
            if let Some(difference) = difference {
                let at = difference.index(length as usize) as u64;
                let mut left = at;
                for segment in &destination {
                    if left < segment.bytes {
                        device.memory[(segment.address + left) as usize] ^= 0xff;
                        break;
                    }
                    left -= segment.bytes;
                }
                let answer = play(&compare, &source, &destination, &mut device);
                prop_assert_eq!(answer, Answer { status: Status::OK, result: at, bytes_done: at });
            }

            let fill = Request { source: 0, width: 8, arg0: 0x0102_0304_0506_0708, ..both };
            let fill = Request { opcode: Opcode::FILL.get().into(), ..fill };
            let answer = play(&fill, &[], &destination, &mut device);
            prop_assert_eq!(answer.bytes_done, length);
            let filled = flat(&destination, &device.memory);
            prop_assert!(filled.chunks(8).all(|element| element == [8, 7, 6, 5, 4, 3, 2, 1]));
            prop_assert!(device.commands >= 4);
        }
    }
}
