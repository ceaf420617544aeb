// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's own suite in guests: one for each type of memory, and a further one
//! whenever a test takes its guest down.

use std::fs;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::known::{File, Known};
use super::outcome::{Ended, Judged, MARK, TypeRun, Verdict};
use super::publish::{Document, publish};
use super::{Suite, Task};
use crate::build::Kernel;
use crate::context::Context;
use crate::evidence;
use crate::test::Session;
use crate::test::ktap::{Fault, Reader};
use crate::test::report::Verdict as Ktap;
use crate::vm::boot::Stream;
use crate::vm::{FileCopy, Limits, MemoryType, VmSpec};

pub(crate) mod device;
mod names;

/// Where the program is in the guest.
const PROGRAM: &str = "/root/hmm-tests";

/// Longest silence of the suite. Its harness kills a test after 30 s, one of them after 120, which
/// a debug kernel on a busy host may stretch; a test that cannot be killed is silent for ever.
const SILENCE: Duration = Duration::from_secs(300);

/// What one guest may take: sixty times as long as the suite does on a plain kernel.
const GUEST_LIMIT: Duration = Duration::from_secs(3600);

/// Runs a suite with one type of memory or with each. Whether all was good.
pub fn run(task: &Task<'_>, suite: Suite, wanted: Option<MemoryType>) -> Result<bool> {
    let types = device::memory_types(suite, &task.kernel, wanted)?;
    let known = File::read(&task.ctx.repo)?;
    let files = device::files(task.ctx, suite, &task.kernel)?;
    let mut document = Document::new(suite, task);
    for memory_type in types {
        let place = known.of(&suite.to_string(), &task.kernel_name(), memory_type);
        let one = OneType {
            ctx: task.ctx,
            kernel: &task.kernel,
            folder: &task.folder,
            suite,
            memory_type,
            known: &place,
            files: &files,
            chosen: None,
            prints: true,
        };
        let run = one.run(&mut |_| {})?;
        for line in run.complaints() {
            task.ctx.progress.say(format!("cdm: {memory_type}: {line}"));
        }
        println!("# cdm: {}", run.count());
        document.runs.push(run);
    }
    publish(task, &document)?;
    Ok(document.is_good())
}

/// Runs tests of the suite on this project's device with one type of memory, and tells how each
/// ended as it does.
pub fn run_chosen(
    ctx: &Context,
    kernel: &Kernel,
    memory_type: MemoryType,
    folder: &Path,
    chosen: &[String],
    on_ended: &mut dyn FnMut(&Judged),
) -> Result<TypeRun> {
    let suite = Suite::HmmTests;
    let known = File::read(&ctx.repo)?;
    let kernel_name = kernel.choice.to_string();
    let one = OneType {
        ctx,
        kernel,
        folder,
        suite,
        memory_type,
        known: &known.of(&suite.to_string(), &kernel_name, memory_type),
        files: &device::files(ctx, suite, kernel)?,
        chosen: Some(chosen),
        prints: false,
    };
    one.run(on_ended)
}

/// Names of the suite's tests on this project's device with a type of memory, by its source.
pub fn names_in_source(source: &str, memory_type: MemoryType) -> Result<Vec<String>> {
    let all = names::parse_source(source)?;
    let suffix = device::variant_suffix(Suite::HmmTests, memory_type);
    Ok(names::of_variant(&all, suffix))
}

/// A suite with one type of memory.
struct OneType<'a> {
    ctx: &'a Context,
    kernel: &'a Kernel,
    folder: &'a Path,
    suite: Suite,
    memory_type: MemoryType,
    known: &'a Known<'a>,
    files: &'a [FileCopy],
    /// Tests that are wanted; all of them if absent.
    chosen: Option<&'a [String]>,
    /// Whether the suite's own output goes to standard output.
    prints: bool,
}

/// What one guest brought.
#[derive(Default)]
struct Pass {
    ended: Vec<Ended>,
    /// The test that had begun and not ended.
    running: Option<String>,
    /// Why it did not get to the end.
    broken: Option<Broken>,
    transcript: String,
    /// Whether its KTAP is printed.
    prints: bool,
    /// When the last test ended.
    last: Option<Instant>,
}

