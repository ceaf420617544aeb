// SPDX-License-Identifier: GPL-2.0-only

//! A batch as a process hands it in: copied once, and checked.
//!
//! Facility: user memory. C header: `uapi/cdm.h`. Contexts: process context, under no driver
//! lock. Invariant: what is checked is what is used; nothing of it is read twice.

use kernel::alloc::flags::GFP_KERNEL_ACCOUNT;
use kernel::prelude::*;
use kernel::transmute::{AsBytes, FromBytes};
use kernel::uaccess::{UserPtr, UserSlice};

use crate::plan::{bytes_of, Operands, Request, Segment};
use crate::run::{Command, Fate};
use crate::wire::Status;
use crate::{sys, wire};

const COMMANDS_MAX: usize = sys::CDM_BATCH_COMMANDS_MAX as usize;
const COMMAND_RANGES_MAX: usize = sys::CDM_COMMAND_RANGES_MAX as usize;
const RANGES_MAX: usize = sys::CDM_BATCH_RANGES_MAX as usize;
const BYTES_MAX: u64 = sys::CDM_BATCH_BYTES_MAX as u64;
/// Marks are no statuses of the device, and one of its commands can have as many ranges as one of
/// a batch.
const _: () = {
    assert!(sys::CDM_STATUS_NOT_BEGUN > u16::MAX as u32);
    assert!(COMMAND_RANGES_MAX == wire::RANGES_MAX);
    assert!(BYTES_MAX == 2 * wire::TRANSFER_BYTES_MAX);
};

/// The commands of a process, and where they came from.
pub(crate) struct UserBatch {
    at: UserPtr,
    raw: KVVec<sys::cdm_batch_command>,
    /// The ranges of all commands: of each its sources, then its destinations.
    ranges: KVVec<Segment>,
}

impl UserBatch {
    /// Copies `count` commands in, and their ranges.
    ///
    /// EINVAL, E2BIG, EFAULT, ENOMEM as the interface says.
    pub(crate) fn read(at: u64, count: u32, is_pinned: bool) -> Result<Self> {
        let count = count as usize;
        if count == 0 {
            return Err(EINVAL);
        }
        if count > COMMANDS_MAX {
            return Err(E2BIG);
        }
        let at = pointer(at)?;
        let raw: KVVec<sys::cdm_batch_command> = read_list(at, count)?;
        // Before anything is done, so that what cannot be written to is EFAULT now.
        write_list(at, &raw)?;

        let mut num_ranges = 0;
        for command in &raw {
            let (sources, destinations) = lengths(command);
            let known = sys::CDM_COMMAND_FLOAT | sys::CDM_COMMAND_UNORDERED;
            if command.flags & !known != 0
                || command.reserved != 0
                || (command.source == 0) != (sources == 0)
                || (command.destination == 0) != (destinations == 0)
            {
                return Err(EINVAL);
            }
            let ranges = sources.saturating_add(destinations);
            num_ranges += ranges.min(RANGES_MAX + 1);
            if ranges > COMMAND_RANGES_MAX || num_ranges > RANGES_MAX {
                return Err(E2BIG);
            }
        }
        let mut ranges = KVVec::with_capacity(num_ranges, GFP_KERNEL_ACCOUNT)?;
        for command in &raw {
            let (sources, destinations) = lengths(command);
            for (at, count) in [
                (command.source, sources),
                (command.destination, destinations),
            ] {
                if count == 0 {
                    continue;
                }
                let list: KVVec<sys::cdm_range> = read_list(pointer(at)?, count)?;
                for range in &list {
                    let range = Segment::of_process(range.address, range.bytes).ok_or(EINVAL)?;
                    ranges.push(range, GFP_KERNEL_ACCOUNT)?;
                }
            }
        }
        if is_pinned && bytes_of(&ranges) > BYTES_MAX {
            return Err(E2BIG);
        }
        Ok(Self { at, raw, ranges })
    }

    /// The commands, to be carried out.
    pub(crate) fn commands(&self) -> Result<KVVec<Command<'_>>> {
        let mut commands = KVVec::with_capacity(self.raw.len(), GFP_KERNEL_ACCOUNT)?;
        let mut rest = &self.ranges[..];
        for raw in &self.raw {
            let (sources, destinations) = lengths(raw);
            let (source, others) = rest.split_at(sources);
            let (destination, others) = others.split_at(destinations);
            rest = others;
            let mut flags = 0;
            if raw.flags & sys::CDM_COMMAND_FLOAT != 0 {
                flags |= wire::FLAG_FLOAT;
            }
            if raw.flags & sys::CDM_COMMAND_UNORDERED != 0 {
                flags |= wire::FLAG_UNORDERED;
            }
            let command = Command {
                request: Request {
                    opcode: raw.opcode,
                    flags,
                    width: raw.width,
                    repeat: raw.repeat,
                    arg0: raw.arg0,
                    arg1: raw.arg1,
                },
                named: Operands {
                    source,
                    destination,
                },
            };
            commands.push(command, GFP_KERNEL_ACCOUNT)?;
        }
        Ok(commands)
    }

    /// Tells the process what became of its commands; how many are done as they should be.
    pub(crate) fn write(mut self, fates: &[Fate]) -> Result<u32> {
        let mut num_ok = 0;
        for (raw, fate) in self.raw.iter_mut().zip(fates) {
            (raw.range_index, raw.result, raw.bytes_done) = (0, 0, 0);
            raw.status = match fate {
                Fate::NotBegun => sys::CDM_STATUS_NOT_BEGUN,
                Fate::NoAnswer => sys::CDM_STATUS_NO_ANSWER,
                Fate::Answered(answer) => {
                    num_ok += u32::from(answer.status == Status::OK);
                    raw.range_index = answer.range_index;
                    raw.result = answer.result;
                    raw.bytes_done = answer.bytes_done;
                    answer.status.get().into()
                }
            };
        }
        write_list(self.at, &self.raw)?;
        Ok(num_ok)
    }
}

/// Ranges of source and destination.
fn lengths(command: &sys::cdm_batch_command) -> (usize, usize) {
    (
        command.num_source as usize,
        command.num_destination as usize,
    )
}

fn pointer(address: u64) -> Result<UserPtr> {
    let address = usize::try_from(address).map_err(|_| EFAULT)?;
    Ok(UserPtr::from_addr(address))
}

fn read_list<T: FromBytes>(at: UserPtr, count: usize) -> Result<KVVec<T>> {
    let mut reader = UserSlice::new(at, count * size_of::<T>()).reader();
    let mut list = KVVec::with_capacity(count, GFP_KERNEL_ACCOUNT)?;
    for _ in 0..count {
        list.push(reader.read()?, GFP_KERNEL_ACCOUNT)?;
    }
    Ok(list)
}

fn write_list<T: AsBytes>(at: UserPtr, list: &[T]) -> Result {
    let mut writer = UserSlice::new(at, size_of_val(list)).writer();
    list.iter().try_for_each(|value| writer.write(value))
}
