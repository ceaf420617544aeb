// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A value that a benchmark measured, and the line that it is.
//!
//! `cdm-bench` prints a line for each on its standard output, in a guest or on a host; `cdm bench`
//! reads them, and keeps them as `samples.jsonl`.

use std::fmt;

use serde::{Deserialize, Serialize};

/// Whose values are compared with everybody else's.
pub const SUBJECT: &str = "cdm";

/// What a value is counted in.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize)]
pub enum Unit {
    /// Mebibytes (2^20 bytes) in a second of wall time.
    #[serde(rename = "MiB/s")]
    MebibytesPerSecond,
    /// Microseconds of wall time.
    #[serde(rename = "us")]
    Microseconds,
    /// Milliseconds of wall time.
    #[serde(rename = "ms")]
    Milliseconds,
    /// Times in a second of wall time.
    #[serde(rename = "1/s")]
    PerSecond,
    /// Mebibytes (2^20 bytes) that something takes.
    #[serde(rename = "MiB")]
    Mebibytes,
}

impl Unit {
    /// All of them.
    pub const ALL: [Self; 5] = [
        Self::MebibytesPerSecond,
        Self::Microseconds,
        Self::Milliseconds,
        Self::PerSecond,
        Self::Mebibytes,
    ];

    /// As it is written in a line, and in results.
    pub fn name(self) -> &'static str {
        match self {
            Self::MebibytesPerSecond => "MiB/s",
            Self::Microseconds => "us",
            Self::Milliseconds => "ms",
            Self::PerSecond => "1/s",
            Self::Mebibytes => "MiB",
        }
    }

    /// Whether less of it is better: of times and of what something takes. Of rates more is.
    pub fn less_is_better(self) -> bool {
        match self {
            Self::MebibytesPerSecond | Self::PerSecond => false,
            Self::Microseconds | Self::Milliseconds | Self::Mebibytes => true,
        }
    }
}

impl fmt::Display for Unit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

/// A value of somebody's, in a round.
#[derive(Clone, Debug, PartialEq, Deserialize, Serialize)]
#[serde(deny_unknown_fields)]
pub struct Sample {
    /// What was measured; its group is what stands before the first slash.
    pub name: String,
    /// Whose value it is: [`SUBJECT`]'s, or a reference's.
    pub by: String,
    /// What `value` is counted in.
    pub unit: Unit,
    /// In which round, from zero on.
    pub round: u32,
    /// The value, in `unit`: finite, and above zero.
    pub value: f64,
}

/// Why a line is no sample.
#[derive(Debug, thiserror::Error)]
pub enum SampleError {
    /// It does not have the form.
    #[error("no sample: '{line}'")]
    Form {
        /// The line.
        line: String,
        /// What is wrong with it.
        source: serde_json::Error,
    },
    /// It says what nobody can measure.
    #[error("a value that nothing can have: '{line}'")]
    Value {
        /// The line.
        line: String,
    },
}

impl Sample {
    /// The line of JSON, without its end.
    pub fn line(&self) -> Result<String, SampleError> {
        let line = serde_json::to_string(self).map_err(|source| SampleError::Form {
            line: format!("{self:?}"),
            source,
        })?;
        self.checked(&line)?;
        Ok(line)
    }

    /// Reads a line.
    pub fn parse(line: &str) -> Result<Self, SampleError> {
        let sample: Self = serde_json::from_str(line).map_err(|source| SampleError::Form {
            line: line.to_owned(),
            source,
        })?;
        sample.checked(line)?;
        Ok(sample)
    }

    fn checked(&self, line: &str) -> Result<(), SampleError> {
        match self.value.is_finite() && self.value > 0.0 {
            true => Ok(()),
            false => Err(SampleError::Value {
                line: line.to_owned(),
            }),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const LINE: &str = r#"{"name":"a/b","by":"cdm","unit":"MiB/s","round":3,"value":12.5}"#;

    fn sample() -> Sample {
        Sample {
            name: "a/b".into(),
            by: SUBJECT.into(),
            unit: Unit::MebibytesPerSecond,
            round: 3,
            value: 12.5,
        }
    }

    #[test]
    fn line_says_what_who_in_what_when_and_how_much() {
        assert_eq!(sample().line().unwrap(), LINE);
    }

    #[test]
    fn what_is_written_is_read_again_in_every_unit() {
        for unit in Unit::ALL {
            for value in [f64::MIN_POSITIVE, 1.0 / 3.0, 123_456_789.012_345, f64::MAX] {
                let sample = Sample {
                    unit,
                    value,
                    ..sample()
                };
                let line = sample.line().unwrap();
                assert!(line.contains(&format!("\"unit\":\"{unit}\"")), "{line}");
                assert_eq!(Sample::parse(&line).unwrap(), sample);
            }
        }
    }

    #[test]
    fn more_is_better_of_what_counts_by_the_second_alone() {
        for unit in Unit::ALL {
            let is_rate = unit.to_string().ends_with("/s");
            assert_eq!(unit.less_is_better(), !is_rate, "{unit}");
        }
    }

    #[test]
    fn what_is_no_value_is_not_written() {
        for value in [0.0, -1.0, f64::NAN, f64::INFINITY] {
            let sample = Sample { value, ..sample() };
            let error = sample.line().unwrap_err().to_string();
            assert!(error.contains("a/b"), "{error}");
        }
    }

    #[test]
    fn what_is_no_sample_is_refused_with_its_line() {
        for (from, to) in [
            ("12.5", "0"),
            ("12.5", "-1.0"),
            ("12.5", "null"),
            ("MiB/s", "furlongs"),
            ("\"round\":3,", ""),
            ("\"by\"", "\"of\""),
        ] {
            let line = LINE.replace(from, to);
            let error = Sample::parse(&line).unwrap_err().to_string();
            assert!(error.contains(&line), "{error}");
        }
    }
}
