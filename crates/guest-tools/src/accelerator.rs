// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Commands that calculate: vectors, lists, histograms, and programs of single accesses.

use std::fmt;
use std::io;
use std::str::FromStr;

use cdm_protocol::{Instruction, MemoryOrder, Opcode, Operator};
use zerocopy::{FromZeros, IntoBytes};

use crate::device::{Answer, Device, Span};
use crate::memory::Mapping;
use crate::uapi::{CDM_COMMAND_FLOAT, cdm_command};

/// What the elements of a vector are.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Number {
    /// Unsigned, 32 bits.
    U32,
    /// Unsigned, 64 bits.
    U64,
    /// IEEE 754 binary32.
    F32,
}

impl Number {
    /// Bytes of an element.
    pub fn bytes(self) -> usize {
        match self {
            Self::U32 | Self::F32 => 4,
            Self::U64 => 8,
        }
    }
}

/// Elements of a vector, and where they lie.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Elements {
    /// What they are.
    pub number: Number,
    /// Bytes from one to the next; zero if there is nothing between them.
    pub stride: u64,
}

impl Elements {
    /// The elements in a piece of memory, zero-extended.
    pub fn read(self, bytes: &[u8]) -> impl Iterator<Item = u64> {
        let width = self.number.bytes();
        let stride = (self.stride as usize).max(width);
        bytes.chunks(stride).filter_map(move |chunk| {
            let mut value = [0; 8];
            value[..width].copy_from_slice(chunk.get(..width)?);
            Some(u64::from_le_bytes(value))
        })
    }

    /// The sum of elements as the device specification defines it.
    pub fn sum(self, initial: u64, elements: impl Iterator<Item = u64>) -> u64 {
        elements.fold(initial, |sum, element| match self.number {
            Number::U32 | Number::U64 => sum.wrapping_add(element),
            Number::F32 => bits(float(sum) + float(element)),
        })
    }

    /// `factor * x + y` as the device specification defines it.
    pub fn axpy(self, factor: u64, x: u64, y: u64) -> u64 {
        let value = factor.wrapping_mul(x).wrapping_add(y);
        match self.number {
            Number::U32 => value & u64::from(u32::MAX),
            Number::U64 => value,
            Number::F32 => bits(float(factor) * float(x) + float(y)),
        }
    }
}

fn float(bits: u64) -> f32 {
    f32::from_bits(bits as u32)
}

/// Bits of a number; the device knows only one NaN.
fn bits(value: f32) -> u64 {
    match value.is_nan() {
        true => 0x7fc0_0000,
        false => value.to_bits().into(),
    }
}

/// Bins of a histogram.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Bins {
    /// Least value of the first one.
    pub base: u64,
    /// Values of each.
    pub width: u64,
}

impl Device {
    fn vector(opcode: Opcode, elements: Elements, length: usize, arg0: u64) -> cdm_command {
        cdm_command {
            opcode: opcode.get().into(),
            flags: match elements.number {
                Number::F32 => CDM_COMMAND_FLOAT,
                Number::U32 | Number::U64 => 0,
            },
            length: length as u64,
            width: elements.number.bytes() as u32,
            arg0,
            arg1: elements.stride,
            ..Default::default()
        }
    }

    /// Lets the device add elements to `initial`.
    pub fn sum(
        &self,
        memory: &Mapping,
        span: Span,
        elements: Elements,
        initial: u64,
    ) -> io::Result<Answer> {
        self.send(cdm_command {
            source: span.address_in(memory)?,
            ..Self::vector(Opcode::SUM, elements, span.bytes, initial)
        })
    }

    /// Lets the device add `factor` times each element of `x` to that of `y` in the same place.
    pub fn axpy(
        &self,
        x: (&Mapping, Span),
        y: (&Mapping, Span),
        elements: Elements,
        factor: u64,
    ) -> io::Result<Answer> {
        self.send(cdm_command {
            source: x.1.address_in(x.0)?,
            destination: y.1.address_in(y.0)?,
            ..Self::vector(Opcode::AXPY, elements, x.1.bytes, factor)
        })
    }

    /// Lets the device follow a list of addresses inside `span`, `hops` times from `first` on.
    pub fn chase(&self, memory: &Mapping, span: Span, first: u64, hops: u32) -> io::Result<Answer> {
        let base = span.address_in(memory)?;
        self.send(cdm_command {
            opcode: Opcode::POINTER_CHASE.get().into(),
            source: base,
            length: span.bytes as u64,
            repeat: hops,
            arg0: first,
            arg1: base,
            ..Default::default()
        })
    }

    /// Lets the device count elements of `width` bytes in the counters of `counters`.
    pub fn histogram(
        &self,
        source: (&Mapping, Span),
        counters: (&Mapping, Span),
        width: u32,
        bins: Bins,
    ) -> io::Result<Answer> {
        self.send(cdm_command {
            opcode: Opcode::HISTOGRAM.get().into(),
            source: source.1.address_in(source.0)?,
            destination: counters.1.address_in(counters.0)?,
            length: source.1.bytes as u64,
            width,
            repeat: (counters.1.bytes / size_of::<u64>()) as u32,
            arg0: bins.base,
            arg1: bins.width,
            ..Default::default()
        })
    }

