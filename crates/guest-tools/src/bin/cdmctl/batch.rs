// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl run batch`: many commands in one call, read from a file.

use std::fmt;
use std::str::FromStr;

use anyhow::Context;
use cdm_guest_tools::batch::{Command, Fate};
use cdm_guest_tools::device::Span;
use cdm_guest_tools::size::Size;
use cdm_protocol::{Opcode, Status};

use crate::buffer::{Buffer, Contents, Placement};
use crate::report::{BatchCommand, RunResult};
use crate::run::{Outcome, number};
use crate::table::{self, figures, words};

/// A line of a batch: operation, ranges of the buffer, and arguments.
#[derive(Debug, Default, PartialEq, Eq)]
struct Line {
    /// Number and name of the operation.
    opcode: u16,
    name: &'static str,
    source: Vec<Span>,
    destination: Vec<Span>,
    width: u32,
    repeat: u32,
    args: [u64; 2],
    is_float: bool,
    is_unordered: bool,
}

impl Line {
    /// The command, on ranges of `buffer`.
    fn command<'m>(&self, buffer: &'m Buffer) -> std::io::Result<Command<'m>> {
        let mut command = Command::new(Opcode(self.opcode.into()))
            .width(self.width)
            .repeat(self.repeat)
            .args(self.args[0], self.args[1]);
        for span in &self.source {
            command = command.source(&buffer.memory, *span)?;
        }
        for span in &self.destination {
            command = command.destination(&buffer.memory, *span)?;
        }
        if self.is_float {
            command = command.float();
        }
        if self.is_unordered {
            command = command.unordered();
        }
        Ok(command)
    }

    /// Takes a word behind the operation in.
    fn set(&mut self, word: &str) -> Option<()> {
        match word {
            "float" => self.is_float = true,
            "unordered" => self.is_unordered = true,
            _ => {
                let (name, value) = word.split_once('=')?;
                match name {
                    "from" => self.source = ranges(value)?,
                    "to" => self.destination = ranges(value)?,
                    "width" => self.width = value.parse().ok()?,
                    "repeat" => self.repeat = value.parse().ok()?,
                    "arg0" => self.args[0] = number(value).ok()?,
                    "arg1" => self.args[1] = number(value).ok()?,
                    _ => return None,
                }
            }
        }
        Some(())
    }
}

/// Reads `OFFSET+BYTES`, or several with commas between them.
fn ranges(text: &str) -> Option<Vec<Span>> {
    let range = |text: &str| {
        let (offset, bytes) = text.split_once('+')?;
        let word = |text: &str| usize::try_from(number(text).ok()?).ok();
        Some(Span {
            offset: word(offset)?,
            bytes: word(bytes)?,
        })
    };
    text.split(',').map(range).collect()
}

/// The lines of a batch.
#[derive(Debug, PartialEq, Eq)]
struct Lines(Vec<Line>);

/// Why a text is no batch.
#[derive(Debug, PartialEq, Eq)]
struct LineError {
    line: usize,
    word: String,
}

impl fmt::Display for LineError {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let Self { line, word } = self;
        write!(
            f,
            "line {line}: '{word}' is neither an operation of docs/reference/device.md nor a field such \
             as from=0+4096,8192+64, to=4096+4160, width=8, repeat=1, arg0=0x5a, arg1=0, float or \
             unordered"
        )
    }
}

impl FromStr for Lines {
    type Err = LineError;

    /// Reads one command a line; what follows a `#` is a comment.
    fn from_str(text: &str) -> Result<Self, LineError> {
        let mut lines = Vec::new();
        for (index, line) in text.lines().enumerate() {
            let mut words = line.split('#').next().unwrap_or("").split_whitespace();
            let Some(name) = words.next() else { continue };
            let error = |word: &str| LineError {
                line: index + 1,
                word: word.to_owned(),
            };
            let known = Opcode::ALL.iter().find(|(_, known)| *known == name);
            let (opcode, name) = known.ok_or_else(|| error(name))?;
            let mut line = Line {
                opcode: opcode.get(),
                name,
                ..Default::default()
            };
            for word in words {
                line.set(word).ok_or_else(|| error(word))?;
            }
            lines.push(line);
        }
        Ok(Self(lines))
    }
}

/// `cdmctl run batch`.
#[derive(clap::Args)]
pub struct Batch {
    /// Read commands from FILE, one a line, such as 'COPY from=0+64,128+64 to=4096+128'
    #[arg(long, value_name = "FILE")]
    commands: String,

    /// Begin nothing behind a command that failed
    #[arg(long)]
    stop: bool,

    /// Write the buffer to FILE afterwards; '-' is standard output
    #[arg(long, value_name = "FILE")]
    pub output: Option<String>,

    #[command(flatten)]
    contents: Contents,
    #[command(flatten)]
    placement: Placement,
}

