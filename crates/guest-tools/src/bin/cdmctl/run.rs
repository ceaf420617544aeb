// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl run`: commands of the device on a buffer of this process.

use std::sync::atomic::Ordering::SeqCst;

use anyhow::{Context, bail};
use cdm_guest_tools::device::{Answer, Comparison, Device, Span};
use cdm_guest_tools::size;
use cdm_protocol::{REPEAT_MAX, Status};
use clap::Subcommand;

use crate::accelerate::{Axpy, Chase, Histogram, Program, Sum};
use crate::batch::Batch;
use crate::buffer::{Buffer, Contents, Placement};
use crate::report::{self, RunReport, RunResult};
use crate::table::{self, figures, words};
use crate::{Verdict, open};

const EXAMPLES: &str = "\
Examples:
  cdmctl run checksum --size 64M
  cdmctl run checksum --input /etc/passwd --in system
  cdmctl run fill --size 4K --value 0x5a --width 1 --output - | hexdump -C
  cdmctl run copy --input a.bin --output b.bin
  cdmctl run compare --input a.bin --with b.bin
  cdmctl run fetch-add --value 3 --times 1000 --initial 7
  cdmctl run sum --type f32 --size 64M
  cdmctl run axpy --type f32 --factor 2.5 --input x.bin --with y.bin --output -
  cdmctl run chase --size 64M --in device
  cdmctl run histogram --input /etc/passwd --bins 256 --json
  cdmctl run program --code increment.txt --size 4K
  cdmctl run batch --commands copies.txt --size 1M --json";

#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    #[command(subcommand)]
    operation: Operation,

    /// Print JSON for programs
    #[arg(long, global = true)]
    json: bool,
}

#[derive(Subcommand)]
enum Operation {
    /// Do nothing, in order with other commands
    Nop {
        /// Use device N, of /dev/cdmN
        #[arg(long, value_name = "N", default_value_t = 0)]
        device: u32,
    },
    /// Compute the CRC-32C of a buffer, and check it against the CPU's
    Checksum {
        #[command(flatten)]
        contents: Contents,
        #[command(flatten)]
        placement: Placement,
    },
    /// Store a value all over a buffer
    Fill {
        /// Make the buffer SIZE long
        #[arg(long, value_name = "SIZE", value_parser = size::parse, default_value = "1M")]
        size: u64,
        /// Store the number N
        #[arg(long, value_name = "N", value_parser = number)]
        value: u64,
        /// Take 1, 2, 4 or 8 bytes of it
        #[arg(long, value_name = "BYTES", default_value_t = 8)]
        width: u32,
        /// Write the buffer to FILE afterwards; '-' is standard output
        #[arg(long, value_name = "FILE")]
        output: Option<String>,
        #[command(flatten)]
        placement: Placement,
    },
    /// Copy a buffer into another one
    Copy {
        #[command(flatten)]
        contents: Contents,
        /// Write the copy to FILE; '-' is standard output
        #[arg(long, value_name = "FILE")]
        output: Option<String>,
        #[command(flatten)]
        placement: Placement,
    },
    /// Compare two files; exit status 1 if they differ
    Compare {
        /// Compare FILE; '-' is standard input
        #[arg(long, value_name = "FILE")]
        input: String,
        /// Compare it with FILE
        #[arg(long = "with", value_name = "FILE")]
        other: String,
        #[command(flatten)]
        placement: Placement,
    },
    /// Add to a number atomically
    FetchAdd {
        /// Begin with N
        #[arg(long, value_name = "N", value_parser = number, default_value = "0")]
        initial: u64,
        /// Add N each time
        #[arg(long, value_name = "N", value_parser = number, default_value = "1")]
        value: u64,
        /// Add NUM times
        #[arg(long, value_name = "NUM", default_value_t = 1,
              value_parser = clap::value_parser!(u32).range(1..=REPEAT_MAX as i64))]
        times: u32,
        #[command(flatten)]
        placement: Placement,
    },
    /// Replace a number atomically if it is the expected one; exit status 1 if it is not
    CompareSwap {
        /// Begin with N
        #[arg(long, value_name = "N", value_parser = number, default_value = "0")]
        initial: u64,
        /// Expect N
        #[arg(long, value_name = "N", value_parser = number)]
        expect: u64,
        /// Store N
        #[arg(long, value_name = "N", value_parser = number)]
        store: u64,
        #[command(flatten)]
        placement: Placement,
    },
    /// Add up the numbers of a buffer, and check the sum against the CPU's
    Sum(Sum),
    /// Add a multiple of one buffer to another, and check it against the CPU
    Axpy(Axpy),
    /// Follow a list of pointers, and tell how long each took
    Chase(Chase),
    /// Count the values in a buffer
    Histogram(Histogram),
    /// Carry out instructions on a buffer
    Program(Program),
    /// Carry out many commands in one call, on ranges of a buffer
    Batch(Batch),
}

