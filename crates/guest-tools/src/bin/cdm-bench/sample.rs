// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The line that a measured value is on standard output, which `cdm bench` reads.

use serde::Serialize;

/// What a value is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
pub enum Unit {
    /// Mebibytes in a second.
    #[serde(rename = "MiB/s")]
    MebibytesPerSecond,
    /// Microseconds.
    #[serde(rename = "us")]
    Microseconds,
    /// Times in a second.
    #[serde(rename = "1/s")]
    PerSecond,
}

/// A value, without the round that it was measured in.
#[derive(Clone, Debug)]
pub struct Measured {
    /// What was measured.
    pub name: String,
    /// Whose it is: "cdm", or who it is compared with.
    pub by: &'static str,
    /// What it is counted in.
    pub unit: Unit,
    /// The value.
    pub value: f64,
}

/// A line of output.
#[derive(Debug, Serialize)]
struct Line<'a> {
    name: &'a str,
    by: &'a str,
    unit: Unit,
    round: u32,
    value: f64,
}

impl Measured {
    /// The line of JSON.
    pub fn line(&self, round: u32) -> serde_json::Result<String> {
        serde_json::to_string(&Line {
            name: &self.name,
            by: self.by,
            unit: self.unit,
            round,
            value: self.value,
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn line_says_what_who_when_and_how_much() {
        let measured = Measured {
            name: "migrate/4KiB".into(),
            by: "cdm",
            unit: Unit::MebibytesPerSecond,
            value: 12.5,
        };
        assert_eq!(
            measured.line(3).unwrap(),
            r#"{"name":"migrate/4KiB","by":"cdm","unit":"MiB/s","round":3,"value":12.5}"#
        );
    }
}
