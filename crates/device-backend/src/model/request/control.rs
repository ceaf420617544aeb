// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests of the control queue.

use super::{Refusal, Request};
use cdm_protocol::{ControlOpcode, ControlRequest, Status};
use zerocopy::FromBytes;

/// A control request of the right form.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum ControlOperation {
    /// Show the device memory to the guest.
    MapMemory,
    /// Keep commands out of `bytes` from `base` on.
    SetMetadata {
        /// First byte of device memory.
        base: u64,
        /// Length; zero gives the range up.
        bytes: u64,
    },
    /// Cancel outstanding commands.
    Reset,
    /// Cancel one.
    Cancel {
        /// How the driver named it.
        tag: u64,
        /// Number of the queue that it is on.
        queue: u64,
    },
}

impl ControlOperation {
    /// Checks a request's form.
    pub fn parse(request: &Request<'_>) -> Result<Self, Refusal> {
        let refuse = |status| Err(Refusal::of(status));
        if request.total() != size_of::<ControlRequest>() as u64 {
            return refuse(Status::MALFORMED);
        }
        let Ok(raw) = ControlRequest::read_from_bytes(request.bytes()) else {
            return refuse(Status::MALFORMED);
        };
        let (arg0, arg1) = (raw.arg0.get(), raw.arg1.get());
        let operation = match raw.opcode {
            ControlOpcode::MAP_MEMORY => Self::MapMemory,
            ControlOpcode::SET_METADATA => Self::SetMetadata {
                base: arg0,
                bytes: arg1,
            },
            ControlOpcode::RESET => Self::Reset,
            ControlOpcode::CANCEL => Self::Cancel {
                tag: arg0,
                queue: arg1,
            },
            _ => return refuse(Status::UNKNOWN_OPCODE),
        };
        let unused = match operation {
            Self::MapMemory | Self::Reset => arg0 | arg1,
            Self::SetMetadata { .. } | Self::Cancel { .. } => 0,
        };
        if raw.flags.get() != 0 || raw.reserved.get() != 0 || unused != 0 {
            return refuse(Status::RESERVED_FIELD);
        }
        Ok(operation)
    }
}
