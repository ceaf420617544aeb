// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How much of the decoders the kept inputs reach: what reads bytes of a guest or of a client.
//!
//! The programs are built once more for it, with the compiler's own counters, and take each
//! kept input once.

use std::fmt::Write as _;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::{Deserialize, Serialize};

use super::{Target, seeds};
use crate::build;
use crate::cache;
use crate::command::run_logged_within;
use crate::context::Context;

/// Beginnings of the names of files whose code takes foreign bytes apart.
const DECODERS: [&str; 4] = [
    "crates/device-backend/src/model/request/",
    "crates/device-backend/src/vhost/chain.rs",
    "crates/device-backend/src/vhost/ring.rs",
    "crates/control-protocol/src/",
];

/// What the kept inputs of all targets reach together.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Coverage {
    lines: u64,
    lines_reached: u64,
    files: Vec<File>,
}

#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord, Serialize)]
struct File {
    name: String,
    lines: u64,
    lines_reached: u64,
}

/// `llvm-cov export --summary-only`, as far as it is of interest.
#[derive(Deserialize)]
struct Export {
    data: Vec<Data>,
}

#[derive(Deserialize)]
struct Data {
    files: Vec<Exported>,
}

#[derive(Deserialize)]
struct Exported {
    filename: String,
    summary: Summary,
}

#[derive(Deserialize)]
struct Summary {
    lines: Lines,
}

#[derive(Deserialize)]
struct Lines {
    count: u64,
    covered: u64,
}

/// Has each program take the inputs that are kept below `corpus`, and the seeds.
pub fn measure(ctx: &Context, corpus: &Path) -> Result<Coverage> {
    let programs = build::fuzz_programs(
        ctx,
        build::Instrumentation::Lines,
        &ctx.logs().join("fuzz-coverage-build.log"),
    )?;
    let folder = corpus.join("coverage");
    cache::remove_tree(&folder)?;
    cache::create_folder(&folder)?;
    let mut profiles = Vec::new();
    for target in Target::ALL {
        let name = target.name();
        let log = ctx.logs().join(format!("fuzz-coverage-{name}.log"));
        let what = format!("measuring what {name} reaches");
        let _task = ctx.progress.task(what.clone(), Some(&log));
        let profile = folder.join(format!("{name}.profraw"));
        let kept = corpus.join(name);
        cache::create_folder(&kept)?;
        let mut command = Command::new(programs.join(name));
        command
            .arg("-runs=0")
            .args([&kept, &seeds(&ctx.repo, target)])
            .env("LLVM_PROFILE_FILE", &profile);
        run_logged_within(super::REPLAY_LIMIT, &mut command, &what, &log, |_| ())?;
        profiles.push(profile);
    }
    let merged = folder.join("all.profdata");
    let mut merge = Command::new("llvm-profdata");
    merge.args(["merge", "-sparse", "-o"]).arg(&merged);
    output(merge.args(&profiles))?;
    let export = output(Command::new("llvm-cov").args(export_arguments(&programs, &merged)))?;
    cache::remove_tree(&folder)?;
    Coverage::parse(&export)
}

fn export_arguments(programs: &Path, merged: &Path) -> Vec<String> {
    let program = |target: Target| programs.join(target.name()).display().to_string();
    let [first, others @ ..] = Target::ALL;
    let mut arguments = vec![
        "export".to_owned(),
        "--summary-only".to_owned(),
        format!("--instr-profile={}", merged.display()),
        program(first),
    ];
    for target in others {
        arguments.extend(["-object".to_owned(), program(target)]);
    }
    arguments
}

