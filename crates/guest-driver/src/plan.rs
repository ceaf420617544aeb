// SPDX-License-Identifier: GPL-2.0-only

//! From a command on a process's memory to commands that the device takes. Pure logic.
//!
//! The memory of an operand is a list of [`Segment`]s, neighbours merged. The device
//! takes at most [`wire::RANGES_MAX`] ranges at a time, so a [`Job`] may need several
//! commands; it carries checksum, sum, comparison and byte count from one to the next, so
//! that the caller sees one command with one answer.

use crate::batch::PAGE_BYTES;
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
    /// Addresses of a process; `None` if they are none: no byte, or more than there are.
    pub fn of_process(address: u64, bytes: u64) -> Option<Self> {
        let is_range = bytes != 0 && address.checked_add(bytes).is_some();
        is_range.then_some(Self {
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

    /// The pieces of it that lie in one page each.
    fn in_pages(self) -> impl Iterator<Item = Segment> {
        let mut at = 0;
        core::iter::from_fn(move || {
            if at == self.bytes {
                return None;
            }
            let address = self.address + at;
            let bytes = (PAGE_BYTES - address % PAGE_BYTES).min(self.bytes - at);
            at += bytes;
            Some(Self {
                address,
                bytes,
                ..self
            })
        })
    }
}

/// The same operand in pieces that lie in one page each.
pub fn in_pages(list: &[Segment]) -> impl Iterator<Item = Segment> + '_ {
    list.iter().flat_map(|segment| segment.in_pages())
}

/// Bytes of an operand; as many as there can be if the sum is larger.
pub fn bytes_of(list: &[Segment]) -> u64 {
    list.iter()
        .fold(0, |sum: u64, segment| sum.saturating_add(segment.bytes))
}

/// A command without its operands.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Request {
    /// Number of the operation.
    pub opcode: u32,
    /// Flags of the wire's header.
    pub flags: u16,
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
    /// What a command for the device asks for.
    pub fn of(header: &CommandHeader) -> Self {
        Self {
            opcode: header.opcode.get().into(),
            flags: header.flags.get(),
            width: header.width.get().into(),
            repeat: header.repeat.get(),
            arg0: header.arg0.get(),
            arg1: header.arg1.get(),
        }
    }

    /// Source and destination of a process that names one piece for each, and one length; an
    /// address of zero means that there is no such operand. `None` if these are no ranges.
    pub fn operands(
        &self,
        source: u64,
        destination: u64,
        length: u64,
    ) -> Option<[Option<Segment>; 2]> {
        if source == 0 && destination == 0 {
            return (length == 0).then_some([None; 2]);
        }
        if length == 0 {
            return None;
        }
        let operand = |address: u64, bytes: u64| match address {
            0 => Some(None),
            _ => Segment::of_process(address, bytes).map(Some),
        };
        let (mut source_bytes, mut destination_bytes) = (length, length);
        match self.shape() {
            Shape::Program => {
                source_bytes = self.bytes_of(PROGRAM_MAX, size_of::<wire::Instruction>());
            }
            Shape::Histogram => destination_bytes = self.bytes_of(wire::BINS_MAX, size_of::<u64>()),
            Shape::Stream | Shape::Chase => {}
        }
        Some([
            operand(source, source_bytes)?,
            operand(destination, destination_bytes)?,
        ])
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

    /// Whether it has its place between the commands before it and behind it.
    pub fn is_ordered(&self) -> bool {
        self.flags & wire::FLAG_UNORDERED == 0
    }

    /// Bytes after which a part of it may end; zero if anywhere.
    fn unit(&self) -> u64 {
        let width = u64::from(self.width);
        if width != 0 && (self.is(Opcode::SUM) || self.is(Opcode::AXPY)) {
            // A stride; one that is no multiple of the width is refused by the device.
            self.arg1.max(width)
        } else {
            width
        }
    }

    fn is(&self, opcode: Opcode) -> bool {
        self.opcode == u32::from(opcode.get())
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
        !self.is(Opcode::COMPARE)
    }
}

const PROGRAM_MAX: u32 = wire::PROGRAM_INSTRUCTIONS_MAX;

/// How operands go into commands, where they do not go into one.
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
    /// Which of the caller's ranges, or which instruction, the outcome speaks of, sources first;
    /// zero if of none.
    pub range_index: u32,
    /// Result of the operation.
    pub result: u64,
    /// Bytes that the device processed.
    pub bytes_done: u64,
}

