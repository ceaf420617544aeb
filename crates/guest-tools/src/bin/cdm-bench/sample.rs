// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a turn measures: it does not know in which round it is.

use cdm_agent_protocol::Sample;
pub use cdm_agent_protocol::{SUBJECT, Unit};

/// A value, without the round that it was measured in.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was measured.
    pub name: String,
    /// Whose it is: [`SUBJECT`]'s, or of whom it is compared with.
    pub by: &'static str,
    /// What it is counted in.
    pub unit: Unit,
    /// The value.
    pub value: f64,
}

impl Measured {
    /// The sample that it is in a round.
    pub fn in_round(self, round: u32) -> Sample {
        Sample {
            name: self.name,
            by: self.by.to_owned(),
            unit: self.unit,
            round,
            value: self.value,
        }
    }
}
