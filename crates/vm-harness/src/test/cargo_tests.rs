// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Reads what Rust's test harness prints, of programs (`--list`, results) and of
//! documentation tests.

use super::report::Verdict;

/// One test of a program.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Path inside the program.
    pub name: String,
    /// How it ended.
    pub verdict: Verdict,
    /// Why it was ignored.
    pub reason: String,
}

/// What one program said.
#[derive(Debug, Default)]
pub struct Said {
    /// Its results.
    pub lines: Vec<Line>,
    announced: usize,
    summarised: usize,
}

impl Said {
    /// Reads a program's output.
    pub fn parse(output: &str) -> Self {
        let mut said = Self::default();
        for line in output.lines() {
            if let Some(rest) = line.strip_prefix("running ") {
                said.announced += first_number(rest);
            } else if let Some(rest) = line.strip_prefix("test result: ") {
                // "ok. 3 passed; 1 failed; 2 ignored; 0 measured; 0 filtered out; finished in 0.00s"
                let fields = rest.split(['.', ';']).map(str::trim);
                said.summarised += fields
                    .filter(|field| {
                        ["passed", "failed", "ignored"]
                            .iter()
                            .any(|word| field.ends_with(word))
                    })
                    .map(first_number)
                    .sum::<usize>();
            } else if let Some(result) = parse_line(line) {
                said.lines.push(result);
            }
        }
        said
    }

    /// Whether the program announced, summarised and reported the same number of tests.
    pub fn is_consistent(&self) -> bool {
        self.announced == self.lines.len() && self.summarised == self.lines.len()
    }

    /// The three numbers, for a message.
    pub fn numbers(&self) -> String {
        let (lines, announced, summarised) = (self.lines.len(), self.announced, self.summarised);
        format!("{announced} tests announced, {lines} results, {summarised} in the summary")
    }
}

fn first_number(text: &str) -> usize {
    text.split_whitespace()
        .next()
        .and_then(|word| word.parse().ok())
        .unwrap_or(0)
}

fn parse_line(line: &str) -> Option<Line> {
    let (name, outcome) = line.strip_prefix("test ")?.rsplit_once(" ... ")?;
    let name = name
        .trim_end_matches(" - should panic")
        .trim_end_matches(" - compile fail");
    let (verdict, reason) = match outcome {
        "ok" => (Verdict::Passed, ""),
        "FAILED" => (Verdict::Failed, ""),
        "ignored" => (Verdict::Skipped, "ignored"),
        other => (Verdict::Skipped, other.strip_prefix("ignored, ")?),
    };
    Some(Line {
        name: name.to_owned(),
        verdict,
        reason: reason.to_owned(),
    })
}

/// Reads the names of a program's tests, as `--list --format terse` prints them.
pub fn parse_list(output: &str) -> Vec<String> {
    output
        .lines()
        .filter_map(|line| line.strip_suffix(": test"))
        .map(|name| {
            name.trim_end_matches(" - should panic")
                .trim_end_matches(" - compile fail")
                .to_owned()
        })
        .collect()
}

/// The part of a program's output that tells why a test failed.
pub fn failure_of(output: &str, name: &str) -> String {
    let start = format!("---- {name} stdout ----");
    let mut lines = output.lines().skip_while(|line| *line != start);
    let mut text: Vec<&str> = Vec::new();
    lines.next();
    for line in lines {
        if line.starts_with("---- ") || line == "failures:" {
            break;
        }
        text.push(line);
    }
    match text.is_empty() {
        true => "the program does not say why; see its log".into(),
        false => text.join("\n"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const OUTPUT: &str = "
running 4 tests
test alloc::tests::a ... ok
test alloc::tests::b - should panic ... ok
test alloc::tests::c ... FAILED
test alloc::tests::d ... ignored, needs a disk

failures:

---- alloc::tests::c stdout ----
thread 'alloc::tests::c' panicked at src/alloc.rs:7:
left: 1


failures:
    alloc::tests::c

test result: FAILED. 2 passed; 1 failed; 1 ignored; 0 measured; 0 filtered out; finished in 0.00s
";

    #[test]
    fn results_names_and_reasons_are_read() {
        let said = Said::parse(OUTPUT);
        assert!(said.is_consistent(), "{}", said.numbers());
        let verdicts: Vec<_> = said.lines.iter().map(|line| line.verdict).collect();
        use Verdict::{Failed, Passed, Skipped};
        assert_eq!(verdicts, [Passed, Passed, Failed, Skipped]);
        assert_eq!(said.lines[1].name, "alloc::tests::b");
        assert_eq!(said.lines[3].reason, "needs a disk");
    }

    #[test]
    fn program_that_dies_midway_is_inconsistent() {
        let cut = OUTPUT.split("test alloc::tests::c").next().expect("a part");
        assert!(!Said::parse(cut).is_consistent());
        assert!(Said::parse("").is_consistent());
        assert!(!Said::parse("running 1 test\n").is_consistent());
    }

    #[test]
    fn reason_of_a_failure_is_found() {
        assert!(failure_of(OUTPUT, "alloc::tests::c").contains("left: 1"));
        assert!(failure_of(OUTPUT, "alloc::tests::a").contains("does not say"));
    }

    #[test]
    fn documentation_tests_have_names_with_blanks() {
        let line = parse_line("test crates/x/src/lib.rs - Thing::new (line 7) ... ok");
        assert_eq!(
            line.expect("a result").name,
            "crates/x/src/lib.rs - Thing::new (line 7)"
        );
    }

    #[test]
    fn names_are_listed_without_what_they_should_do() {
        let list = "a::b: test\nc - should panic: test\nbench: benchmark\n";
        assert_eq!(parse_list(list), ["a::b", "c"]);
    }
}