/// Why a suite did not get to its end.
enum Broken {
    /// The guest died or hung under a test; what is left can run in another one.
    Guest(String),
    /// The suite ended, or said what cannot be understood; that would happen again.
    Suite(String),
}

impl OneType<'_> {
    fn run(&self, on_ended: &mut dyn FnMut(&Judged)) -> Result<TypeRun> {
        let mut spec = VmSpec::new(self.kernel.clone());
        spec.files = self.files.to_vec();
        device::shape(self.suite, self.memory_type, &mut spec);
        let folder = self.folder.join(self.memory_type.to_string());
        let mut session = Session::new(self.ctx, spec, folder);

        device::prepare(self.suite, self.memory_type, &mut session)?;
        let mut names = self.names(&mut session)?;
        let all = names.len();
        names.retain(|name| self.chosen.is_none_or(|chosen| chosen.contains(name)));
        let mut remaining = names.clone();
        let (mut ended, mut logs, mut transcript) = (Vec::new(), Vec::new(), String::new());
        loop {
            let arguments = match remaining.len() == all {
                true => names::variant_arguments(&names),
                false => names::test_arguments(&remaining),
            };
            let mut pass = self.pass(&mut session, &arguments, on_ended);
            let lives = !matches!(pass.broken, Some(Broken::Guest(_)));
            logs.push(kernel_log(&mut session, lives)?);
            transcript += &pass.transcript;
            if pass.ended.is_empty() && pass.broken.is_none() {
                // Another guest would do no better.
                pass.broken = Some(Broken::Suite("the suite does not run it".to_owned()));
            }
            let lost = pass.lost(&remaining);
            lost.iter()
                .for_each(|test| on_ended(&self.known.judge(test)));
            self.keep_evidence(&session, pass.ended.iter().chain(&lost))?;
            ended.extend(pass.ended);
            ended.extend(lost);
            remaining.retain(|name| !ended.iter().any(|test: &Ended| test.name == *name));
            if remaining.is_empty() {
                break;
            }
            // A guest whose kernel went wrong may do anything, also wait for ever.
            session.discard();
            device::prepare(self.suite, self.memory_type, &mut session)?;
        }
        self.write_transcript(&transcript)?;
        let run = TypeRun::judge(self.memory_type, self.known, ended, &logs);
        if run.reports.is_empty() && run.tests.iter().all(|test| test.verdict != Verdict::Lost) {
            session.end()?;
        }
        Ok(run)
    }

    /// A folder for each test that did not end as it should, while its guest is at hand.
    fn keep_evidence<'e>(
        &self,
        session: &Session<'_>,
        ended: impl Iterator<Item = &'e Ended>,
    ) -> Result<()> {
        let repeat = format!(
            "ci/just stress --suite {} --memory-type {} --kernel {} --build {}",
            self.suite, self.memory_type, self.kernel.choice, self.kernel.kind
        );
        for test in ended.filter(|test| !self.known.expects(&test.name, test.verdict)) {
            let guest = session.evidence();
            evidence::of_named(self.folder, &test.name, &test.detail, &repeat, guest)?;
        }
        Ok(())
    }

    /// Names of the tests for this type, in the suite's order.
    fn names(&self, session: &mut Session<'_>) -> Result<Vec<String>> {
        // The list goes to standard error, and 4 is how a selftest says that it tested nothing.
        let listed = session.text(&format!("{PROGRAM} -l 2>&1 >/dev/null; [ $? = 4 ]"))?;
        let all = names::parse(&listed)?;
        let suffix = device::variant_suffix(self.suite, self.memory_type);
        let names = names::of_variant(&all, suffix);
        ensure!(
            !names.is_empty(),
            "the suite of the {} kernel has no tests for {} memory ('{suffix}' among its variants)",
            self.kernel.choice,
            self.memory_type
        );
        self.known.check_names(&names)?;
        Ok(names)
    }

    /// Runs the suite in the session's guest, until it is through or something breaks.
    fn pass(
        &self,
        session: &mut Session<'_>,
        arguments: &str,
        on_ended: &mut dyn FnMut(&Judged),
    ) -> Pass {
        let mut pass = Pass {
            prints: self.prints,
            last: Some(Instant::now()),
            ..Pass::default()
        };
        let mut reader = Reader::of_kselftest();
        let line = guest_line(arguments);
        let streamed = session.vm().and_then(|vm| {
            let limits = Limits {
                silence: Some(SILENCE),
                whole: Some(GUEST_LIMIT),
            };
            vm.exec_streaming_within(limits, &line, |stream, text| {
                if stream == Stream::Stdout && pass.broken.is_none() {
                    if let Some(test) = pass.take(&mut reader, text) {
                        on_ended(&self.known.judge(test));
                    }
                } else if self.prints {
                    eprintln!("{text}");
                }
            })
        });
        if pass.broken.is_none() {
            pass.broken = match streamed {
                // 1 is a failed test, which has its own result.
                Ok(status) if matches!(status.shell_code(), 0 | 1) => {
                    reader.end().err().map(|fault| of_results(&fault))
                }
                Ok(status) => Some(Broken::Suite(format!("the suite ended with {status:?}"))),
                Err(error) => Some(Broken::Guest(format!("{error:#}"))),
            };
        }
        pass
    }

    fn write_transcript(&self, text: &str) -> Result<()> {
        let path = self.folder.join(format!("{}.ktap", self.memory_type));
        fs::write(&path, text).with_context(|| format!("cannot write {}", path.display()))
    }
}

