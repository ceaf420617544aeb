// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reads KTAP, version 1 (Documentation/dev-tools/ktap.rst), line by line as it
//! comes, and trusts it with nothing: what is out of order is an error. The
//! kernel's selftests still announce it as TAP, and write other lines in between.

use std::collections::BTreeMap;

use super::report::Verdict;

/// One result.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Outcome {
    /// Name of the test.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Reason of a skip.
    pub reason: String,
    /// Diagnostics that came before it.
    pub diagnostics: Vec<String>,
}

/// What is wrong with a stream.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum Fault {
    /// The first line says something else.
    #[error("it does not begin with its version, but with '{0}'")]
    NoVersion(String),
    /// The second line says something else.
    #[error("there is no plan where it should be, but '{0}'")]
    NoPlan(String),
    /// A result whose number is not the next one.
    #[error("result {found} comes where {expected} should come")]
    OutOfOrder {
        /// Number that should come.
        expected: usize,
        /// Number that came.
        found: usize,
    },
    /// More results than the plan says.
    #[error("there are more results than the {0} planned")]
    TooMany(usize),
    /// A line that means nothing here.
    #[error("a line that is no result: '{0}'")]
    Garbage(String),
    /// A skip that does not say why.
    #[error("'{0}' is skipped without a reason")]
    SkipWithoutReason(String),
    /// A name that came before.
    #[error("'{0}' has two results")]
    Twice(String),
    /// The end came before the last planned result.
    #[error("it ends after {done} of {planned} planned results")]
    Short {
        /// Results that came.
        done: usize,
        /// Results that should have come.
        planned: usize,
    },
    /// The end came before the plan.
    #[error("it ends before its plan")]
    Empty,
}

/// Who writes a stream.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Dialect {
    /// Programs of this project: nothing but KTAP.
    #[default]
    Strict,
    /// Programs of tools/testing/selftests: another first line, and whatever their tests write.
    Kselftest,
}

/// A stream being read.
#[derive(Debug, Default)]
pub struct Reader {
    dialect: Dialect,
    versioned: bool,
    planned: Option<usize>,
    names: BTreeMap<String, usize>,
    done: usize,
    diagnostics: Vec<String>,
}

impl Reader {
    /// Reads what a program of the kernel's selftests writes.
    pub fn of_kselftest() -> Self {
        Self {
            dialect: Dialect::Kselftest,
            ..Self::default()
        }
    }

    /// Takes in one line; a result if that is one.
    pub fn line(&mut self, line: &str) -> Result<Option<Outcome>, Fault> {
        let line = line.trim_end();
        if !self.versioned {
            // What a selftest finds out before it begins comes before its first line.
            if self.dialect == Dialect::Kselftest && line.starts_with('#') {
                return Ok(None);
            }
            let first = match self.dialect {
                Dialect::Strict => &["KTAP version 1"][..],
                Dialect::Kselftest => &["TAP version 13", "KTAP version 1"],
            };
            if !first.contains(&line) {
                return Err(Fault::NoVersion(line.to_owned()));
            }
            self.versioned = true;
            return Ok(None);
        }
        let Some(planned) = self.planned else {
            let plan = line
                .strip_prefix("1..")
                .and_then(|number| number.parse().ok());
            self.planned = Some(plan.ok_or_else(|| Fault::NoPlan(line.to_owned()))?);
            return Ok(None);
        };
        if let Some(text) = line.strip_prefix('#') {
            self.diagnostics.push(text.trim_start().to_owned());
            return Ok(None);
        }
        let foreign = self.dialect == Dialect::Kselftest
            && !line.starts_with("ok ")
            && !line.starts_with("not ok ");
        if foreign {
            self.diagnostics.push(line.to_owned());
        }
        if line.is_empty() || foreign {
            return Ok(None);
        }
        let outcome = self.result(line, planned)?;
        self.done += 1;
        self.names.insert(outcome.name.clone(), self.done);
        Ok(Some(outcome))
    }

    fn result(&mut self, line: &str, planned: usize) -> Result<Outcome, Fault> {
        let garbage = || Fault::Garbage(line.to_owned());
        let (good, rest) = match line.strip_prefix("not ok ") {
            Some(rest) => (false, rest),
            None => (true, line.strip_prefix("ok ").ok_or_else(garbage)?),
        };
        let (number, rest) = rest.split_once(' ').ok_or_else(garbage)?;
        let found: usize = number.parse().map_err(|_| garbage())?;
        if self.done == planned {
            return Err(Fault::TooMany(planned));
        }
        if found != self.done + 1 {
            return Err(Fault::OutOfOrder {
                expected: self.done + 1,
                found,
            });
        }
        let (name, directive) = match rest.split_once(" # ") {
            Some((name, directive)) => (name, Some(directive)),
            None => (rest, None),
        };
        let name = name.trim().trim_start_matches("- ").to_owned();
        if name.is_empty() || name.contains(' ') {
            return Err(garbage());
        }
        if self.names.contains_key(&name) {
            return Err(Fault::Twice(name));
        }
        let (verdict, reason) = match directive.map(|text| text.strip_prefix("SKIP")) {
            None if good => (Verdict::Passed, ""),
            None => (Verdict::Failed, ""),
            Some(Some(reason)) if good && !reason.trim().is_empty() => {
                (Verdict::Skipped, reason.trim())
            }
            Some(Some(_)) if good => return Err(Fault::SkipWithoutReason(name)),
            Some(_) => return Err(garbage()),
        };
        let reason = reason.to_owned();
        let diagnostics = std::mem::take(&mut self.diagnostics);
        Ok(Outcome {
            name,
            verdict,
            reason,
            diagnostics,
        })
    }

