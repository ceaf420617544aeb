// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Many commands in one call, each on lists of pieces of memory.

use std::io;
use std::marker::PhantomData;

use cdm_protocol::{Opcode, Status};

use crate::accelerator::Code;
use crate::device::{Answer, Device, Span};
use crate::memory::Mapping;
use crate::uapi::{
    CDM_BATCH_STOP, CDM_BATCH_SVA, CDM_COMMAND_FLOAT, CDM_COMMAND_UNORDERED, CDM_IOCTL_BATCH,
    CDM_STATUS_NO_ANSWER, CDM_STATUS_NOT_BEGUN, cdm_batch, cdm_batch_command, cdm_range,
};

/// A command of a batch, on memory that outlives it.
#[derive(Clone, Debug)]
pub struct Command<'m> {
    raw: cdm_batch_command,
    source: Vec<cdm_range>,
    destination: Vec<cdm_range>,
    memory: PhantomData<&'m Mapping>,
}

impl<'m> Command<'m> {
    /// An operation without operands and arguments.
    pub fn new(opcode: Opcode) -> Self {
        Self {
            raw: cdm_batch_command {
                opcode: opcode.get().into(),
                ..Default::default()
            },
            source: Vec::new(),
            destination: Vec::new(),
            memory: PhantomData,
        }
    }

    /// Stores the low `width` bytes of `value` all over what is appended as destination.
    pub fn fill(width: u32, value: u64) -> Self {
        Self::new(Opcode::FILL).width(width).args(value, 0)
    }

    /// Appends a piece to the source.
    pub fn source(mut self, memory: &'m Mapping, span: Span) -> io::Result<Self> {
        self.source.push(range(memory, span)?);
        Ok(self)
    }

    /// Appends a piece to the destination.
    pub fn destination(mut self, memory: &'m Mapping, span: Span) -> io::Result<Self> {
        self.destination.push(range(memory, span)?);
        Ok(self)
    }

    /// Takes the instructions of a program from memory that holds them.
    pub fn code(self, code: &Code, home: &'m Mapping) -> io::Result<Self> {
        let span = Span {
            offset: 0,
            bytes: code.write_to(home),
        };
        self.repeat(code.instructions().len() as u32)
            .source(home, span)
    }

    /// Sets the bytes of an element.
    pub fn width(mut self, width: u32) -> Self {
        self.raw.width = width;
        self
    }

    /// Sets how often, or how many.
    pub fn repeat(mut self, repeat: u32) -> Self {
        self.raw.repeat = repeat;
        self
    }

    /// Sets the arguments of the operation.
    pub fn args(mut self, arg0: u64, arg1: u64) -> Self {
        (self.raw.arg0, self.raw.arg1) = (arg0, arg1);
        self
    }

    /// Elements are floating-point numbers.
    pub fn float(mut self) -> Self {
        self.raw.flags |= CDM_COMMAND_FLOAT;
        self
    }

    /// It need not wait for others that are unordered.
    pub fn unordered(mut self) -> Self {
        self.raw.flags |= CDM_COMMAND_UNORDERED;
        self
    }
}

fn range(memory: &Mapping, span: Span) -> io::Result<cdm_range> {
    Ok(cdm_range {
        address: span.address_in(memory)?,
        bytes: span.bytes as u64,
    })
}

/// What became of a command of a batch.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Fate {
    /// The device has nothing of it.
    NotBegun,
    /// The device has it, and nobody waits for the answer.
    NoAnswer,
    /// It has an answer, which speaks of a range or instruction if it is bad.
    Answered(Answer, u32),
}

impl Fate {
    /// The status of the device, if there is one.
    pub fn status(&self) -> Option<Status> {
        match self {
            Self::Answered(answer, _) => Some(answer.status),
            Self::NotBegun | Self::NoAnswer => None,
        }
    }

    /// The result, or why there is none.
    pub fn ok(&self) -> io::Result<u64> {
        match self {
            Self::Answered(answer, _) => answer.ok(),
            other => Err(io::Error::other(format!("the command has {other:?}"))),
        }
    }
}