impl Pass {
    /// Takes in a line of the suite's output; a test if one has ended with it.
    fn take(&mut self, reader: &mut Reader, text: &str) -> Option<&Ended> {
        self.transcript += text;
        self.transcript.push('\n');
        if self.prints && is_ktap(text) {
            println!("{text}");
        }
        if let Some(name) = started(text) {
            self.running = Some(name.to_owned());
        }
        match reader.line(text) {
            Ok(Some(outcome)) => {
                self.running = None;
                let now = Instant::now();
                self.ended.push(Ended {
                    took: self
                        .last
                        .replace(now)
                        .map_or(Duration::ZERO, |last| now - last),
                    name: outcome.name,
                    verdict: match outcome.verdict {
                        Ktap::Passed => Verdict::Passed,
                        Ktap::Failed => Verdict::Failed,
                        Ktap::Skipped => Verdict::Skipped,
                    },
                    detail: match outcome.verdict {
                        Ktap::Skipped => outcome.reason,
                        _ => assertions(&outcome.diagnostics),
                    },
                });
                return self.ended.last();
            }
            Ok(None) => {}
            Err(fault) => self.broken = Some(of_results(&fault)),
        }
        None
    }

    /// Tests that have no result of their own. A guest that went is held against the test that ran,
    /// or, before the first one, against that, so that no guest is booted in vain for ever.
    fn lost(&mut self, remaining: &[String]) -> Vec<Ended> {
        let mut left: Vec<String> = remaining
            .iter()
            .filter(|name| !self.ended.iter().any(|test| test.name == **name))
            .cloned()
            .collect();
        let detail = match self.broken.take() {
            None => return Vec::new(),
            Some(Broken::Suite(detail)) => detail,
            Some(Broken::Guest(detail)) => {
                let running = self.running.take();
                left.retain(|name| running.as_ref().is_none_or(|running| running == name));
                left.truncate(1);
                detail
            }
        };
        let ended = |name| Ended {
            name,
            verdict: Verdict::Lost,
            detail: detail.clone(),
            took: Duration::ZERO,
        };
        left.into_iter().map(ended).collect()
    }
}

fn of_results(fault: &Fault) -> Broken {
    Broken::Suite(format!("its results: {fault}"))
}

/// The suite, with a mark in the kernel log for each test that begins.
fn guest_line(arguments: &str) -> String {
    format!(
        "set -o pipefail; {PROGRAM} {arguments} 2>&1 | while IFS= read -r line; do \
         case \"$line\" in '#  RUN '*) set -- $line; echo \"{MARK}$3\" > /dev/kmsg;; esac; \
         printf '%s\\n' \"$line\"; done"
    )
}