impl Answer {
    /// The answer that the device gives to a request with that fault.
    fn refusal(status: Status) -> Self {
        Self {
            status,
            range_index: 0,
            result: 0,
            bytes_done: 0,
        }
    }
}

/// Whether an outcome speaks of a range.
fn is_about_a_range(status: Status) -> bool {
    matches!(
        status,
        Status::MISALIGNED
            | Status::BAD_SPACE
            | Status::ZERO_LENGTH
            | Status::TOO_LONG
            | Status::BAD_PASID
            | Status::NOT_MAPPED
            | Status::BAD_ADDRESS
            | Status::PROTECTED
            | Status::UNMAPPED
            | Status::NO_ACCESS
            | Status::UNBOUND
            | Status::PAGE_QUEUE_FULL
            | Status::PAGE_ERROR
    )
}

/// The range of a list in which the byte `offset` of the operand lies.
fn range_at(list: &[Segment], offset: u64) -> usize {
    let mut end = 0u64;
    list.iter()
        .position(|range| {
            end = end.saturating_add(range.bytes);
            offset < end
        })
        .unwrap_or(0)
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

    /// Where in the operand the `index`th range begins that is emitted from here on.
    fn start_of(&self, list: &[Segment], index: usize) -> u64 {
        let before = list.get(..self.index + index).unwrap_or(list);
        bytes_of(before) + if index == 0 { self.offset } else { 0 }
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
    /// Where its ranges begin.
    source: Cursor,
    destination: Cursor,
}

impl Step {
    /// Which of the ranges that the caller `named` a completion of this command speaks of, if it
    /// does; the command's own are of the lists that were `found` for them.
    fn range_named(
        &self,
        completion: &Completion,
        found: Operands<'_>,
        named: Operands<'_>,
    ) -> u32 {
        let index = completion.range_index.get();
        if !is_about_a_range(completion.status) {
            return if completion.status == Status::BAD_PROGRAM {
                index
            } else {
                0
            };
        }
        let num_src = u32::from(self.header.num_src.get());
        let range = match index.checked_sub(num_src) {
            None => {
                let start = self.source.start_of(found.source, index as usize);
                range_at(named.source, start)
            }
            Some(index) => {
                let start = self.destination.start_of(found.destination, index as usize);
                named.source.len() + range_at(named.destination, start)
            }
        };
        range as u32
    }
}

/// The operands of a command; a list is empty where there is none.
#[derive(Clone, Copy, Debug, Default)]
pub struct Operands<'a> {
    /// What is read.
    pub source: &'a [Segment],
    /// What is written, or compared with the source.
    pub destination: &'a [Segment],
}

impl Operands<'_> {
    /// How many ranges they are.
    pub fn ranges(&self) -> usize {
        self.source.len() + self.destination.len()
    }

    /// Which range makes an operand longer than a command can carry, sources first.
    fn too_long(&self) -> Option<u32> {
        let passes = |list: &[Segment]| {
            let mut sum = 0u64;
            list.iter().position(|range| {
                sum = sum.saturating_add(range.bytes);
                sum > wire::TRANSFER_BYTES_MAX
            })
        };
        let of_destination = || Some(self.source.len() + passes(self.destination)?);
        Some(passes(self.source).or_else(of_destination)? as u32)
    }

    /// The last range of the operand that elements are taken from, or stored to if there is no other.
    fn last(&self) -> u32 {
        let operand = if self.source.is_empty() {
            self.destination
        } else {
            self.source
        };
        operand.len().saturating_sub(1) as u32
    }
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
pub struct Job<'a> {
    opcode: Opcode,
    shape: Shape,
    /// Bytes after which a command may end; zero if anywhere.
    unit: u64,
    flags: u16,
    width: u16,
    repeat: u32,
    arg0: u64,
    arg1: u64,
    /// Bytes to go over.
    length: u64,
    /// The operands as the caller names them.
    named: Operands<'a>,
    /// Elements that earlier commands found in no bin of a histogram.
    outside: u64,
    source: Cursor,
    destination: Cursor,
    done: u64,
    answer: Option<Answer>,
    /// Address space of the segments; zero if they are in none.
    pasid: u32,
}

