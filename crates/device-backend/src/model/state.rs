// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whether the guest sees the device memory, and what it keeps for itself there.
//!
//! ```text
//!              MapAsked                 MapDone
//!   Unmapped ------------> InProgress ------------> Mapped
//!      ^  ^                    |                      |
//!      |  '----- MapFailed ----'                      |
//!      '------------------ Unplugged -----------------'
//! ```
//!
//! `MapAsked` is the driver's request; `MapDone` and `MapFailed` are the transport's
//! answer; `Unplugged` is a virtio reset, which takes the mapping and the driver's
//! metadata range with it, in any state.

use std::ops::Range;

/// Where the mapping of device memory into the guest stands.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Mapping {
    /// The guest reads zeroes.
    Unmapped,
    /// The transport is at it.
    InProgress,
    /// The guest sees the memory.
    Mapped,
}

/// What moves a [`Mapping`].
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum MappingEvent {
    /// The driver asks for the memory.
    MapAsked,
    /// The transport has mapped it.
    MapDone,
    /// The transport could not.
    MapFailed,
    /// The guest has reset the device.
    Unplugged,
}

impl Mapping {
    /// The state that follows, or `None` where the event makes no sense.
    ///
    /// `MapAsked` out of place is the guest's doing and harmless; `MapDone` or `MapFailed`
    /// out of place is an answer that a reset has overtaken.
    pub fn next(self, event: MappingEvent) -> Option<Self> {
        use {Mapping::*, MappingEvent::*};
        match (self, event) {
            (Unmapped, MapAsked) => Some(InProgress),
            (InProgress, MapDone) => Some(Mapped),
            (InProgress, MapFailed) => Some(Unmapped),
            (_, Unplugged) => Some(Unmapped),
            (InProgress | Mapped, MapAsked) | (Unmapped | Mapped, MapDone | MapFailed) => None,
        }
    }
}

/// What a driver has set up, and a virtio reset undoes.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct DriverState {
    /// Where the mapping stands.
    pub mapping: Mapping,
    /// Device memory that no command may touch; empty if there is none.
    pub metadata: Range<u64>,
}

impl Default for DriverState {
    fn default() -> Self {
        Self {
            mapping: Mapping::Unmapped,
            metadata: 0..0,
        }
    }
}

impl DriverState {
    /// Whether `[address, address + bytes)`, which does not wrap, touches the metadata.
    pub fn is_protected(&self, address: u64, bytes: u64) -> bool {
        address < self.metadata.end && self.metadata.start < address + bytes
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_map_request_leads_to_mapped_and_a_failure_back() {
        let mapping = Mapping::Unmapped.next(MappingEvent::MapAsked).unwrap();
        assert_eq!(mapping, Mapping::InProgress);
        assert_eq!(mapping.next(MappingEvent::MapDone), Some(Mapping::Mapped));
        assert_eq!(
            mapping.next(MappingEvent::MapFailed),
            Some(Mapping::Unmapped)
        );
    }

    #[test]
    fn an_answer_that_a_reset_overtook_does_not_map() {
        let reset = Mapping::InProgress.next(MappingEvent::Unplugged).unwrap();
        assert_eq!(reset.next(MappingEvent::MapDone), None);
    }

    #[test]
    fn protection_begins_and_ends_at_the_byte() {
        let state = DriverState {
            mapping: Mapping::Mapped,
            metadata: 100..200,
        };
        for (address, bytes, protected) in [
            (0, 100, false),
            (0, 101, true),
            (199, 1, true),
            (200, 1, false),
            (0, 1000, true),
            (150, 1, true),
        ] {
            assert_eq!(
                state.is_protected(address, bytes),
                protected,
                "{address}+{bytes}"
            );
        }
        assert!(!DriverState::default().is_protected(0, u64::MAX));
    }
}