/// Reads a decimal or, with `0x`, hexadecimal number.
pub(crate) fn number(text: &str) -> Result<u64, String> {
    match text.strip_prefix("0x") {
        Some(digits) => u64::from_str_radix(digits, 16),
        None => text.parse(),
    }
    .map_err(|error| format!("'{text}' is no number: {error}"))
}

/// What one operation found, and how to show it.
pub(crate) struct Outcome {
    pub(crate) operation: &'static str,
    pub(crate) device: u32,
    pub(crate) status: String,
    pub(crate) bytes_done: u64,
    pub(crate) result: RunResult,
    /// What came out, in a few words for people.
    pub(crate) found: String,
    /// How much was done, if bytes are not the measure of it.
    pub(crate) done: Option<String>,
    /// A table of its parts for people.
    pub(crate) parts: Option<String>,
    pub(crate) verdict: Verdict,
}

impl Outcome {
    /// Of an operation that the device has carried out; what came out is an error if a check failed.
    pub(crate) fn new(
        placement: &Placement,
        operation: &'static str,
        bytes_done: u64,
        found: Result<String, String>,
        result: RunResult,
    ) -> Self {
        let verdict = match found {
            Ok(_) => Verdict::Done,
            Err(_) => Verdict::CheckFailed,
        };
        Self {
            operation,
            device: placement.device,
            status: Status::OK.name().unwrap_or_default().to_owned(),
            bytes_done,
            result,
            found: found.unwrap_or_else(|found| found),
            done: None,
            parts: None,
            verdict,
        }
    }

    /// The tables for people.
    fn tables(&self) -> String {
        let columns = [
            figures("DEVICE"),
            words("OPERATION"),
            words("STATUS"),
            figures("DONE"),
            words("FOUND"),
        ];
        let done = self.done.clone();
        let row = vec![
            self.device.to_string(),
            self.operation.to_owned(),
            self.status.clone(),
            done.unwrap_or_else(|| size::Size(self.bytes_done).to_string()),
            self.found.clone(),
        ];
        let parts = self.parts.iter().map(|parts| format!("{parts}\n"));
        parts.chain([table::text(&columns, &[row])]).collect()
    }
}

/// Has the device carry out a command on buffers, which are put where they shall lie before.
pub(crate) fn carry_out(
    placement: &Placement,
    buffers: &[&Buffer],
    command: impl FnOnce(&Device) -> std::io::Result<Answer>,
) -> anyhow::Result<Answer> {
    let device = placement.prepare(buffers)?;
    answered(&device, command(&device))
}

pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    let outcome = perform(&args.operation)?;
    if args.json {
        report::print(&RunReport {
            version: report::VERSION,
            device: outcome.device,
            operation: outcome.operation,
            status: outcome.status,
            bytes_done: outcome.bytes_done,
            result: outcome.result,
        })?;
    } else {
        // Standard error, since the buffer itself may go to standard output.
        match writes_to_stdout(&args.operation) {
            true => eprint!("{}", outcome.tables()),
            false => print!("{}", outcome.tables()),
        }
    }
    Ok(outcome.verdict)
}

fn writes_to_stdout(operation: &Operation) -> bool {
    match operation {
        Operation::Fill { output, .. } | Operation::Copy { output, .. } => {
            output.as_deref() == Some("-")
        }
        Operation::Axpy(Axpy { output, .. })
        | Operation::Program(Program { output, .. })
        | Operation::Batch(Batch { output, .. }) => output.as_deref() == Some("-"),
        _ => false,
    }
}

