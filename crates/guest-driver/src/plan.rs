// SPDX-License-Identifier: GPL-2.0

//! From a command on a process's memory to commands that the device takes. Pure logic.
//!
//! The memory of an operand is a list of [`Segment`]s, neighbours merged. The device
//! takes at most [`wire::RANGES_MAX`] ranges at a time, so a [`Job`] may need several
//! commands; it carries checksum, sum, comparison and byte count from one to the next, so
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
    /// Addresses of a process; `None` for the address zero, which is no operand.
    fn of_addresses(address: u64, bytes: u64) -> Option<Self> {
        (address != 0).then_some(Self {
            space: Space::PROCESS,
            address,
            bytes,
        })
    }

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
    /// Flags of the wire's header.
    pub flags: u16,
    /// Address of the first source byte.
    pub source: u64,
    /// Address of the first destination byte.
    pub destination: u64,
    /// Bytes of each operand whose length nothing else says.
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
        if self.source == 0 && self.destination == 0 {
            return self.length == 0;
        }
        let operands = [
            (self.source, self.source_bytes()),
            (self.destination, self.destination_bytes()),
        ];
        self.length != 0
            && operands
                .iter()
                .all(|(address, bytes)| address.checked_add(*bytes).is_some())
    }

    /// Bytes of the source, if there is one.
    pub fn source_bytes(&self) -> u64 {
        match self.shape() {
            Shape::Program => self.bytes_of(PROGRAM_MAX, size_of::<wire::Instruction>()),
            _ => self.length,
        }
    }

    /// Bytes of the destination, if there is one.
    pub fn destination_bytes(&self) -> u64 {
        match self.shape() {
            Shape::Histogram => self.bytes_of(wire::BINS_MAX, size_of::<u64>()),
            _ => self.length,
        }
    }

    /// The source as a piece of the caller's own address space; empty if there is none.
    pub fn source_addresses(&self) -> Option<Segment> {
        Segment::of_addresses(self.source, self.source_bytes())
    }

    /// The destination as a piece of the caller's own address space; empty if there is none.
    pub fn destination_addresses(&self) -> Option<Segment> {
        Segment::of_addresses(self.destination, self.destination_bytes())
    }

    /// Bytes of `repeat` elements; of one if the device refuses that many, whatever they are.
    fn bytes_of(&self, most: u32, element: usize) -> u64 {
        let count = if self.repeat > most {
            1
        } else {
            self.repeat.max(1)
        };
        u64::from(count) * element as u64
    }

    /// Whether the device needs its operands as a whole, however they are cut.
    pub fn is_indivisible(&self) -> bool {
        self.shape() != Shape::Stream
    }

    /// Bytes after which a part of it may end; zero if anywhere.
    pub fn unit(&self) -> u64 {
        let is = |opcode: Opcode| self.opcode == u32::from(opcode.get());
        let width = u64::from(self.width);
        if width != 0 && (is(Opcode::SUM) || is(Opcode::AXPY)) {
            // A stride; one that is no multiple of the width is refused by the device.
            self.arg1.max(width)
        } else {
            width
        }
    }

    fn shape(&self) -> Shape {
        match u16::try_from(self.opcode).map(|number| Opcode(number.into())) {
            Ok(Opcode::HISTOGRAM) => Shape::Histogram,
            Ok(Opcode::POINTER_CHASE) => Shape::Chase,
            Ok(Opcode::PROGRAM) => Shape::Program,
            _ => Shape::Stream,
        }
    }

    /// Whether the device stores to the destination. An operation that the driver does
    /// not know is taken to do so, which asks for the stronger right.
    pub fn writes_destination(&self) -> bool {
        self.opcode != u32::from(Opcode::COMPARE.get())
    }
}

const PROGRAM_MAX: u32 = wire::PROGRAM_INSTRUCTIONS_MAX;