impl<'a> Job<'a> {
    /// A job for a request on operands that are named like that.
    ///
    /// A value that does not fit its field of the wire, or an operand that is longer
    /// than a command can carry, has its answer at once: the one that the device would
    /// give. So has a FENCE that is not one.
    pub fn new(request: &Request, named: Operands<'a>) -> Self {
        let refusal = if request.opcode > u32::from(u16::MAX) {
            Some(Answer::refusal(Status::UNKNOWN_OPCODE))
        } else if request.is(Opcode::FENCE) && !request.is_ordered() {
            Some(Answer::refusal(Status::RESERVED_FIELD))
        } else if request.width > u32::from(u16::MAX) {
            Some(Answer::refusal(Status::BAD_WIDTH))
        } else {
            named.too_long().map(|range_index| Answer {
                range_index,
                ..Answer::refusal(Status::TOO_LONG)
            })
        };
        let length = match request.shape() {
            Shape::Program => bytes_of(named.destination),
            Shape::Stream if named.source.is_empty() => bytes_of(named.destination),
            Shape::Stream | Shape::Histogram | Shape::Chase => bytes_of(named.source),
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
            length,
            named,
            outside: 0,
            source: Cursor::default(),
            destination: Cursor::default(),
            done: 0,
            answer: refusal,
            pasid: 0,
        }
    }

