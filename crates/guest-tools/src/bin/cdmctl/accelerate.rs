// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Operations of `cdmctl run` that calculate, each checked against the CPU where the CPU
//! can tell.

use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use cdm_guest_tools::accelerator::{Bins, Code, Elements, Number};
use cdm_guest_tools::random::Random;
use cdm_guest_tools::size;
use cdm_protocol::{BINS_MAX, PROGRAM_STEPS_MAX, REPEAT_MAX};
use clap::ValueEnum;
use std::sync::atomic::Ordering::Relaxed;

use crate::buffer::{Buffer, Contents, Placement};
use crate::report::RunResult;
use crate::run::{Outcome, carry_out, number};

/// Bytes of a word: a pointer or a counter.
const WORD_BYTES: usize = 8;

/// Values of `--type`.
#[derive(Clone, Copy, ValueEnum)]
pub enum NumberArgument {
    /// Unsigned, 32 bits
    U32,
    /// Unsigned, 64 bits
    U64,
    /// Floating point, 32 bits
    F32,
}

/// What a vector consists of.
#[derive(clap::Args)]
pub struct Vector {
    /// Take elements of this type
    #[arg(long = "type", value_name = "TYPE", value_enum, default_value = "u32")]
    number: NumberArgument,

    /// Take one element every NUM bytes, a multiple of its size; 0 is its size
    #[arg(long, value_name = "NUM", default_value_t = 0)]
    stride: u64,
}

impl Vector {
    fn elements(&self) -> Elements {
        Elements {
            number: match self.number {
                NumberArgument::U32 => Number::U32,
                NumberArgument::U64 => Number::U64,
                NumberArgument::F32 => Number::F32,
            },
            stride: self.stride,
        }
    }

    /// A number of the command line as the device takes it.
    fn scalar(&self, value: f64) -> u64 {
        match self.number {
            NumberArgument::F32 => (value as f32).to_bits().into(),
            NumberArgument::U32 | NumberArgument::U64 => value as u64,
        }
    }

    /// A number of the device as people read it.
    fn shown(&self, bits: u64) -> String {
        match self.number {
            NumberArgument::F32 => f32::from_bits(bits as u32).to_string(),
            NumberArgument::U32 | NumberArgument::U64 => bits.to_string(),
        }
    }
}

/// `cdmctl run sum`.
#[derive(clap::Args)]
pub struct Sum {
    #[command(flatten)]
    vector: Vector,
    #[command(flatten)]
    contents: Contents,
    #[command(flatten)]
    placement: Placement,
}

impl Sum {
    pub fn run(&self) -> anyhow::Result<Outcome> {
        let buffer = Buffer::load(&self.contents)?;
        let elements = self.vector.elements();
        let bytes = buffer.memory.read_bytes(buffer.bytes);
        let answer = carry_out(&self.placement, &[&buffer], |device| {
            device.sum(&buffer.memory, buffer.span(), elements, 0)
        })?;
        let (sum, by_cpu) = (answer.result, elements.sum(0, elements.read(&bytes)));
        let shown = self.vector.shown(sum);
        let found = match sum == by_cpu {
            true => Ok(format!("sum {shown}")),
            false => Err(format!(
                "sum differs: device {shown}, CPU {}",
                self.vector.shown(by_cpu)
            )),
        };
        let result = RunResult::Number { result: sum };
        let bytes = answer.bytes_done;
        Ok(Outcome::new(&self.placement, "sum", bytes, found, result))
    }
}

/// `cdmctl run axpy`.
#[derive(clap::Args)]
pub struct Axpy {
    /// Multiply the elements by N
    #[arg(long, value_name = "N", default_value_t = 1.0)]
    factor: f64,

    /// Add to the contents of FILE, as long as the buffer; without it, to zeroes
    #[arg(long = "with", value_name = "FILE")]
    other: Option<String>,

    /// Write what comes out to FILE; '-' is standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<String>,

    #[command(flatten)]
    vector: Vector,
    #[command(flatten)]
    contents: Contents,
    #[command(flatten)]
    placement: Placement,
}

