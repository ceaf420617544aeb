// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What happens to one request.

use super::chance::Chance;
use cdm_control_protocol::{Fault, FaultKind};
use cdm_protocol::{Completion, Status};

/// Bytes of a completion.
const COMPLETION_BYTES: u32 = size_of::<Completion>() as u32;

/// All that happens to one request.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Effects {
    /// The faults that hit it.
    pub hits: Vec<FaultKind>,
    /// It is not carried out and ends with this.
    pub refusal: Option<Status>,
    /// What happens to its completion, in this order.
    pub leave: Vec<Leave>,
}

/// What happens to a completion.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Leave {
    /// It is not written, and its chain not given back.
    Drop,
    /// Its chain is given back twice.
    Duplicate,
    /// Its chain is given back after the next one.
    Reorder,
    /// So many bytes are written and told.
    Truncate(u32),
    /// The byte is changed by this.
    Corrupt {
        /// Which byte.
        offset: u32,
        /// What it is combined with by exclusive or; not zero.
        change: u8,
    },
    /// So many bytes are told.
    WrongLength(u32),
}

/// What one fault does to a request.
#[derive(Clone, Copy, Debug)]
pub enum Effect {
    /// See [`Effects::refusal`].
    Refuse(Status),
    /// See [`Effects::leave`].
    Leave(Leave),
}

impl Effect {
    /// What a fault does to a request that it hits, if it does it to the request.
    pub fn of(fault: &Fault, chance: &mut Chance) -> Option<Self> {
        Some(Self::Leave(match fault.kind {
            FaultKind::Hang
            | FaultKind::Delay
            | FaultKind::RefusePage
            | FaultKind::LateInvalidation
            | FaultKind::LateAccess
            | FaultKind::Poison => return None,
            FaultKind::Fail => {
                let status = fault.status.map(|number| Status(number.into()));
                return Some(Self::Refuse(status.unwrap_or(Status::HOST_ERROR)));
            }
            FaultKind::Drop => Leave::Drop,
            FaultKind::Duplicate => Leave::Duplicate,
            FaultKind::Reorder => Leave::Reorder,
            FaultKind::Truncate => {
                let by_chance = chance.below(COMPLETION_BYTES.into()) as u32;
                Leave::Truncate(fault.bytes.unwrap_or(by_chance))
            }
            FaultKind::Corrupt => {
                let by_chance = chance.below(COMPLETION_BYTES.into()) as u32;
                Leave::Corrupt {
                    offset: fault.offset.unwrap_or(by_chance),
                    change: 1 + chance.below(255) as u8,
                }
            }
            FaultKind::WrongLength => {
                // Anything but the right one: none, some, or more than there is room for.
                let more = COMPLETION_BYTES + 1 + chance.below(1 << 20) as u32;
                let less = chance.below(COMPLETION_BYTES.into()) as u32;
                let by_chance = if chance.one_in(2) { less } else { more };
                Leave::WrongLength(fault.bytes.unwrap_or(by_chance))
            }
        }))
    }
}