fn perform(operation: &Operation) -> anyhow::Result<Outcome> {
    match operation {
        Operation::Nop { device } => nop(*device),
        Operation::Checksum {
            contents,
            placement,
        } => checksum(contents, placement),
        Operation::Fill {
            size,
            value,
            width,
            output,
            placement,
        } => fill(*size, *value, *width, output.as_deref(), placement),
        Operation::Copy {
            contents,
            output,
            placement,
        } => copy(contents, output.as_deref(), placement),
        Operation::Compare {
            input,
            other,
            placement,
        } => compare(input, other, placement),
        Operation::FetchAdd {
            initial,
            value,
            times,
            placement,
        } => fetch_add(*initial, *value, *times, placement),
        Operation::CompareSwap {
            initial,
            expect,
            store,
            placement,
        } => compare_swap(*initial, *expect, *store, placement),
        Operation::Sum(sum) => sum.run(),
        Operation::Axpy(axpy) => axpy.run(),
        Operation::Chase(chase) => chase.run(),
        Operation::Histogram(histogram) => histogram.run(),
        Operation::Program(program) => program.run(),
        Operation::Batch(batch) => batch.run(),
    }
}

fn nop(number: u32) -> anyhow::Result<Outcome> {
    let device = open(number)?;
    let answer = answered(&device, device.nop())?;
    Ok(Outcome {
        operation: "nop",
        device: number,
        status: Status::OK.name().unwrap_or_default().to_owned(),
        bytes_done: answer.bytes_done,
        result: RunResult::Nothing {},
        found: String::new(),
        done: None,
        parts: None,
        verdict: Verdict::Done,
    })
}

fn checksum(contents: &Contents, placement: &Placement) -> anyhow::Result<Outcome> {
    let buffer = Buffer::load(contents)?;
    let by_cpu = buffer.memory.crc32c(buffer.bytes);
    let device = placement.prepare(&[&buffer])?;
    let crc = device
        .checksum(&buffer.memory, buffer.span(), 0)
        .with_context(|| format!("device {} gave no checksum", placement.device))?;
    let found = match crc == by_cpu {
        true => Ok(format!("crc32c {crc:#010x}")),
        false => Err(format!(
            "crc32c differs: device {crc:#010x}, CPU {by_cpu:#010x}"
        )),
    };
    let bytes = buffer.bytes as u64;
    let crc32c = format!("{crc:#010x}");
    let result = RunResult::Checksum { crc32c };
    Ok(Outcome::new(placement, "checksum", bytes, found, result))
}

fn fill(
    size: u64,
    value: u64,
    width: u32,
    output: Option<&str>,
    placement: &Placement,
) -> anyhow::Result<Outcome> {
    let buffer = Buffer::zeroed(size)?;
    let answer = carry_out(placement, &[&buffer], |device| {
        device.fill(&buffer.memory, buffer.span(), width, value)
    })?;
    if let Some(path) = output {
        buffer.save(path)?;
    }
    let bytes = answer.bytes_done;
    let result = RunResult::Nothing {};
    Ok(Outcome::new(
        placement,
        "fill",
        bytes,
        Ok(String::new()),
        result,
    ))
}

fn copy(
    contents: &Contents,
    output: Option<&str>,
    placement: &Placement,
) -> anyhow::Result<Outcome> {
    let source = Buffer::load(contents)?;
    let target = Buffer::zeroed(source.bytes as u64)?;
    let answer = carry_out(placement, &[&source, &target], |device| {
        device.copy(
            (&source.memory, source.span()),
            (&target.memory, target.span()),
        )
    })?;
    if let Some(path) = output {
        target.save(path)?;
    }
    let bytes = answer.bytes_done;
    let result = RunResult::Nothing {};
    Ok(Outcome::new(
        placement,
        "copy",
        bytes,
        Ok(String::new()),
        result,
    ))
}

