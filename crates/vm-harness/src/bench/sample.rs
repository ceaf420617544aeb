// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The lines that `cdm-bench` prints in the guest: one for each value that it measured.

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

/// Who everybody else is a reference for.
pub const SUBJECT: &str = "cdm";

/// What a value is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
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

impl Unit {
    /// Whether less is better.
    pub fn is_time(self) -> bool {
        match self {
            Self::MebibytesPerSecond | Self::PerSecond => false,
            Self::Microseconds => true,
        }
    }
}

impl std::fmt::Display for Unit {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Self::MebibytesPerSecond => "MiB/s",
            Self::Microseconds => "us",
            Self::PerSecond => "1/s",
        })
    }
}

/// A value.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// What was measured; its group is what stands before the first slash.
    pub name: String,
    /// Whose value it is: the subject's, or a reference's.
    pub by: String,
    /// What it is counted in.
    pub unit: Unit,
    /// In which round, from zero on.
    pub round: u32,
    /// The value.
    pub value: f64,
}

impl Sample {
    /// Reads a line.
    pub fn parse(line: &str) -> Result<Self> {
        let sample: Self =
            serde_json::from_str(line).with_context(|| format!("no sample: '{line}'"))?;
        ensure!(
            sample.value.is_finite() && sample.value > 0.0,
            "a value that nothing can have: '{line}'"
        );
        Ok(sample)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"name":"a/b","by":"cdm","unit":"MiB/s","round":3,"value":12.5}"#;

    #[test]
    fn line_of_the_guest_is_understood() {
        let sample = Sample::parse(LINE).expect("well formed");
        assert_eq!((&*sample.name, &*sample.by), ("a/b", "cdm"));
        assert_eq!((sample.round, sample.value), (3, 12.5));
        assert!(!sample.unit.is_time() && Unit::Microseconds.is_time());
    }

    #[test]
    fn what_is_no_value_is_refused_with_its_line() {
        for (from, to) in [
            ("12.5", "0"),
            ("12.5", "-1.0"),
            ("12.5", "null"),
            ("MiB/s", "furlongs"),
            ("\"round\":3,", ""),
            ("\"by\"", "\"of\""),
        ] {
            let line = LINE.replace(from, to);
            let error = format!("{:#}", Sample::parse(&line).expect_err(to));
            assert!(error.contains(&line), "{error}");
        }
    }
}