impl Batch {
    pub fn run(&self) -> anyhow::Result<Outcome> {
        let path = &self.commands;
        let text = std::fs::read_to_string(path)
            .with_context(|| format!("cannot read commands '{path}'"))?;
        let Lines(lines) = text
            .parse()
            .map_err(|error: LineError| anyhow::anyhow!("commands '{path}': {error}"))?;
        let buffer = Buffer::load(&self.contents)?;
        let commands = lines
            .iter()
            .map(|line| line.command(&buffer))
            .collect::<Result<Vec<_>, _>>()
            .with_context(|| format!("commands '{path}'"))?;
        let device = self.placement.prepare(&[&buffer])?;
        let number = device.number();
        let done = device
            .batch(&commands, self.stop)
            .with_context(|| format!("device {number} took no batch"))?;
        if let Some(error) = done.error {
            let (num_ok, all) = (done.num_ok, lines.len());
            return Err(error).with_context(|| {
                format!("device {number} ended the batch when {num_ok} of {all} commands were done")
            });
        }
        if let Some(path) = &self.output {
            buffer.save(path)?;
        }
        let commands: Vec<_> = lines
            .iter()
            .zip(&done.fates)
            .map(|(line, fate)| told(line.name, fate))
            .collect();
        let is_ok = |command: &&BatchCommand| command.status == "OK";
        let num_ok = commands.iter().filter(is_ok).count();
        let parts = Some(table(&commands));
        let found = format!("{num_ok} of {} commands are done", commands.len());
        let bytes_done = commands.iter().map(|command| command.bytes_done).sum();
        let first_bad = commands.iter().find(|command| command.status != "OK");
        let status = first_bad.map(|command| command.status.clone());
        let outcome = Outcome::new(
            &self.placement,
            "batch",
            bytes_done,
            if status.is_none() {
                Ok(found)
            } else {
                Err(found)
            },
            RunResult::Batch { commands },
        );
        Ok(Outcome {
            status: status.unwrap_or(outcome.status),
            parts,
            ..outcome
        })
    }
}

/// A row for each command. Only a command that failed has a range that is to blame.
fn table(commands: &[BatchCommand]) -> String {
    let columns = [
        figures("COMMAND"),
        words("OPERATION"),
        words("STATUS"),
        figures("RANGE"),
        figures("RESULT"),
        figures("DONE"),
    ];
    let none = || "-".to_owned();
    let rows = commands.iter().enumerate().map(|(index, command)| {
        let (range, result) = match command.status.as_str() {
            "OK" => (none(), format!("{:#x}", command.result)),
            _ => (command.range_index.to_string(), none()),
        };
        vec![
            index.to_string(),
            command.operation.to_owned(),
            command.status.clone(),
            range,
            result,
            Size(command.bytes_done).to_string(),
        ]
    });
    table::text(&columns, &rows.collect::<Vec<_>>())
}

/// What became of a command, for people and programs.
fn told(operation: &'static str, fate: &Fate) -> BatchCommand {
    let (status, range_index, result, bytes_done) = match fate {
        Fate::NotBegun => ("NOT_BEGUN".to_owned(), 0, 0, 0),
        Fate::NoAnswer => ("NO_ANSWER".to_owned(), 0, 0, 0),
        Fate::Answered(answer, range) => (
            status_name(answer.status),
            *range,
            answer.result,
            answer.bytes_done,
        ),
    };
    BatchCommand {
        operation,
        status,
        range_index,
        result,
        bytes_done,
    }
}

fn status_name(status: Status) -> String {
    status
        .name()
        .map_or_else(|| format!("status {}", status.get()), str::to_owned)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn row_of_a_failed_command_names_the_range_and_no_result() {
        let command = |operation, status: &str, result| BatchCommand {
            operation,
            status: status.into(),
            range_index: 1,
            result,
            bytes_done: 0,
        };
        let commands = [
            command("COPY", "LENGTH_MISMATCH", 0),
            command("SUM", "OK", 16),
        ];
        assert_eq!(
            table(&commands),
            "COMMAND  OPERATION  STATUS           RANGE  RESULT  DONE\n\
             \x20     0  COPY       LENGTH_MISMATCH      1       -   0 B\n\
             \x20     1  SUM        OK                   -    0x10   0 B\n"
        );
    }

    #[test]
    fn text_is_the_batch_that_it_says() {
        let text = "# gathers\n\nCOPY from=0+4,0x10+4 to=64+8 unordered # two pieces\nFENCE\n\
                    FETCH_ADD to=64+8 width=8 repeat=2 arg0=3";
        let Lines(lines) = text.parse().unwrap();
        let span = |offset, bytes| Span { offset, bytes };
        let copy = Line {
            opcode: Opcode::COPY.get(),
            name: "COPY",
            source: vec![span(0, 4), span(16, 4)],
            destination: vec![span(64, 8)],
            is_unordered: true,
            ..Default::default()
        };
        let add = Line {
            opcode: Opcode::FETCH_ADD.get(),
            name: "FETCH_ADD",
            destination: vec![span(64, 8)],
            width: 8,
            repeat: 2,
            args: [3, 0],
            ..Default::default()
        };
        assert_eq!(lines.len(), 3);
        assert_eq!((&lines[0], &lines[2]), (&copy, &add));
        assert_eq!(lines[1].name, "FENCE");
    }

    #[test]
    fn text_that_is_no_batch_is_refused_with_line_and_word() {
        for (text, line, word) in [
            ("NOP\nFLY", 2, "FLY"),
            ("COPY from", 1, "from"),
            ("COPY from=0", 1, "from=0"),
            ("COPY from=0+4, to=8+4", 1, "from=0+4,"),
            ("FILL to=0+4 wide=4", 1, "wide=4"),
            ("FILL to=0+4 arg0=x", 1, "arg0=x"),
        ] {
            let word = word.to_owned();
            assert_eq!(text.parse::<Lines>().unwrap_err(), LineError { line, word });
        }
    }
}