/// How operands go into commands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Shape {
    /// Piece by piece, the same of each operand.
    Stream,
    /// The source piece by piece, each with the whole destination.
    Histogram,
    /// All in one command.
    Chase,
    /// All in one command, and the operands differ in length.
    Program,
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
        pasid: u32,
        sink: &mut impl FnMut(Range) -> Result<(), E>,
    ) -> Result<u16, E> {
        let mut count = 0;
        while bytes > 0 {
            let Some(segment) = list.get(self.index) else {
                break;
            };
            let piece = self.left(list).min(bytes);
            sink(Range {
                space: segment.space,
                reserved: 0.into(),
                pasid: pasid.into(),
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
    shape: Shape,
    /// Bytes after which a command may end; zero if anywhere.
    unit: u64,
    flags: u16,
    width: u16,
    repeat: u32,
    arg0: u64,
    arg1: u64,
    length: u64,
    /// Elements that earlier commands found in no bin of a histogram.
    outside: u64,
    source: Cursor,
    destination: Cursor,
    done: u64,
    answer: Option<Answer>,
    /// Address space of the segments; zero if they are in none.
    pasid: u32,
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
            shape: request.shape(),
            unit: request.unit(),
            flags: request.flags,
            width: request.width as u16,
            repeat: request.repeat,
            arg0: request.arg0,
            arg1: request.arg1,
            length: request.length,
            outside: 0,
            source: Cursor::default(),
            destination: Cursor::default(),
            done: 0,
            answer: refusal.map(Answer::refusal),
            pasid: 0,
        }
    }

    /// The same for operands whose segments are addresses of the process with that PASID.
    pub fn on_addresses(request: &Request, pasid: u32) -> Self {
        Self {
            pasid,
            ..Self::new(request)
        }
    }

    /// Whether its operands are addresses of a process.
    pub fn is_on_addresses(&self) -> bool {
        self.pasid != 0
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
        let whole = source.len() + destination.len();
        let (bytes, num_src, num_dst);
        match self.shape {
            Shape::Stream => {
                let Some(found) = self.next_piece(source, destination, wire::RANGES_MAX) else {
                    return Ok(Next::Done(self.refuse(Status::MISALIGNED)));
                };
                bytes = found;
                num_src = self.source.emit(source, bytes, self.pasid, &mut sink)?;
                num_dst = self
                    .destination
                    .emit(destination, bytes, self.pasid, &mut sink)?;
            }
            Shape::Histogram => {
                // At most 129 pages, so there is room for the source.
                let room = wire::RANGES_MAX.saturating_sub(destination.len());
                let Some(found) = self.next_piece(source, &[], room) else {
                    return Ok(Next::Done(self.refuse(Status::MISALIGNED)));
                };
                bytes = found;
                num_src = self.source.emit(source, bytes, self.pasid, &mut sink)?;
                num_dst = Cursor::default().emit(destination, u64::MAX, self.pasid, &mut sink)?;
            }
            Shape::Chase | Shape::Program if whole > wire::RANGES_MAX => {
                return Ok(Next::Done(self.refuse(Status::BAD_RANGE_COUNT)));
            }
            Shape::Chase | Shape::Program => {
                bytes = self.length;
                num_src = self.source.emit(source, u64::MAX, self.pasid, &mut sink)?;
                num_dst = self
                    .destination
                    .emit(destination, u64::MAX, self.pasid, &mut sink)?;
            }
        }
        let header = CommandHeader {
            opcode: self.opcode,
            flags: self.flags.into(),
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
            if self.opcode == Opcode::CHECKSUM || self.opcode == Opcode::SUM {
                self.arg0 = answer.result;
            } else if self.opcode == Opcode::HISTOGRAM {
                self.outside += answer.result;
                answer.result = self.outside;
            } else if self.opcode == Opcode::COMPARE && answer.result != wire::COMPARE_EQUAL {
                answer.result += before;
                is_last = true;
            }
        }
        if is_last {
            self.answer = Some(answer);
        }
    }

    /// Ends the job with a status that the device would give, if it could be asked.
    fn refuse(&mut self, status: Status) -> Answer {
        *self.answer.insert(Answer::refusal(status))
    }

    /// Bytes for the next command, which takes at most `most` ranges of both lists; none if
    /// elements do not come out even there.
    fn next_piece(&self, source: &[Segment], destination: &[Segment], most: usize) -> Option<u64> {
        let bytes = self.measure(source, destination, most);
        let unit = self.unit;
        if unit == 0 || self.done + bytes == self.length {
            return Some(bytes);
        }
        // A command takes whole elements. If they do not come out even at the end,
        // the device would refuse the last command only, with the others done. And a
        // stride that no command reaches over cannot be gone at all.
        if !self.length.is_multiple_of(self.width.into()) || bytes < unit {
            return None;
        }
        Some(bytes - bytes % unit)
    }

    /// Bytes that the next command can cover with the ranges that it may have.
    fn measure(&self, source: &[Segment], destination: &[Segment], most: usize) -> u64 {
        let (mut src, mut dst) = (self.source, self.destination);
        let mut ranges = 0;
        let (mut src_open, mut dst_open) = (source.is_empty(), destination.is_empty());
        let mut bytes = 0;
        while self.done + bytes < self.length {
            ranges += usize::from(!src_open) + usize::from(!dst_open);
            if ranges > most {
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

    /// The steps of a job on so many pages that lie apart, each completed with `result`.
    fn steps(request: &Request, pages: usize, result: u64) -> (Vec<(Step, usize)>, Answer) {
        let pieces: Vec<_> = (0..pages as u64).map(|page| (page * 8192, 4096)).collect();
        let list = segments(&pieces);
        let counters = segments(&[(1 << 40, request.destination_bytes())]);
        let (source, destination): (&[Segment], &[Segment]) = match request.shape() {
            Shape::Program => (&counters, &list),
            _ if request.destination == 0 => (&list, &[]),
            Shape::Histogram => (&list, &counters),
            _ => (&list, &list),
        };
        let mut job = Job::new(request);
        let mut steps = Vec::new();
        loop {
            let mut ranges = 0;
            let count = |_| {
                ranges += 1;
                Ok::<(), ()>(())
            };
            match job
                .next(source, destination, count)
                .expect("sink takes all")
            {
                Next::Done(answer) => return (steps, answer),
                Next::Submit(step) => {
                    steps.push((step, ranges));
                    let completion = Completion {
                        status: Status::OK,
                        reserved: 0.into(),
                        range_index: 0.into(),
                        result: result.into(),
                        bytes_done: step.bytes.into(),
                    };
                    job.complete(&step, &completion);
                }
            }
        }
    }

    #[test]
    fn a_sum_goes_on_from_step_to_step_at_whole_strides() {
        let request = Request {
            source: 0x1000,
            length: 600 * 4096,
            width: 4,
            arg1: 12,
            flags: wire::FLAG_FLOAT,
            ..request(Opcode::SUM)
        };
        let (steps, answer) = steps(&request, 600, 9);
        let bytes: Vec<u64> = steps.iter().map(|(step, _)| step.bytes).collect();
        assert_eq!(
            bytes,
            [512 * 4096 / 12 * 12, 600 * 4096 - 512 * 4096 / 12 * 12]
        );
        assert_eq!(steps[1].0.header.arg0.get(), 9);
        assert_eq!(steps[1].0.header.flags.get(), wire::FLAG_FLOAT);
        assert_eq!((answer.result, answer.bytes_done), (9, 600 * 4096));
    }

    #[test]
    fn a_stride_longer_than_a_command_reaches_is_refused() {
        let request = Request {
            source: 0x1000,
            length: 600 * 4096,
            width: 4,
            arg1: 513 * 4096,
            ..request(Opcode::SUM)
        };
        assert_eq!(
            steps(&request, 600, 0).1,
            Answer::refusal(Status::MISALIGNED)
        );
    }

    #[test]
    fn a_histogram_has_all_counters_in_each_step_and_adds_up_what_is_outside() {
        let request = Request {
            source: 0x1000,
            destination: 0x1000,
            length: 1000 * 4096,
            width: 2,
            repeat: 5,
            arg1: 1,
            ..request(Opcode::HISTOGRAM)
        };
        assert_eq!(request.destination_bytes(), 40);
        let (steps, answer) = steps(&request, 1000, 3);
        let counts: Vec<_> = steps
            .iter()
            .map(|(step, ranges)| {
                (
                    step.header.num_src.get(),
                    step.header.num_dst.get(),
                    *ranges,
                )
            })
            .collect();
        assert_eq!(counts, [(511, 1, 512), (489, 1, 490)]);
        assert_eq!((answer.result, answer.bytes_done), (6, 1000 * 4096));
    }

    #[test]
    fn addresses_of_a_process_are_one_range_for_each_operand() {
        let request = Request {
            source: 0x1003,
            destination: 0x7f00_0000_0000,
            length: 700 * 4096,
            ..request(Opcode::COPY)
        };
        let source = request.source_addresses();
        let destination = request.destination_addresses();
        let mut job = Job::on_addresses(&request, 77);
        let mut ranges = Vec::new();
        let next = job.next(source.as_slice(), destination.as_slice(), |range| {
            ranges.push(range);
            Ok::<(), ()>(())
        });
        let Ok(Next::Submit(step)) = next else {
            panic!("no command: {next:?}");
        };
        assert_eq!(step.bytes, request.length);
        let found: Vec<_> = ranges
            .iter()
            .map(|range| (range.space, range.pasid.get(), range.address.get()))
            .collect();
        assert_eq!(
            found,
            [
                (Space::PROCESS, 77, request.source),
                (Space::PROCESS, 77, request.destination)
            ]
        );
        let is_whole = |range: &Range| range.bytes.get() == request.length;
        assert!(ranges.iter().all(is_whole));
        assert_eq!(
            Request {
                source: 0,
                ..request
            }
            .source_addresses(),
            None
        );
    }

    #[test]
    fn what_cannot_be_cut_is_one_command_or_refused() {
        let program = Request {
            source: 0x1000,
            destination: 0x1000,
            length: 511 * 4096,
            repeat: 4,
            arg1: 1,
            ..request(Opcode::PROGRAM)
        };
        assert_eq!(program.source_bytes(), 64);
        let (one, answer) = steps(&program, 511, 7);
        assert_eq!((one.len(), one[0].1, answer.result), (1, 512, 7));
        let longer = Request {
            length: 512 * 4096,
            ..program
        };
        let (none, answer) = steps(&longer, 512, 7);
        assert_eq!(none.len(), 0);
        assert_eq!(answer, Answer::refusal(Status::BAD_RANGE_COUNT));
        let chase = Request {
            source: 0x1000,
            length: 512 * 4096,
            repeat: 1,
            ..request(Opcode::POINTER_CHASE)
        };
        assert_eq!(steps(&chase, 512, 7).0.len(), 1);
        assert!(chase.is_indivisible() && longer.is_indivisible());
    }

    #[test]
    fn more_of_something_than_the_device_takes_is_left_to_the_device_to_refuse() {
        let many = Request {
            source: 1,
            destination: 1,
            length: 8,
            repeat: u32::MAX,
            ..request(Opcode::HISTOGRAM)
        };
        assert!(many.is_valid());
        assert_eq!(many.destination_bytes(), 8);
        let program = Request {
            opcode: Opcode::PROGRAM.get().into(),
            ..many
        };
        assert_eq!(program.source_bytes(), 16);
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