    /// Lets the device carry `code` out on `memory`, at most `limit` instructions of it; register 0
    /// begins with `argument`.
    pub fn program(
        &self,
        code: &Code,
        memory: (&Mapping, Span),
        argument: u64,
        limit: u64,
    ) -> io::Result<Answer> {
        let home = Mapping::anonymous(code.bytes().len().max(1))?;
        home.write_bytes(code.bytes());
        self.send(cdm_command {
            opcode: Opcode::PROGRAM.get().into(),
            source: home.address(),
            destination: memory.1.address_in(memory.0)?,
            length: memory.1.bytes as u64,
            repeat: code.0.len() as u32,
            arg0: argument,
            arg1: limit,
            ..Default::default()
        })
    }
}

/// A program for the device. Registers go by their numbers, memory by offsets; a register that
/// nothing was put into is zero.
#[derive(Clone, Debug, Default)]
pub struct Code(Vec<Instruction>);

impl Code {
    /// A program of no instructions.
    pub fn new() -> Self {
        Self::default()
    }

    /// Number of the next instruction, for jumps back to it.
    pub fn here(&self) -> u64 {
        self.0.len() as u64
    }

    /// Appends any instruction.
    pub fn push(&mut self, instruction: Instruction) -> &mut Self {
        self.0.push(instruction);
        self
    }

    fn plain(&mut self, operator: Operator, [d, a, b]: [u8; 3], immediate: u64) -> &mut Self {
        self.push(Instruction {
            operator,
            order: MemoryOrder(0.into()),
            width: 0,
            d,
            a,
            b,
            immediate: immediate.into(),
        })
    }

    fn access(
        &mut self,
        operator: Operator,
        order: MemoryOrder,
        [d, a, b]: [u8; 3],
        offset: u64,
    ) -> &mut Self {
        self.push(Instruction {
            operator,
            order,
            width: 8,
            d,
            a,
            b,
            immediate: offset.into(),
        })
    }

    /// Puts a number into `d`.
    pub fn set(&mut self, d: u8, number: u64) -> &mut Self {
        self.plain(Operator::SET, [d, 0, 0], number)
    }

    /// Puts `a + b + number` into `d`.
    pub fn add(&mut self, d: u8, a: u8, b: u8, number: u64) -> &mut Self {
        self.plain(Operator::ADD, [d, a, b], number)
    }

    /// Loads the eight bytes at `a + offset` into `d`.
    pub fn load(&mut self, order: MemoryOrder, d: u8, a: u8, offset: u64) -> &mut Self {
        self.access(Operator::LOAD, order, [d, a, 0], offset)
    }

    /// Stores `b` in the eight bytes at `a + offset`.
    pub fn store(&mut self, order: MemoryOrder, b: u8, a: u8, offset: u64) -> &mut Self {
        self.access(Operator::STORE, order, [0, a, b], offset)
    }

    /// Adds `b` atomically to the eight bytes at `a + offset`; `d` gets what was there.
    pub fn atomic_add(
        &mut self,
        order: MemoryOrder,
        d: u8,
        b: u8,
        a: u8,
        offset: u64,
    ) -> &mut Self {
        self.access(Operator::ATOMIC_ADD, order, [d, a, b], offset)
    }

    /// Puts `b` atomically into the eight bytes at `a + offset`; `d` gets what was there.
    pub fn atomic_swap(
        &mut self,
        order: MemoryOrder,
        d: u8,
        b: u8,
        a: u8,
        offset: u64,
    ) -> &mut Self {
        self.access(Operator::ATOMIC_SWAP, order, [d, a, b], offset)
    }

    /// Puts `b` atomically into the eight bytes at `a + offset` if `d` is there; `d` gets what was
    /// there.
    pub fn atomic_compare_swap(
        &mut self,
        order: MemoryOrder,
        d: u8,
        b: u8,
        a: u8,
        offset: u64,
    ) -> &mut Self {
        self.access(Operator::ATOMIC_COMPARE_SWAP, order, [d, a, b], offset)
    }

    /// Orders the accesses before and after.
    pub fn barrier(&mut self, order: MemoryOrder) -> &mut Self {
        self.push(Instruction {
            operator: Operator::BARRIER,
            order,
            width: 0,
            d: 0,
            a: 0,
            b: 0,
            immediate: 0.into(),
        })
    }

    /// Lets others run for a moment.
    pub fn pause(&mut self) -> &mut Self {
        self.plain(Operator::PAUSE, [0; 3], 0)
    }

    /// Goes on at instruction `target` if `a` and `b` are equal.
    pub fn jump_equal(&mut self, a: u8, b: u8, target: u64) -> &mut Self {
        self.plain(Operator::JUMP_EQUAL, [0, a, b], target)
    }

    /// Goes on at instruction `target` if `a` and `b` differ.
    pub fn jump_not_equal(&mut self, a: u8, b: u8, target: u64) -> &mut Self {
        self.plain(Operator::JUMP_NOT_EQUAL, [0, a, b], target)
    }

