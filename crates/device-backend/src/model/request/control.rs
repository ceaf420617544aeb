// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests of the control queue.

use super::page_entry::parse_entries;
use super::{Refusal, Request};
use crate::model::translation::{Answer, Pasid, VirtualRange};
use cdm_protocol::{ControlOpcode, ControlRequest, PAGE_REQUEST_PAGES_MAX, PageEntry, Status};
use zerocopy::FromBytes;

/// A control request of the right form.
#[derive(Clone, Debug, PartialEq, Eq)]
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
    /// Make a PASID the name of an address space.
    Bind(Pasid),
    /// Forget it.
    Unbind(Pasid),
    /// Take the driver's answer to a page request.
    PageResponse {
        /// The address space that it is for.
        pasid: Pasid,
        /// Name of the page request.
        id: u64,
        /// What it says of the pages; `None` if that makes no sense.
        answers: Option<Vec<Answer>>,
    },
    /// Forget translations.
    Invalidate(Pasid, VirtualRange),
    /// Find device memory that has failed.
    FindBad {
        /// Where to begin.
        from: u64,
    },
    /// Count accesses.
    CountAccesses {
        /// The address space.
        pasid: Pasid,
        /// The count at which the driver is told; zero counts no more.
        threshold: u64,
    },
}

impl ControlOperation {
    /// Checks a request's form.
    pub fn parse(request: &Request<'_>) -> Result<Self, Refusal> {
        let refuse = |status| Err(Refusal::of(status));
        let Ok((raw, rest)) = ControlRequest::read_from_prefix(request.bytes()) else {
            return refuse(Status::MALFORMED);
        };
        let (arg0, arg1) = (raw.arg0.get(), raw.arg1.get());
        let num_entries = match raw.opcode {
            ControlOpcode::PAGE_RESPONSE => arg1.min(u64::from(PAGE_REQUEST_PAGES_MAX) + 1),
            _ => 0,
        };
        let expected_bytes =
            size_of::<ControlRequest>() as u64 + num_entries * size_of::<PageEntry>() as u64;
        let is_countable = num_entries <= PAGE_REQUEST_PAGES_MAX.into();
        if is_countable && request.total() != expected_bytes {
            return refuse(Status::MALFORMED);
        }
        let pasid = Pasid(raw.pasid.get());
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
            ControlOpcode::BIND => Self::Bind(pasid),
            ControlOpcode::UNBIND => Self::Unbind(pasid),
            ControlOpcode::PAGE_RESPONSE => Self::PageResponse {
                pasid,
                id: arg0,
                answers: match <[PageEntry]>::ref_from_bytes(rest) {
                    Ok(entries) if is_countable && !entries.is_empty() => parse_entries(entries),
                    _ => None,
                },
            },
            ControlOpcode::INVALIDATE => {
                let range = VirtualRange {
                    first: arg0,
                    last: arg1,
                };
                Self::Invalidate(pasid, range)
            }
            ControlOpcode::FIND_BAD => Self::FindBad { from: arg0 },
            ControlOpcode::COUNT_ACCESSES => Self::CountAccesses {
                pasid,
                threshold: arg0,
            },
            _ => return refuse(Status::UNKNOWN_OPCODE),
        };
        let unused = match operation {
            Self::MapMemory | Self::Reset => arg0 | arg1 | u64::from(pasid.0),
            Self::SetMetadata { .. } | Self::Cancel { .. } => pasid.0.into(),
            Self::Bind(_) | Self::Unbind(_) => arg0 | arg1,
            Self::CountAccesses { .. } => arg1,
            Self::PageResponse { .. } | Self::Invalidate(..) => 0,
            Self::FindBad { .. } => arg1 | u64::from(pasid.0),
        };
        if raw.flags.get() != 0 || unused != 0 {
            return refuse(Status::RESERVED_FIELD);
        }
        match operation {
            Self::Invalidate(_, VirtualRange { first, last }) if first > last => {
                refuse(Status::BAD_ARGUMENT)
            }
            operation => Ok(operation),
        }
    }
}