    /// The same for operands whose segments are addresses of the process with that PASID.
    pub fn on_addresses(request: &Request, named: Operands<'a>, pasid: u32) -> Self {
        Self {
            pasid,
            ..Self::new(request, named)
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

    /// Whether nothing of it will be left when this step is done.
    pub fn ends_with(&self, step: &Step) -> bool {
        self.done + step.bytes == self.length
    }

    /// The answer to a job that was given up between two commands; `None` if none was done.
    pub fn given_up(&self) -> Option<Answer> {
        (self.done != 0).then_some(Answer {
            bytes_done: self.done,
            ..Answer::refusal(Status::CANCELLED)
        })
    }

    /// The answer to a job whose last command was lost with a RESET.
    pub fn lost(&self) -> Answer {
        Answer {
            bytes_done: self.done,
            ..Answer::refusal(Status::CANCELLED)
        }
    }

    /// The next command; its ranges, source first, go to `sink`.
    ///
    /// The lists of `found` cover what was named and are the same in every call.
    pub fn next<E>(
        &mut self,
        found: Operands<'_>,
        mut sink: impl FnMut(Range) -> Result<(), E>,
    ) -> Result<Next, E> {
        if let Some(answer) = self.answer {
            return Ok(Next::Done(answer));
        }
        let Operands {
            source,
            destination,
        } = found;
        let is_whole = self.done == 0 && found.ranges() <= wire::RANGES_MAX;
        let from = (self.source, self.destination);
        let mut step = Step {
            header: CommandHeader {
                opcode: self.opcode,
                flags: self.flags.into(),
                num_src: 0.into(),
                num_dst: 0.into(),
                width: self.width.into(),
                reserved: 0.into(),
                repeat: self.repeat.into(),
                arg0: self.arg0.into(),
                arg1: self.arg1.into(),
            },
            bytes: self.length,
            source: from.0,
            destination: from.1,
        };
        let (num_src, num_dst);
        match self.shape {
            // As it is. What is wrong with it, the device says.
            _ if is_whole => {
                num_src = self.source.emit(source, u64::MAX, self.pasid, &mut sink)?;
                num_dst = self
                    .destination
                    .emit(destination, u64::MAX, self.pasid, &mut sink)?;
            }
            Shape::Stream => {
                if self.is_uneven() {
                    return Ok(Next::Done(self.refuse(Status::LENGTH_MISMATCH)));
                }
                let Some(bytes) = self.next_piece(source, destination, wire::RANGES_MAX) else {
                    return Ok(Next::Done(self.refuse(Status::MISALIGNED)));
                };
                step.bytes = bytes;
                num_src = self.source.emit(source, bytes, self.pasid, &mut sink)?;
                num_dst = self
                    .destination
                    .emit(destination, bytes, self.pasid, &mut sink)?;
            }
            Shape::Histogram if destination.len() < wire::RANGES_MAX => {
                let room = wire::RANGES_MAX - destination.len();
                let Some(bytes) = self.next_piece(source, &[], room) else {
                    return Ok(Next::Done(self.refuse(Status::MISALIGNED)));
                };
                step.bytes = bytes;
                num_src = self.source.emit(source, bytes, self.pasid, &mut sink)?;
                num_dst = Cursor::default().emit(destination, u64::MAX, self.pasid, &mut sink)?;
            }
            Shape::Histogram | Shape::Chase | Shape::Program => {
                return Ok(Next::Done(self.refuse(Status::BAD_RANGE_COUNT)));
            }
        }
        step.header.num_src = num_src.into();
        step.header.num_dst = num_dst.into();
        Ok(Next::Submit(step))
    }

    /// Takes in the completion of a step, whose ranges were of the lists of `found`.
    pub fn complete(&mut self, step: &Step, completion: &Completion, found: Operands<'_>) {
        let before = self.done;
        let is_end = self.ends_with(step);
        self.done += step.bytes;
        let mut answer = Answer {
            status: completion.status,
            range_index: step.range_named(completion, found, self.named),
            result: completion.result.get(),
            bytes_done: before + completion.bytes_done.get(),
        };
        let mut is_last = is_end || completion.status != Status::OK;
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

    /// Whether the operands differ in length, where they must not.
    fn is_uneven(&self) -> bool {
        let Operands {
            source,
            destination,
        } = self.named;
        !source.is_empty() && !destination.is_empty() && bytes_of(source) != bytes_of(destination)
    }

    /// Ends the job with a status that the device would give, if it could be asked.
    fn refuse(&mut self, status: Status) -> Answer {
        *self.answer.insert(Answer {
            range_index: if status == Status::MISALIGNED {
                self.named.last()
            } else {
                0
            },
            ..Answer::refusal(status)
        })
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
        let operands = Operands {
            source,
            destination,
        };
        let mut job = Job::new(request, operands);
        loop {
            let mut ranges = Vec::new();
            let next = job.next(operands, |range| {
                ranges.push(range);
                Ok::<(), ()>(())
            });
            match next.expect("the sink takes every range") {
                Next::Done(answer) => return answer,
                Next::Submit(step) => {
                    let completion = device.run(&step.header, &ranges);
                    job.complete(&step, &completion, operands);
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

    /// One range of a process.
    fn named(address: u64, bytes: u64) -> Segment {
        Segment::of_process(address, bytes).expect("it is a range")
    }

    #[test]
    fn ranges_that_are_none_are_refused() {
        let sum = request(Opcode::CHECKSUM);
        let source = Some(named(0x1000, 8));
        assert_eq!(sum.operands(0x1000, 0, 8), Some([source, None]));
        assert_eq!(request(Opcode::NOP).operands(0, 0, 0), Some([None; 2]));
        assert_eq!(sum.operands(0x1000, 0, 0), None);
        assert_eq!(sum.operands(0, 0, 8), None);
        let high = u64::MAX - 6;
        assert_eq!(sum.operands(high, 0, 8), None);
        assert_eq!(sum.operands(0x1000, high, 8), None);
        assert_eq!(Segment::of_process(0, 0), None);
        assert_eq!(Segment::of_process(high, 8), None);
        assert!(Segment::of_process(0, u64::MAX).is_some());
    }

    #[test]
    fn operand_is_cut_at_the_borders_of_pages() {
        let list = [
            named(0x1ffe, 3),
            named(0x5000, 0x1000),
            named(0x6001, 0x1fff),
        ];
        let pieces: Vec<_> = in_pages(&list)
            .map(|piece| (piece.address, piece.bytes))
            .collect();
        assert_eq!(
            pieces,
            [
                (0x1ffe, 2),
                (0x2000, 1),
                (0x5000, 0x1000),
                (0x6001, 0xfff),
                (0x7000, 0x1000)
            ]
        );
        assert_eq!(bytes_of(&list), 3 + 0x1000 + 0x1fff);
        assert_eq!(bytes_of(&[named(0, u64::MAX), named(0, 2)]), u64::MAX);
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
                range_index: 0,
                result: 0,
                bytes_done: 0
            }
        );
        assert_eq!(device.commands, 1);
    }

    #[test]
    fn what_the_wire_cannot_carry_is_answered_without_the_device() {
        let short = [named(0x1000, 8), named(0x3000, 8)];
        let long = [
            named(0x1000, wire::TRANSFER_BYTES_MAX),
            named(0x1000, 1),
            named(0x1000, u64::MAX - 0x1000),
        ];
        let none: &[Segment] = &[];
        let fill = u32::from(Opcode::FILL.get());
        let cases = [
            (0x1_0001, 0, &short[..], none, Status::UNKNOWN_OPCODE, 0),
            (fill, 0x1_0001, none, &short, Status::BAD_WIDTH, 0),
            (fill, 0, &long, none, Status::TOO_LONG, 1),
            (fill, 0, &short, &long, Status::TOO_LONG, 3),
            (fill, 0, &long[2..], &short, Status::TOO_LONG, 0),
            (fill, 0, &short, &long[1..], Status::TOO_LONG, 3),
        ];
        for (opcode, width, source, destination, status, range_index) in cases {
            let request = Request {
                opcode,
                width,
                ..Request::default()
            };
            let job = Job::new(
                &request,
                Operands {
                    source,
                    destination,
                },
            );
            let refusal = Answer {
                range_index,
                ..Answer::refusal(status)
            };
            assert_eq!(job.answer(), Some(refusal));
        }
    }

    #[test]
    fn a_fence_that_need_not_wait_is_none() {
        let fence = Request {
            flags: wire::FLAG_UNORDERED,
            ..request(Opcode::FENCE)
        };
        let refusal = Answer::refusal(Status::RESERVED_FIELD);
        assert_eq!(
            Job::new(&fence, Operands::default()).answer(),
            Some(refusal)
        );
        let ordered = Job::new(&request(Opcode::FENCE), Operands::default());
        assert_eq!(ordered.answer(), None);
    }

    #[test]
    fn a_broken_last_element_is_refused_before_the_first_command() {
        // Every other page, so that nothing merges and one command does not hold them all.
        let mut pieces: Vec<_> = (0..600).map(|page| (page * 8192, 4096)).collect();
        pieces[599].1 = 12;
        let list = segments(&pieces);
        let request = Request {
            width: 8,
            ..request(Opcode::FILL)
        };
        let mut device = Model {
            memory: vec![7; 600 * 8192],
            commands: 0,
        };
        assert_eq!(
            play(&request, &[], &list, &mut device),
            Answer {
                range_index: 599,
                ..Answer::refusal(Status::MISALIGNED)
            }
        );
        assert_eq!(device.commands, 0);
    }

    #[test]
    fn operands_that_differ_in_length_are_the_devices_to_refuse_where_it_sees_them_whole() {
        let copy = request(Opcode::COPY);
        let pieces = |count: u64| segments(&(0..count).map(|at| (at * 64, 8)).collect::<Vec<_>>());
        let (source, destination) = (pieces(2), pieces(3));
        let operands = Operands {
            source: &source,
            destination: &destination,
        };
        let mut whole = Job::new(&copy, operands);
        let next = whole.next(operands, |_| Ok::<(), ()>(()));
        let Ok(Next::Submit(step)) = next else {
            panic!("no command: {next:?}");
        };
        let header = step.header;
        assert_eq!((header.num_src.get(), header.num_dst.get()), (2, 3));
        let mut device = Model {
            memory: Vec::new(),
            commands: 0,
        };
        assert_eq!(
            play(&copy, &pieces(300), &pieces(301), &mut device),
            Answer::refusal(Status::LENGTH_MISMATCH)
        );
        assert_eq!(device.commands, 0);
    }

    #[test]
    fn more_counters_than_ranges_are_refused() {
        let pieces: Vec<_> = (0..512).map(|at| (at * 64, 8)).collect();
        let counters = segments(&pieces);
        let histogram = Request {
            repeat: 512,
            width: 0,
            ..request(Opcode::HISTOGRAM)
        };
        let mut device = Model {
            memory: Vec::new(),
            commands: 0,
        };
        assert_eq!(
            play(&histogram, &segments(&[(0, 8)]), &counters, &mut device),
            Answer::refusal(Status::BAD_RANGE_COUNT)
        );
    }

    #[test]
    fn a_status_of_the_device_speaks_of_the_callers_range() {
        // Three ranges of one operand, found in four pieces; of the other, in one.
        let named_source = [named(0x1000, 100), named(0x5000, 100), named(0x9000, 100)];
        let found_source = segments(&[(0, 50), (1000, 100), (2000, 50), (3000, 100)]);
        let named_destination = [named(0x2_0000, 200), named(0x3_0000, 100)];
        let found_destination = segments(&[(5000, 300)]);
        let named = Operands {
            source: &named_source,
            destination: &named_destination,
        };
        let found = Operands {
            source: &found_source,
            destination: &found_destination,
        };
        let answer = |status, index: u32| {
            let mut job = Job::new(&request(Opcode::COPY), named);
            let next = job.next(found, |_| Ok::<(), ()>(()));
            let Ok(Next::Submit(step)) = next else {
                panic!("no command: {next:?}");
            };
            let completion = Completion {
                status,
                reserved: 0.into(),
                range_index: index.into(),
                result: 0.into(),
                bytes_done: 0.into(),
            };
            job.complete(&step, &completion, found);
            job.answer().expect("the status ends it").range_index
        };
        let of_ranges: Vec<_> = (0..5).map(|at| answer(Status::BAD_ADDRESS, at)).collect();
        assert_eq!(of_ranges, [0, 0, 1, 2, 3]);
        assert_eq!(answer(Status::BAD_PROGRAM, 77), 77);
        assert_eq!(answer(Status::CANCELLED, 3), 0);
    }

    #[test]
    fn an_error_of_a_later_command_ends_the_job_and_counts_the_earlier_ones() {
        let pieces: Vec<_> = (0..600).map(|page| (page * 8192, 4096)).collect();
        let list = segments(&pieces);
        let operands = Operands {
            source: &list,
            destination: &[],
        };
        let mut job = Job::new(&request(Opcode::CHECKSUM), operands);
        assert_eq!(job.given_up(), None);
        let take = |job: &mut Job<'_>| {
            job.next(operands, |_| Ok::<(), ()>(()))
                .expect("sink takes all")
        };
        let Next::Submit(first) = take(&mut job) else {
            panic!("the job has just begun")
        };
        assert_eq!(first.bytes, 512 * 4096);
        assert!(!job.ends_with(&first));
        let done = |status, bytes: u64| Completion {
            status,
            reserved: 0.into(),
            range_index: 0.into(),
            result: 5.into(),
            bytes_done: bytes.into(),
        };
        job.complete(&first, &done(Status::OK, first.bytes), operands);
        let given_up = job.given_up().expect("a part of it is done");
        assert_eq!(given_up.status, Status::CANCELLED);
        assert_eq!(given_up.bytes_done, 512 * 4096);
        let Next::Submit(second) = take(&mut job) else {
            panic!("88 pages are left")
        };
        assert!(job.ends_with(&second));
        assert_eq!(second.header.arg0.get(), 5);
        job.complete(&second, &done(Status::BAD_ADDRESS, 4096), operands);
        let Next::Done(answer) = take(&mut job) else {
            panic!("the device gave up")
        };
        assert_eq!(answer.status, Status::BAD_ADDRESS);
        assert_eq!(answer.bytes_done, 513 * 4096);
        // The first range of the second command.
        assert_eq!(answer.range_index, 512);
    }

    /// The steps of a job on so many pages that lie apart, each completed with `result`.
    fn steps(request: &Request, pages: usize, result: u64) -> (Vec<(Step, usize)>, Answer) {
        let pieces: Vec<_> = (0..pages as u64).map(|page| (page * 8192, 4096)).collect();
        let list = segments(&pieces);
        let one = segments(&[(1 << 40, 40)]);
        let (source, destination): (&[Segment], &[Segment]) = match request.shape() {
            Shape::Program => (&one, &list),
            Shape::Histogram => (&list, &one),
            Shape::Chase | Shape::Stream => (&list, &[]),
        };
        let operands = Operands {
            source,
            destination,
        };
        let mut job = Job::new(request, operands);
        let mut steps = Vec::new();
        loop {
            let mut ranges = 0;
            let count = |_| {
                ranges += 1;
                Ok::<(), ()>(())
            };
            match job.next(operands, count).expect("sink takes all") {
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
                    job.complete(&step, &completion, operands);
                }
            }
        }
    }

    #[test]
    fn a_sum_goes_on_from_step_to_step_at_whole_strides() {
        let request = Request {
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
            width: 4,
            arg1: 513 * 4096,
            ..request(Opcode::SUM)
        };
        assert_eq!(steps(&request, 600, 0).1.status, Status::MISALIGNED);
    }

    #[test]
    fn a_histogram_has_all_counters_in_each_step_and_adds_up_what_is_outside() {
        let request = Request {
            width: 2,
            repeat: 5,
            arg1: 1,
            ..request(Opcode::HISTOGRAM)
        };
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
    fn addresses_of_a_process_are_the_ranges_that_the_caller_named() {
        let source = [named(0x1003, 700 * 4096)];
        let destination = [
            named(0x7f00_0000_0000, 4096),
            named(0x7f00_0000_1000, 699 * 4096),
        ];
        let operands = Operands {
            source: &source,
            destination: &destination,
        };
        let mut job = Job::on_addresses(&request(Opcode::COPY), operands, 77);
        let mut ranges = Vec::new();
        let next = job.next(operands, |range| {
            ranges.push(range);
            Ok::<(), ()>(())
        });
        let Ok(Next::Submit(step)) = next else {
            panic!("no command: {next:?}");
        };
        assert_eq!(step.bytes, 700 * 4096);
        assert!(job.ends_with(&step));
        let found: Vec<_> = ranges
            .iter()
            .map(|range| (range.pasid.get(), range.address.get(), range.bytes.get()))
            .collect();
        assert_eq!(
            found,
            [
                (77, 0x1003, 700 * 4096),
                (77, 0x7f00_0000_0000, 4096),
                (77, 0x7f00_0000_1000, 699 * 4096)
            ]
        );
        assert!(ranges.iter().all(|range| range.space == Space::PROCESS));
    }

    #[test]
    fn what_cannot_be_cut_is_one_command_or_refused() {
        let program = Request {
            repeat: 4,
            arg1: 1,
            ..request(Opcode::PROGRAM)
        };
        let (one, answer) = steps(&program, 511, 7);
        assert_eq!((one.len(), one[0].1, answer.result), (1, 512, 7));
        let (none, answer) = steps(&program, 512, 7);
        assert_eq!(none.len(), 0);
        assert_eq!(answer, Answer::refusal(Status::BAD_RANGE_COUNT));
        let chase = Request {
            repeat: 1,
            ..request(Opcode::POINTER_CHASE)
        };
        assert_eq!(steps(&chase, 512, 7).0.len(), 1);
        assert!(chase.is_indivisible() && program.is_indivisible());
    }

    #[test]
    fn operands_of_one_piece_have_the_lengths_that_the_operation_gives_them() {
        let lengths = |request: Request| {
            let operands = request.operands(1, 1, 8).expect("they are ranges");
            operands.map(|operand| operand.map_or(0, |operand| operand.bytes))
        };
        let program = Request {
            repeat: 4,
            ..request(Opcode::PROGRAM)
        };
        assert_eq!(lengths(program), [64, 8]);
        let histogram = Request {
            repeat: 5,
            ..request(Opcode::HISTOGRAM)
        };
        assert_eq!(lengths(histogram), [8, 40]);
        assert_eq!(lengths(request(Opcode::COPY)), [8, 8]);
        // More than the device takes is left to the device to refuse.
        let repeat = u32::MAX;
        assert_eq!(lengths(Request { repeat, ..program }), [16, 8]);
        assert_eq!(
            lengths(Request {
                repeat,
                ..histogram
            }),
            [8, 8]
        );
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
            let expected = checksum(77, &flat(&source, &device.memory));
            let sum = Request { arg0: 77, ..request(Opcode::CHECKSUM) };
            let answer = play(&sum, &source, &[], &mut device);
            prop_assert_eq!(answer, Answer { status: Status::OK, range_index: 0, result: expected, bytes_done: length });

            let copy = request(Opcode::COPY);
            let expected = flat(&source, &device.memory);
            let answer = play(&copy, &source, &destination, &mut device);
            prop_assert_eq!(answer.bytes_done, length);
            prop_assert_eq!(&flat(&destination, &device.memory), &expected);

            let compare = request(Opcode::COMPARE);
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
                prop_assert_eq!(answer, Answer { status: Status::OK, range_index: 0, result: at, bytes_done: at });
            }

            let fill = Request { width: 8, arg0: 0x0102_0304_0506_0708, ..request(Opcode::FILL) };
            let answer = play(&fill, &[], &destination, &mut device);
            prop_assert_eq!(answer.bytes_done, length);
            let filled = flat(&destination, &device.memory);
            prop_assert!(filled.chunks(8).all(|element| element == [8, 7, 6, 5, 4, 3, 2, 1]));
            prop_assert!(device.commands >= 4);
        }
    }
}
