// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What an access costs. Where the numbers come from is in `docs/reference/link-model.md`.

use super::clock::Picoseconds;
use super::traffic::{Accesses, Side, Traffic};
use crate::model::Link;
use std::str::FromStr;

/// Bytes around a request: a packet whose header has four words, as 64-bit addresses need.
pub const REQUEST_OVERHEAD: u64 = 24;
/// Bytes around a response: a packet whose header has three words.
pub const RESPONSE_OVERHEAD: u64 = 20;

/// Picoseconds that a byte takes on one lane of one megatransfer a second: eight bits, and two
/// more for each 128 (128b/130b).
const LANE_BYTE: u128 = 1_000_000 * 8 * 130 / 128;

/// Picoseconds that a byte takes at one megabyte a second.
const MEMORY_BYTE: u128 = 1_000_000;

/// Longest latency that can be asked for: a thousand times what hardware has.
const LATENCY_NS_MAX: u64 = 1_000_000;
/// Largest bandwidth that can be asked for.
const MEMORY_MBPS_MAX: u64 = 100_000_000;

/// What speed and width of the link leave open.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Timing {
    /// From a request of the device to its response, across the link, on an idle link.
    pub link_ns: u64,
    /// The same for the device's own memory.
    pub memory_ns: u64,
    /// Megabytes a second of the device's own memory, reading and writing together.
    pub memory_mbps: u64,
}

impl Default for Timing {
    fn default() -> Self {
        Self {
            link_ns: 500,
            memory_ns: 100,
            memory_mbps: 77_000,
        }
    }
}

/// Why a text is no timing.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum TimingError {
    /// It does not begin with `off` or `on`.
    #[error("'{0}' is neither 'off' nor 'on'")]
    Form(String),
    /// A word of it has not the form.
    #[error("'{0}' is not of the form field=number; fields are link-ns, memory-ns, memory-mbps")]
    Field(String),
    /// A number is too large, or none.
    #[error("'{field}' is {value}; it can be {least} to {most}")]
    Value {
        /// Which field.
        field: &'static str,
        /// What was said.
        value: u64,
        /// What can be said.
        least: u64,
        /// What can be said.
        most: u64,
    },
}

/// `on`, or `on,field=number,...`.
impl FromStr for Timing {
    type Err = TimingError;

    fn from_str(text: &str) -> Result<Self, TimingError> {
        let mut words = text.split(',');
        if words.next() != Some("on") {
            return Err(TimingError::Form(text.to_owned()));
        }
        let mut timing = Self::default();
        for word in words {
            let form = || TimingError::Field(word.to_owned());
            let (name, value) = word.split_once('=').ok_or_else(form)?;
            let value: u64 = value.parse().map_err(|_| form())?;
            let (field, place, least, most) = match name {
                "link-ns" => ("link-ns", &mut timing.link_ns, 0, LATENCY_NS_MAX),
                "memory-ns" => ("memory-ns", &mut timing.memory_ns, 0, LATENCY_NS_MAX),
                "memory-mbps" => ("memory-mbps", &mut timing.memory_mbps, 1, MEMORY_MBPS_MAX),
                _ => return Err(form()),
            };
            if !(least..=most).contains(&value) {
                return Err(TimingError::Value {
                    field,
                    value,
                    least,
                    most,
                });
            }
            *place = value;
        }
        Ok(timing)
    }
}

/// A link and a memory, as prices.
#[derive(Clone, Copy, Debug)]
pub struct Costs {
    /// Megatransfers a second of all lanes together, in each direction.
    link_mts: u128,
    memory_mbps: u128,
    link_latency: Picoseconds,
    memory_latency: Picoseconds,
}

impl Costs {
    /// Those of a device on this link.
    pub fn new(link: &Link, timing: &Timing) -> Self {
        Self {
            link_mts: u128::from(link.speed.megatransfers()) * u128::from(link.width_lanes),
            memory_mbps: timing.memory_mbps.into(),
            link_latency: u128::from(timing.link_ns) * 1000,
            memory_latency: u128::from(timing.memory_ns) * 1000,
        }
    }

    /// How long so many bytes are on the link, in one direction; rounded up.
    pub fn on_link(&self, bytes: u128) -> Picoseconds {
        (bytes * LANE_BYTE).div_ceil(self.link_mts)
    }

    /// How long the device's own memory is busy with so many bytes; rounded up.
    pub fn in_memory(&self, bytes: u128) -> Picoseconds {
        (bytes * MEMORY_BYTE).div_ceil(self.memory_mbps)
    }

    /// From one access to its answer, if nothing else goes on.
    pub fn latency(&self, side: Side) -> Picoseconds {
        match side {
            Side::Own => self.memory_latency,
            Side::Link => self.link_latency,
        }
    }

    /// All that single accesses wait for, one after the other.
    pub fn singles(&self, traffic: &Traffic) -> Picoseconds {
        let wait = |side| u128::from(traffic.singles(side)) * self.latency(side);
        wait(Side::Own) + wait(Side::Link)
    }

    /// All that streams wait for.
    pub fn streams(&self, traffic: &Traffic) -> Picoseconds {
        traffic.stream_waits().map(|side| self.latency(side)).sum()
    }
}

/// Bytes that accesses put on the link, towards the device.
pub fn towards_device(accesses: &Accesses) -> u128 {
    let Accesses {
        reads,
        writes,
        atomics,
    } = accesses;
    let responses =
        u128::from(reads.accesses) + u128::from(writes.accesses) + u128::from(atomics.accesses);
    let data = u128::from(reads.bytes) + u128::from(atomics.bytes);
    responses * u128::from(RESPONSE_OVERHEAD) + data
}

/// Bytes that accesses put on the link, away from the device.
pub fn away_from_device(accesses: &Accesses) -> u128 {
    let Accesses {
        reads,
        writes,
        atomics,
    } = accesses;
    let requests =
        u128::from(reads.accesses) + u128::from(writes.accesses) + u128::from(atomics.accesses);
    let data = u128::from(writes.bytes) + u128::from(atomics.bytes);
    requests * u128::from(REQUEST_OVERHEAD) + data
}

/// Bytes that accesses move in the device's own memory.
pub fn in_own_memory(accesses: &Accesses) -> u128 {
    let moved = u128::from(accesses.reads.bytes) + u128::from(accesses.writes.bytes);
    // An atomic reads and writes.
    moved + 2 * u128::from(accesses.atomics.bytes)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn on_alone_is_the_default_and_fields_change_it() {
        assert_eq!("on".parse(), Ok(Timing::default()));
        let timing = Timing {
            link_ns: 1,
            memory_ns: 0,
            memory_mbps: 3,
        };
        assert_eq!("on,memory-ns=0,link-ns=1,memory-mbps=3".parse(), Ok(timing));
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "neither 'off' nor 'on'"),
            ("maybe", "neither 'off' nor 'on'"),
            ("on,", "field=number"),
            ("on,link-ns", "field=number"),
            ("on,link-ns=x", "field=number"),
            ("on,wheels=4", "fields are link-ns"),
            ("on,link-ns=1000001", "0 to 1000000"),
            ("on,memory-mbps=0", "1 to 100000000"),
        ] {
            let error = text.parse::<Timing>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