impl From<&cdm_batch_command> for Fate {
    fn from(raw: &cdm_batch_command) -> Self {
        match raw.status {
            CDM_STATUS_NOT_BEGUN => Self::NotBegun,
            CDM_STATUS_NO_ANSWER => Self::NoAnswer,
            status => {
                // A status above 16 bits cannot come from the wire; all ones is no known one.
                let number = u16::try_from(status).unwrap_or(u16::MAX);
                let answer = Answer {
                    status: Status(number.into()),
                    result: raw.result,
                    bytes_done: raw.bytes_done,
                };
                Self::Answered(answer, raw.range_index)
            }
        }
    }
}

/// What became of a batch.
#[derive(Debug)]
pub struct Done {
    /// Of each command.
    pub fates: Vec<Fate>,
    /// Commands whose status is OK, as the driver counts them.
    pub num_ok: u32,
    /// What ended it early, if that was an error.
    pub error: Option<io::Error>,
}

impl Done {
    /// The results, if the device has carried out all commands.
    pub fn ok(self) -> io::Result<Vec<u64>> {
        match self.error {
            Some(error) => Err(error),
            None => self.fates.iter().map(Fate::ok).collect(),
        }
    }
}

impl Device {
    /// Lets the device carry out commands, in their order but for those that are unordered; with
    /// `stop`, none begins that would have to wait for one that has failed.
    pub fn batch(&self, commands: &[Command<'_>], stop: bool) -> io::Result<Done> {
        let mut raw: Vec<_> = commands
            .iter()
            .map(|command| {
                let address = |list: &[cdm_range]| match list {
                    [] => 0,
                    list => list.as_ptr() as u64,
                };
                cdm_batch_command {
                    source: address(&command.source),
                    destination: address(&command.destination),
                    num_source: command.source.len() as u32,
                    num_destination: command.destination.len() as u32,
                    ..command.raw
                }
            })
            .collect();
        let mut request = cdm_batch {
            commands: raw.as_mut_ptr() as u64,
            num_commands: raw.len() as u32,
            flags: [(self.is_bound(), CDM_BATCH_SVA), (stop, CDM_BATCH_STOP)]
                .iter()
                .filter(|(is_wanted, _)| *is_wanted)
                .fold(0, |flags, (_, flag)| flags | flag),
            ..Default::default()
        };
        // SAFETY: the driver reads and writes exactly these structures, which outlive the call. The
        // device touches only the operands, as said of a single command.
        unsafe { self.ioctl(CDM_IOCTL_BATCH, (&raw mut request).cast()) }?;
        Ok(Done {
            fates: raw.iter().map(Fate::from).collect(),
            num_ok: request.num_ok,
            error: match request.error {
                0 => None,
                errno => Some(io::Error::from_raw_os_error(errno as i32)),
            },
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn marks_of_the_driver_are_no_answers() {
        let fate = |status| {
            Fate::from(&cdm_batch_command {
                status,
                range_index: 3,
                ..Default::default()
            })
        };
        assert_eq!(fate(CDM_STATUS_NOT_BEGUN), Fate::NotBegun);
        assert_eq!(fate(CDM_STATUS_NO_ANSWER), Fate::NoAnswer);
        assert_eq!(fate(0).status(), Some(Status::OK));
        assert!(fate(0).ok().is_ok());
        let Fate::Answered(answer, 3) = fate(u32::from(Status::MISALIGNED.get())) else {
            panic!("a status is an answer")
        };
        assert_eq!(answer.status, Status::MISALIGNED);
        // A mark that this version does not know.
        assert!(fate(0x10002).ok().is_err());
    }

    #[test]
    fn piece_outside_its_mapping_is_refused_before_the_driver_sees_it() {
        let memory = Mapping::anonymous(4096).unwrap();
        let span = Span {
            offset: 4090,
            bytes: 7,
        };
        assert!(
            Command::new(Opcode::CHECKSUM)
                .source(&memory, span)
                .is_err()
        );
    }
}
