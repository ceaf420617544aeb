// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Lists of ranges.

use super::Refusal;
use crate::model::translation::Pasid;
use cdm_protocol::{Range, Space, Status, TRANSFER_BYTES_MAX};

/// Where a piece of an operand begins.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Offset into the device memory.
    Device(u64),
    /// Guest-physical address.
    Guest(u64),
    /// Virtual address of a process.
    Process(Pasid, u64),
}

impl Place {
    /// The place so many bytes further, in the same space.
    pub fn plus(self, bytes: u64) -> Self {
        match self {
            Self::Device(address) => Self::Device(address.wrapping_add(bytes)),
            Self::Guest(address) => Self::Guest(address.wrapping_add(bytes)),
            Self::Process(pasid, address) => Self::Process(pasid, address.wrapping_add(bytes)),
        }
    }

    /// Where it is in its space.
    pub fn address(self) -> u64 {
        match self {
            Self::Device(address) | Self::Guest(address) | Self::Process(_, address) => address,
        }
    }

    /// The address space of a process that it is in.
    pub fn pasid(self) -> Option<Pasid> {
        match self {
            Self::Process(pasid, _) => Some(pasid),
            Self::Device(_) | Self::Guest(_) => None,
        }
    }
}

/// One piece of an operand, of the right form: known space, not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Extent {
    /// Where it begins.
    pub place: Place,
    /// Its length.
    pub bytes: u64,
}

/// Checks a list whose first range has index `first_index` in the command.
pub fn parse_list(list: &[Range], first_index: usize) -> Result<Vec<Extent>, Refusal> {
    let mut total = 0u64;
    list.iter()
        .enumerate()
        .map(|(index, range)| {
            let refuse = |status| Refusal::of_range(status, first_index + index);
            let extent = parse(range).map_err(refuse)?;
            total = total
                .checked_add(extent.bytes)
                .filter(|&total| total <= TRANSFER_BYTES_MAX)
                .ok_or_else(|| refuse(Status::TOO_LONG))?;
            Ok(extent)
        })
        .collect()
}

fn parse(range: &Range) -> Result<Extent, Status> {
    let pasid = range.pasid.get();
    let has_pasid = range.space == Space::PROCESS;
    if range.reserved.get() != 0 || (pasid != 0 && !has_pasid) {
        return Err(Status::RESERVED_FIELD);
    }
    let address = range.address.get();
    let place = match range.space {
        Space::DEVICE => Place::Device(address),
        Space::GUEST => Place::Guest(address),
        Space::PROCESS => Place::Process(Pasid(pasid), address),
        _ => return Err(Status::BAD_SPACE),
    };
    match range.bytes.get() {
        0 => Err(Status::ZERO_LENGTH),
        bytes => Ok(Extent { place, bytes }),
    }
}

/// Bytes of a checked list.
pub fn total_bytes(list: &[Extent]) -> u64 {
    list.iter().map(|extent| extent.bytes).sum()
}