/// Whether a line is KTAP, and not what a test writes besides.
fn is_ktap(line: &str) -> bool {
    [
        "TAP version",
        "KTAP version",
        "1..",
        "ok ",
        "not ok ",
        "#",
        "Bail out!",
    ]
    .iter()
    .any(|start| line.starts_with(start))
}

/// The test that a line says has begun.
fn started(line: &str) -> Option<&str> {
    line.strip_prefix("#  RUN ")?.trim().strip_suffix(" ...")
}

/// What of the diagnostics of a test tells why it failed.
fn assertions(diagnostics: &[String]) -> String {
    let telling: Vec<&str> = diagnostics
        .iter()
        .map(String::as_str)
        .filter(|line| {
            !["RUN ", "OK ", "FAIL ", "Starting "]
                .iter()
                .any(|word| line.starts_with(word))
        })
        .collect();
    telling.join("\n")
}

/// All that the guest's kernel has said.
fn kernel_log(session: &mut Session<'_>, lives: bool) -> Result<String> {
    if lives {
        // Waits until the log has arrived.
        session.new_log()?;
    }
    session.vm()?.kernel_log()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn pass(lines: &[&str], broken: Option<Broken>) -> Pass {
        let mut pass = Pass::default();
        let mut reader = Reader::of_kselftest();
        for line in lines {
            pass.take(&mut reader, line);
        }
        if broken.is_some() {
            pass.broken = broken;
        }
        pass
    }

    const BEGUN: [&str; 5] = [
        "TAP version 13",
        "1..3",
        "#  RUN           f.v.one ...",
        "ok 1 f.v.one",
        "#  RUN           f.v.two ...",
    ];

    fn names() -> Vec<String> {
        ["f.v.one", "f.v.two", "f.v.three"]
            .map(str::to_owned)
            .to_vec()
    }

    fn lost(mut pass: Pass) -> Vec<String> {
        let lost = pass.lost(&names());
        assert!(lost.iter().all(|test| test.verdict == Verdict::Lost));
        lost.into_iter().map(|test| test.name).collect()
    }

    #[test]
    fn guest_that_went_is_held_against_the_test_that_ran() {
        let gone = || Some(Broken::Guest("panic".into()));
        assert_eq!(lost(pass(&BEGUN, gone())), ["f.v.two"]);
        assert_eq!(lost(pass(&[], gone())), ["f.v.one"]);
        assert_eq!(lost(pass(&BEGUN[..4], gone())), ["f.v.two"]);
    }

    #[test]
    fn suite_that_ends_early_loses_all_that_is_left() {
        let ended = Some(Broken::Suite("status 139".into()));
        assert_eq!(lost(pass(&BEGUN, ended)), ["f.v.two", "f.v.three"]);
        // So does one that says what cannot be understood.
        assert_eq!(lost(pass(&["nonsense"], None)).len(), 3);
    }

    #[test]
    fn pass_to_the_end_loses_nothing_and_keeps_what_failed_tests_said() {
        let rest = [
            "# hmm-tests.c:2394:two:Expected ret (-12) == 0 (0)",
            "#          FAIL  f.v.two",
            "not ok 2 f.v.two",
            "ok 3 f.v.three # SKIP DEVICE_COHERENT not available",
        ];
        let mut pass = pass(&[&BEGUN[..], &rest].concat(), None);
        assert!(pass.lost(&names()).is_empty());
        let (failed, skipped) = (&pass.ended[1], &pass.ended[2]);
        assert_eq!(failed.verdict, Verdict::Failed);
        assert_eq!(
            failed.detail,
            "hmm-tests.c:2394:two:Expected ret (-12) == 0 (0)"
        );
        assert_eq!(skipped.verdict, Verdict::Skipped);
        assert_eq!(skipped.detail, "DEVICE_COHERENT not available");
    }

    #[test]
    fn only_lines_of_ktap_are_ktap() {
        for line in BEGUN.iter().chain(&["not ok 2 x", "Bail out! y"]) {
            assert!(is_ktap(line), "{line}");
        }
        assert!(!is_ktap("=== Small Buffer (0.5 MB) ===") && !is_ktap(""));
    }
}