impl Axpy {
    pub fn run(&self) -> anyhow::Result<Outcome> {
        let x = Buffer::load(&self.contents)?;
        let y = match &self.other {
            Some(path) => Buffer::load(&Contents {
                input: Some(path.clone()),
                size: None,
            })?,
            None => Buffer::zeroed(x.bytes as u64)?,
        };
        ensure!(
            x.bytes == y.bytes,
            "{} bytes cannot be added to {}: give two inputs of one length",
            x.bytes,
            y.bytes
        );
        let (elements, factor) = (self.vector.elements(), self.vector.scalar(self.factor));
        let [xs, ys] = [&x, &y].map(|buffer| buffer.memory.read_bytes(buffer.bytes));
        let operands = ((&x.memory, x.span()), (&y.memory, y.span()));
        let answer = carry_out(&self.placement, &[&x, &y], |device| {
            device.axpy(operands.0, operands.1, elements, factor)
        })?;
        let computed = y.memory.read_bytes(y.bytes);
        let expected = elements
            .read(&xs)
            .zip(elements.read(&ys))
            .map(|(a, b)| elements.axpy(factor, a, b));
        let differs = elements
            .read(&computed)
            .zip(expected)
            .position(|(a, b)| a != b);
        if let Some(path) = &self.output {
            y.save(path)?;
        }
        let bytes = answer.bytes_done;
        let found = match differs {
            None => Ok(String::new()),
            Some(index) => Err(format!("element {index} is not what the CPU makes of it")),
        };
        let result = RunResult::Nothing {};
        Ok(Outcome::new(&self.placement, "axpy", bytes, found, result))
    }
}

/// `cdmctl run chase`.
#[derive(clap::Args)]
pub struct Chase {
    /// Lay the list out over SIZE bytes, in random order
    #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "1M")]
    size: u64,

    /// Follow NUM pointers
    #[arg(long, value_name = "NUM", default_value_t = REPEAT_MAX,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(REPEAT_MAX)))]
    hops: u32,

    /// Start the random order from NUM
    #[arg(long, value_name = "NUM", default_value_t = 1)]
    seed: u64,

    #[command(flatten)]
    placement: Placement,
}

impl Chase {
    pub fn run(&self) -> anyhow::Result<Outcome> {
        let buffer = Buffer::zeroed(self.size)?;
        let (base, words) = (buffer.memory.address(), buffer.memory.words());
        let words = &words[..buffer.bytes / WORD_BYTES];
        ensure!(
            !words.is_empty(),
            "a list needs 8 bytes: pass a larger --size"
        );
        let mut order: Vec<usize> = (0..words.len()).collect();
        let mut random = Random::new(self.seed);
        for index in (1..order.len()).rev() {
            order.swap(index, random.below(index + 1));
        }
        for (index, &word) in order.iter().enumerate() {
            let next = order[(index + 1) % order.len()];
            words[word].store(base + (next * WORD_BYTES) as u64, Relaxed);
        }
        let first = order[0];
        let mut span = buffer.span();
        span.bytes = words.len() * WORD_BYTES;
        let address = base + (first * WORD_BYTES) as u64;
        let mut took = Duration::ZERO;
        let answer = carry_out(&self.placement, &[&buffer], |device| {
            let start = Instant::now();
            let answer = device.chase(&buffer.memory, span, address, self.hops);
            took = start.elapsed();
            answer
        })?;
        let last = order[self.hops as usize % order.len()];
        let offset = answer.result.wrapping_sub(base);
        let found = match offset == (last * WORD_BYTES) as u64 {
            true => Ok(format!(
                "{} hops, {:.0} ns each, the way to the device and back included",
                self.hops,
                took.as_nanos() as f64 / f64::from(self.hops)
            )),
            false => Err(format!(
                "the list leads to byte {}, the device to {offset}",
                last * WORD_BYTES
            )),
        };
        let result = RunResult::Number { result: offset };
        let bytes = answer.bytes_done;
        Ok(Outcome::new(&self.placement, "chase", bytes, found, result))
    }
}

/// `cdmctl run histogram`.
#[derive(clap::Args)]
pub struct Histogram {
    /// Take elements of 1, 2, 4 or 8 bytes
    #[arg(long, value_name = "BYTES", default_value_t = 1)]
    width: u32,