fn compare(input: &str, other: &str, placement: &Placement) -> anyhow::Result<Outcome> {
    let load = |path: &str| {
        Buffer::load(&Contents {
            input: Some(path.into()),
            size: None,
        })
    };
    let (a, b) = (load(input)?, load(other)?);
    let device = placement.prepare(&[&a, &b])?;
    // The device compares equal lengths; beyond the shorter file there is a difference.
    let span = Span {
        offset: 0,
        bytes: a.bytes.min(b.bytes),
    };
    let comparison = device
        .compare((&a.memory, span), (&b.memory, span))
        .with_context(|| format!("device {} gave no comparison", placement.device))?;
    let differs_at = match comparison {
        Comparison::DiffersAt(offset) => Some(offset),
        Comparison::Equal if a.bytes != b.bytes => Some(span.bytes as u64),
        Comparison::Equal => None,
    };
    let found = match differs_at {
        None => Ok("equal".into()),
        Some(offset) => Err(format!("differ at byte {offset}")),
    };
    let result = RunResult::Compare {
        equal: differs_at.is_none(),
        differs_at,
    };
    let bytes = span.bytes as u64;
    Ok(Outcome::new(placement, "compare", bytes, found, result))
}

/// Has the device carry out an atomic command on eight bytes that hold `initial`: its answer, and
/// what they hold afterwards.
fn on_number(
    initial: u64,
    placement: &Placement,
    command: impl FnOnce(&Device, &Buffer) -> std::io::Result<Answer>,
) -> anyhow::Result<(Answer, u64)> {
    let buffer = Buffer::from_bytes(&initial.to_le_bytes())?;
    let answer = carry_out(placement, &[&buffer], |device| command(device, &buffer))?;
    Ok((answer, buffer.memory.word(0).load(SeqCst)))
}

fn fetch_add(
    initial: u64,
    value: u64,
    times: u32,
    placement: &Placement,
) -> anyhow::Result<Outcome> {
    let (answer, after) = on_number(initial, placement, |device, buffer| {
        device.fetch_add(&buffer.memory, buffer.span(), value, times)
    })?;
    let (before, bytes) = (answer.result, answer.bytes_done);
    let found = Ok(format!("{after}; {before} before the last addition"));
    let result = RunResult::Atomic { before, after };
    Ok(Outcome::new(placement, "fetch-add", bytes, found, result))
}

fn compare_swap(
    initial: u64,
    expect: u64,
    store: u64,
    placement: &Placement,
) -> anyhow::Result<Outcome> {
    let (answer, after) = on_number(initial, placement, |device, buffer| {
        device.compare_swap(&buffer.memory, buffer.span(), expect, store)
    })?;
    let (before, bytes) = (answer.result, answer.bytes_done);
    let found = match before == expect {
        true => Ok(format!("{before} replaced by {after}")),
        false => Err(format!("found {before}, not {expect}; left alone")),
    };
    let result = RunResult::Atomic { before, after };
    Ok(Outcome::new(
        placement,
        "compare-swap",
        bytes,
        found,
        result,
    ))
}

/// The answer, if the driver gave one and the device carried the command out.
fn answered(device: &Device, answer: std::io::Result<Answer>) -> anyhow::Result<Answer> {
    let number = device.number();
    let answer = answer.with_context(|| format!("device {number} took no command"))?;
    match answer.status {
        Status::OK => Ok(answer),
        status => bail!(
            "device {number} refused the command with {status:?}: see the statuses in \
             docs/reference/device.md"
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome() -> Outcome {
        Outcome {
            operation: "checksum",
            device: 0,
            status: "OK".into(),
            bytes_done: 1 << 20,
            result: RunResult::Nothing {},
            found: "crc32c 0x285a29b2".into(),
            done: None,
            parts: None,
            verdict: Verdict::Done,
        }
    }

    #[test]
    fn table_tells_how_much_was_done_and_what_was_found() {
        assert_eq!(
            outcome().tables(),
            "DEVICE  OPERATION  STATUS   DONE  FOUND\n\
             \x20    0  checksum   OK      1 MiB  crc32c 0x285a29b2\n"
        );
        let program = Outcome {
            done: Some("3 steps".into()),
            ..outcome()
        };
        assert!(program.tables().contains("  3 steps  crc32c"));
    }

    #[test]
    fn parts_of_an_operation_are_a_table_before_it() {
        let batch = Outcome {
            parts: Some("PART\none\n".into()),
            ..outcome()
        };
        assert!(batch.tables().starts_with("PART\none\n\nDEVICE"));
    }

    #[test]
    fn numbers_are_decimal_or_hexadecimal() {
        assert_eq!(number("10"), Ok(10));
        assert_eq!(number("0x10"), Ok(16));
        assert!(number("ten").is_err());
        assert!(number("0xffffffffffffffffff").is_err());
    }
}