    /// Diagnostics that no result followed.
    pub fn trailing(&self) -> &[String] {
        &self.diagnostics
    }

    /// Whether everything that was planned came.
    pub fn end(&self) -> Result<(), Fault> {
        match self.planned {
            None => Err(Fault::Empty),
            Some(planned) if self.done < planned => Err(Fault::Short {
                done: self.done,
                planned,
            }),
            Some(_) => Ok(()),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(text: &str) -> Result<Vec<Outcome>, Fault> {
        let mut reader = Reader::default();
        let mut outcomes = Vec::new();
        for line in text.lines() {
            outcomes.extend(reader.line(line)?);
        }
        reader.end()?;
        Ok(outcomes)
    }

    #[test]
    fn results_carry_the_diagnostics_before_them() {
        let text = "KTAP version 1\n1..3\n# seed 1\nok 1 a::b\n# went wrong\n# twice\n\
                    not ok 2 a::c\nok 3 a::d # SKIP no disk\n";
        let outcomes = read(text).expect("a good stream");
        assert_eq!(outcomes[0].diagnostics, ["seed 1"]);
        assert_eq!(outcomes[1].verdict, Verdict::Failed);
        assert_eq!(outcomes[1].diagnostics, ["went wrong", "twice"]);
        assert_eq!(
            (outcomes[2].verdict, outcomes[2].reason.as_str()),
            (Verdict::Skipped, "no disk")
        );
    }

    #[test]
    fn stream_of_a_selftest_may_hold_other_lines_and_no_gap() {
        let text = "# [INFO] a page size\nTAP version 13\n1..2\n# Starting 2 tests\n#  RUN   hmm.a ...\n\n\
                    === Small Buffer ===\n#    OK  hmm.a\nok 1 hmm.a\nnot ok 2 hmm.b\n";
        let mut reader = Reader::of_kselftest();
        let outcomes: Vec<Outcome> = text
            .lines()
            .filter_map(|line| reader.line(line).expect("well formed"))
            .collect();
        reader.end().expect("complete");
        assert_eq!(
            (outcomes[0].name.as_str(), outcomes[1].verdict),
            ("hmm.a", Verdict::Failed)
        );
        assert!(
            outcomes[0]
                .diagnostics
                .contains(&"=== Small Buffer ===".into())
        );
        let mut gap = Reader::of_kselftest();
        for line in ["TAP version 13", "1..2"] {
            gap.line(line).expect("a head");
        }
        let fault = gap.line("ok 2 hmm.b").expect_err("the first is missing");
        assert!(matches!(fault, Fault::OutOfOrder { .. }), "{fault}");
    }

    #[test]
    fn each_fault_of_a_stream_is_found() {
        const HEAD: &str = "KTAP version 1\n1..2\n";
        let cases = [
            ("", Fault::Empty),
            ("KTAP version 1\n", Fault::Empty),
            ("ok 1 a\n", Fault::NoVersion("ok 1 a".into())),
            (
                "KTAP version 2\n",
                Fault::NoVersion("KTAP version 2".into()),
            ),
            ("KTAP version 1\nok 1 a\n", Fault::NoPlan("ok 1 a".into())),
            ("KTAP version 1\n1..x\n", Fault::NoPlan("1..x".into())),
            (
                &format!("{HEAD}ok 1 a\n"),
                Fault::Short {
                    done: 1,
                    planned: 2,
                },
            ),
            (
                &format!("{HEAD}ok 2 a\n"),
                Fault::OutOfOrder {
                    expected: 1,
                    found: 2,
                },
            ),
            (
                &format!("{HEAD}ok 1 a\nok 1 b\n"),
                Fault::OutOfOrder {
                    expected: 2,
                    found: 1,
                },
            ),
            (
                &format!("{HEAD}ok 1 a\nok 2 b\nok 3 c\n"),
                Fault::TooMany(2),
            ),
            (&format!("{HEAD}ok 1 a\nok 2 a\n"), Fault::Twice("a".into())),
            (&format!("{HEAD}panic!\n"), Fault::Garbage("panic!".into())),
            (&format!("{HEAD}ok 1\n"), Fault::Garbage("ok 1".into())),
            (
                &format!("{HEAD}ok one a\n"),
                Fault::Garbage("ok one a".into()),
            ),
            (
                &format!("{HEAD}ok 1 a # SKIP\n"),
                Fault::SkipWithoutReason("a".into()),
            ),
            (
                &format!("{HEAD}ok 1 a # TODO x\n"),
                Fault::Garbage("ok 1 a # TODO x".into()),
            ),
            (
                &format!("{HEAD}not ok 1 a # SKIP x\n"),
                Fault::Garbage("not ok 1 a # SKIP x".into()),
            ),
        ];
        for (text, fault) in cases {
            assert_eq!(read(text), Err(fault), "{text:?}");
        }
    }
}