    /// Count in NUM bins
    #[arg(long, value_name = "NUM", default_value_t = 256,
          value_parser = clap::value_parser!(u32).range(1..=i64::from(BINS_MAX)))]
    bins: u32,

    /// Begin the first bin at N
    #[arg(long, value_name = "N", value_parser = number, default_value = "0")]
    base: u64,

    /// Take N values into each bin
    #[arg(long, value_name = "N", value_parser = number, default_value = "1")]
    bin_width: u64,

    #[command(flatten)]
    contents: Contents,
    #[command(flatten)]
    placement: Placement,
}

impl Histogram {
    pub fn run(&self) -> anyhow::Result<Outcome> {
        let source = Buffer::load(&self.contents)?;
        let target = Buffer::zeroed(u64::from(self.bins) * WORD_BYTES as u64)?;
        let crc_before = source.memory.crc32c(source.bytes);
        let bins = Bins {
            base: self.base,
            width: self.bin_width,
        };
        let operands = (
            (&source.memory, source.span()),
            (&target.memory, target.span()),
        );
        let answer = carry_out(&self.placement, &[&source, &target], |device| {
            device.histogram(operands.0, operands.1, self.width, bins)
        })?;
        let words = target.memory.words()[..self.bins as usize].iter();
        let counters: Vec<u64> = words.map(|word| word.load(Relaxed)).collect();
        let outside = answer.result;
        let counted: u64 = counters.iter().sum::<u64>() + outside;
        // Each element is in one bin or outside, and nothing is changed by looking.
        let elements = source.bytes as u64 / u64::from(self.width.max(1));
        let is_whole = counted == elements && source.memory.crc32c(source.bytes) == crc_before;
        let used = counters.iter().filter(|&&count| count != 0).count();
        let found = match is_whole {
            true => Ok(format!(
                "{elements} elements in {used} of {} bins, {outside} outside",
                self.bins
            )),
            false => Err(format!(
                "{counted} counted, but there are {elements} elements"
            )),
        };
        let result = RunResult::Histogram { outside, counters };
        let bytes = answer.bytes_done;
        Ok(Outcome::new(
            &self.placement,
            "histogram",
            bytes,
            found,
            result,
        ))
    }
}

/// `cdmctl run program`.
#[derive(clap::Args)]
pub struct Program {
    /// Read instructions from FILE, one a line, such as 'LOAD d=0 imm=8 width=8 order=acquire'
    #[arg(long, value_name = "FILE")]
    code: String,

    /// Begin with N in register 0
    #[arg(long, value_name = "N", value_parser = number, default_value = "0")]
    argument: u64,

    /// Carry NUM instructions out at most
    #[arg(long, value_name = "NUM", default_value_t = 1_000_000,
          value_parser = clap::value_parser!(u64).range(1..=PROGRAM_STEPS_MAX))]
    limit: u64,

    /// Write the memory to FILE afterwards; '-' is standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<String>,

    #[command(flatten)]
    contents: Contents,
    #[command(flatten)]
    placement: Placement,
}

impl Program {
    pub fn run(&self) -> anyhow::Result<Outcome> {
        let text = std::fs::read_to_string(&self.code)
            .with_context(|| format!("cannot read program '{}'", self.code))?;
        let code: Code = text
            .parse()
            .map_err(|error| anyhow::anyhow!("program '{}': {error}", self.code))?;
        let buffer = Buffer::load(&self.contents)?;
        let operand = (&buffer.memory, buffer.span());
        let answer = carry_out(&self.placement, &[&buffer], |device| {
            device.program(&code, operand, self.argument, self.limit)
        })?;
        if let Some(path) = &self.output {
            buffer.save(path)?;
        }
        let (register, steps) = (answer.result, answer.bytes_done);
        let found = Ok(format!("register 0 is {register}"));
        let result = RunResult::Number { result: register };
        let outcome = Outcome::new(&self.placement, "program", steps, found, result);
        Ok(Outcome {
            done: Some(format!("{steps} steps")),
            ..outcome
        })
    }
}