fn output(command: &mut Command) -> Result<Vec<u8>> {
    let program = PathBuf::from(command.get_program());
    let output = command.output().with_context(|| {
        format!(
            "cannot start {}, which the toolbox should have; see 'just doctor'",
            program.display()
        )
    })?;
    ensure!(
        output.status.success(),
        "{} failed: {}",
        program.display(),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(output.stdout)
}

/// The name of a file of the repository, if it belongs to a decoder.
fn decoder(filename: &str) -> Option<&str> {
    DECODERS
        .iter()
        .find_map(|name| filename.find(name))
        .map(|at| &filename[at..])
}

impl Coverage {
    fn parse(export: &[u8]) -> Result<Self> {
        let export: Export = serde_json::from_slice(export).context("llvm-cov says no JSON")?;
        let files = export.data.into_iter().flat_map(|data| data.files);
        let mut files: Vec<File> = files
            .filter_map(|file| {
                Some(File {
                    name: decoder(&file.filename)?.to_owned(),
                    lines: file.summary.lines.count,
                    lines_reached: file.summary.lines.covered,
                })
            })
            .collect();
        files.sort();
        for name in DECODERS {
            ensure!(
                files.iter().any(|file| file.name.starts_with(name)),
                "llvm-cov says nothing of {name}"
            );
        }
        Ok(Self {
            lines: files.iter().map(|file| file.lines).sum(),
            lines_reached: files.iter().map(|file| file.lines_reached).sum(),
            files,
        })
    }

    /// Its part of the page.
    pub fn section(&self) -> String {
        let mut text = String::from("\n## Lines of the decoders that the kept inputs reach\n\n");
        text += "The code that takes bytes of a guest, or of a client, apart. What an input of any \
                 target reaches counts.\n\n";
        text += "| file | lines | reached | |\n|---|---|---|---|\n";
        let mut row = |name: &str, lines, reached| {
            let percent = percent(reached, lines);
            let _ = writeln!(text, "| {name} | {lines} | {reached} | {percent} % |");
        };
        for file in &self.files {
            row(&format!("`{}`", file.name), file.lines, file.lines_reached);
        }
        row("all", self.lines, self.lines_reached);
        text
    }

    /// For a line of output.
    pub fn sentence(&self) -> String {
        format!(
            "{} of {} lines of the decoders reached",
            self.lines_reached, self.lines
        )
    }
}

/// Whole percent, rounded down: 100 is all.
fn percent(part: u64, whole: u64) -> u64 {
    (100 * part).checked_div(whole).unwrap_or(0)
}

#[cfg(test)]
pub mod tests {
    use super::*;

    fn file(name: &str, lines: u64, covered: u64) -> String {
        format!(
            "{{\"filename\":\"/somewhere/{name}\",\"summary\":{{\"functions\":{{}},\
             \"lines\":{{\"count\":{lines},\"covered\":{covered},\"percent\":1.5}}}}}}"
        )
    }

    fn export(files: &[String]) -> Vec<u8> {
        format!(
            "{{\"data\":[{{\"files\":[{}],\"totals\":{{}}}}]}}",
            files.join(",")
        )
        .into_bytes()
    }

    fn files() -> Vec<String> {
        vec![
            file("crates/device-backend/src/vhost/ring.rs", 10, 10),
            file("crates/device-backend/src/model/request/control.rs", 50, 40),
            file("crates/device-backend/src/model/device.rs", 1000, 1),
            file("crates/device-backend/src/vhost/chain.rs", 20, 15),
            file("crates/control-protocol/src/fault.rs", 20, 20),
        ]
    }

    /// A measurement.
    pub fn sample() -> Coverage {
        Coverage::parse(&export(&files())).expect("a measurement")
    }

    #[test]
    fn decoders_count_and_nothing_else() {
        let coverage = sample();
        assert_eq!((coverage.lines, coverage.lines_reached), (100, 85));
        let section = coverage.section();
        for line in [
            "| `crates/device-backend/src/model/request/control.rs` | 50 | 40 | 80 % |",
            "| all | 100 | 85 | 85 % |",
        ] {
            assert!(section.contains(line), "{line} is not in:\n{section}");
        }
        assert!(!section.contains("somewhere") && !section.contains("device.rs"));
    }

    #[test]
    fn decoder_that_nothing_is_said_of_is_an_error() {
        let error = Coverage::parse(&export(&files()[1..])).expect_err("ring.rs is missing");
        assert!(error.to_string().contains("ring.rs"), "{error}");
    }

    #[test]
    fn decoders_are_in_the_repository() {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        for name in DECODERS {
            assert!(repo.join(name).exists(), "{name}");
        }
    }
}