    /// Goes on at instruction `target` if `a` is less than `b`.
    pub fn jump_less(&mut self, a: u8, b: u8, target: u64) -> &mut Self {
        self.plain(Operator::JUMP_LESS, [0, a, b], target)
    }

    /// All instructions, in order.
    pub fn instructions(&self) -> &[Instruction] {
        &self.0
    }

    /// The same, as the device reads them.
    pub fn bytes(&self) -> &[u8] {
        self.0.as_bytes()
    }

    /// Writes the program to the beginning of some memory; its length.
    pub fn write_to(&self, memory: &Mapping) -> usize {
        memory.write_bytes(self.bytes());
        self.bytes().len()
    }
}

/// Why a text is no program.
#[derive(Debug, PartialEq, Eq)]
pub struct CodeError {
    line: usize,
    word: String,
}

impl fmt::Display for CodeError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, word } = self;
        write!(
            f,
            "line {line}: '{word}' is neither an operator nor a field such as d=1, a=1, b=1, imm=8, \
             width=8 or order=acquire: see PROGRAM in docs/reference/device.md"
        )
    }
}

impl FromStr for Code {
    type Err = CodeError;

    /// Reads one instruction a line; what follows a `#` is a comment.
    fn from_str(text: &str) -> Result<Self, CodeError> {
        let mut code = Self::new();
        for (index, line) in text.lines().enumerate() {
            let mut words = line.split('#').next().unwrap_or("").split_whitespace();
            let Some(name) = words.next() else { continue };
            let error = |word: &str| CodeError {
                line: index + 1,
                word: word.to_owned(),
            };
            let operator = Operator::ALL.iter().find(|(_, known)| *known == name);
            let (operator, _) = operator.ok_or_else(|| error(name))?;
            let mut instruction = Instruction {
                operator: *operator,
                ..Instruction::new_zeroed()
            };
            for word in words {
                set_field(&mut instruction, word).ok_or_else(|| error(word))?;
            }
            code.push(instruction);
        }
        Ok(code)
    }
}

/// Reads one field of an instruction.
fn set_field(instruction: &mut Instruction, word: &str) -> Option<()> {
    let (name, value) = word.split_once('=')?;
    match name {
        "d" => instruction.d = value.parse().ok()?,
        "a" => instruction.a = value.parse().ok()?,
        "b" => instruction.b = value.parse().ok()?,
        "width" => instruction.width = value.parse().ok()?,
        "imm" => {
            let number: u64 = match value.strip_prefix("0x") {
                Some(digits) => u64::from_str_radix(digits, 16).ok()?,
                None => value.parse().ok()?,
            };
            instruction.immediate = number.into();
        }
        "order" => {
            let order = MemoryOrder::ALL.iter().find(|(_, known)| *known == value);
            instruction.order = order?.0;
        }
        _ => return None,
    }
    Some(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn elements_are_read_at_their_stride_up_to_the_end() {
        let bytes: Vec<u8> = (0..20).collect();
        let at = |stride| Elements {
            number: Number::U32,
            stride,
        };
        let first: Vec<u64> = at(0).read(&bytes).map(|value| value & 0xff).collect();
        assert_eq!(first, [0, 4, 8, 12, 16]);
        let second: Vec<u64> = at(8).read(&bytes).map(|value| value & 0xff).collect();
        assert_eq!(second, [0, 8, 16]);
    }

    #[test]
    fn text_is_the_program_that_it_says() {
        let text =
            "# adds up\n\nSET d=1 imm=0x10\nLOAD d=2 a=1 imm=8 width=8 order=acquire # a word\n";
        let mut expected = Code::new();
        expected.set(1, 16).load(MemoryOrder::ACQUIRE, 2, 1, 8);
        assert_eq!(text.parse::<Code>().unwrap().bytes(), expected.bytes());
    }

    #[test]
    fn text_that_is_no_program_is_refused_with_line_and_word() {
        for (text, line, word) in [
            ("END\nFLY d=1", 2, "FLY"),
            ("SET d", 1, "d"),
            ("SET x=1", 1, "x=1"),
            ("SET d=256", 1, "d=256"),
            ("LOAD order=never", 1, "order=never"),
        ] {
            let word = word.to_owned();
            assert_eq!(text.parse::<Code>().unwrap_err(), CodeError { line, word });
        }
    }

    #[test]
    fn sums_wrap_and_floats_round_in_order() {
        let integers = Elements {
            number: Number::U64,
            stride: 0,
        };
        assert_eq!(integers.sum(2, [u64::MAX, 5].into_iter()), 6);
        let floats = Elements {
            number: Number::F32,
            stride: 0,
        };
        let values = [1e8f32, 1.0, -1e8];
        let sum = floats.sum(0, values.into_iter().map(|value| value.to_bits().into()));
        assert_eq!(sum, 0);
        let infinity = u64::from(f32::INFINITY.to_bits());
        let nan = floats.sum(infinity, [infinity | 1 << 31].into_iter());
        assert_eq!(nan, 0x7fc0_0000);
    }
}
