// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm report`: the last results of tests, stress and benchmarks on one page that needs no other
//! file and no network, to be looked at in a browser or sent to somebody.

mod page;

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::{Result, bail};
use clap::Args;
use quick_junit::Report;

use crate::cache;
use crate::context::Context;
use crate::{bench, junit_page, results, runs};

/// Where the page goes, in the repository; git looks at neither.
const PAGE: &str = "target/report/report.html";
/// Where 'just bench' leaves its figures.
pub(crate) const FIGURES: &str = "target/bench/results.json";

/// Arguments of `cdm report`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just report
  just report --out /tmp/report.html
  just report --results results       # of a CI run: its --keep-logs")]
pub struct ReportArgs {
    /// Write the page there [default: target/report/report.html]
    #[arg(long, value_name = "FILE")]
    pub(crate) out: Option<PathBuf>,

    /// Results folder instead of the last runs in the cache; repeatable
    #[arg(long = "results", value_name = "DIR")]
    pub(crate) folders: Vec<PathBuf>,
}

/// `cdm report`.
pub fn run(ctx: &Context, args: &ReportArgs) -> Result<ExitCode> {
    println!("{}", written(ctx, args)?.display());
    Ok(ExitCode::SUCCESS)
}

/// Writes the page, and says where.
pub(crate) fn written(ctx: &Context, args: &ReportArgs) -> Result<PathBuf> {
    let runs = match args.folders.is_empty() {
        true => last_runs(ctx),
        false => args
            .folders
            .iter()
            .map(|folder| Ok(Run::new(folder.clone(), junit_page::read(folder)?)))
            .collect::<Result<_>>()?,
    };
    let figures = ctx.repo.join(FIGURES);
    let figures = figures
        .exists()
        .then(|| bench::read(&figures))
        .transpose()?;
    if runs.is_empty() && figures.is_none() {
        bail!("there are no results yet; 'just test', 'just stress' and 'just bench' make some");
    }
    let page = page::page(&runs, figures.as_deref().unwrap_or_default());
    let out = match &args.out {
        Some(path) => path.clone(),
        None => ctx.repo.join(PAGE),
    };
    if let Some(parent) = out.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        cache::create_folder(parent)?;
    }
    results::write(&out, &page)?;
    Ok(out)
}

/// Results of one run.
struct Run {
    /// Its folder.
    folder: PathBuf,
    report: Report,
}

impl Run {
    fn new(folder: PathBuf, report: Report) -> Self {
        Self { folder, report }
    }

    /// The command, such as `just test unit`.
    fn command(&self) -> &str {
        self.report
            .name
            .as_ref()
            .map_or("results", |name| name.as_str())
    }
}

/// The last run of each kind of command, newest first. A run that has come to no end has no
/// results.
fn last_runs(ctx: &Context) -> Vec<Run> {
    let mut folders: Vec<PathBuf> = [runs::TESTS, runs::GUESTS]
        .iter()
        .flat_map(|kind| fs::read_dir(ctx.cache.join(kind)))
        .flatten()
        .flatten()
        .map(|entry| entry.path())
        .collect();
    // Names are the times of runs.
    folders.sort_by(|a, b| b.file_name().cmp(&a.file_name()));
    let mut last: BTreeMap<String, Run> = BTreeMap::new();
    for folder in folders {
        let Some(report) = finished(&folder) else {
            continue;
        };
        let run = Run::new(folder, report);
        let kind = kind_of(run.command());
        last.entry(kind).or_insert(run);
    }
    let mut runs: Vec<Run> = last.into_values().collect();
    runs.sort_by(|a, b| b.folder.file_name().cmp(&a.folder.file_name()));
    runs
}

fn finished(folder: &Path) -> Option<Report> {
    folder.join(junit_page::FILE).exists().then_some(())?;
    junit_page::read(folder).ok()
}

/// Runs of one kind take each other's places: `just test x` that of `just test`.
fn kind_of(command: &str) -> String {
    let words: Vec<&str> = command
        .trim_start_matches("ci/")
        .split_whitespace()
        .take(2)
        .collect();
    words.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::junit::tests::case;
    use crate::junit::{Ending, write};

    fn context() -> (tempfile::TempDir, Context) {
        let dir = tempfile::tempdir().expect("temporary folder");
        let ctx = Context::for_test(dir.path());
        (dir, ctx)
    }

    fn run_of(ctx: &Context, kind: &str, time: &str, command: &str, ending: Ending) {
        let folder = ctx.cache.join(kind).join(time);
        fs::create_dir_all(&folder).expect("made");
        let cases = [case("unit::a<b>", "one", ending, "it & <that>")];
        write(&folder.join("junit.xml"), command, &cases).expect("written");
    }

    fn args() -> ReportArgs {
        ReportArgs {
            out: None,
            folders: Vec::new(),
        }
    }

    #[test]
    fn page_has_the_last_run_of_each_kind_and_the_figures_and_needs_nothing_else() {
        let (_dir, ctx) = context();
        run_of(
            &ctx,
            runs::TESTS,
            "20260101-000000",
            "just test old",
            Ending::Passed,
        );
        run_of(
            &ctx,
            runs::TESTS,
            "20260102-000000",
            "just test new",
            Ending::Failed("failed"),
        );
        run_of(
            &ctx,
            runs::GUESTS,
            "20260101-000001",
            "just stress moves",
            Ending::Passed,
        );
        fs::create_dir_all(ctx.cache.join(runs::GUESTS).join("20260103-000000")).expect("made");
        fs::create_dir_all(ctx.repo.join("target/bench")).expect("made");
        let figures = r#"[{"name": "migrate/4KiB", "value": 3.0, "unit": "MiB/s", "reference": "memcpy",
            "ratio": 1.5, "min": 2.0, "median": 3.0, "max": 4.0, "runs": 3, "reference_value": 2.0,
            "ratio_min": 1.0, "ratio_max": 2.0, "ratios": [1.0, 2.0]}]"#;
        fs::write(ctx.repo.join(FIGURES), figures).expect("written");
        run(&ctx, &args()).expect("written");
        let page = fs::read_to_string(ctx.repo.join(PAGE)).expect("there");
        for part in [
            "just test new",
            "just stress moves",
            "migrate/4KiB",
            "memcpy",
            "1.50x",
            "unit::a&lt;b&gt;",
            "it &amp; &lt;that&gt;",
        ] {
            assert!(page.contains(part), "{part} is not in {page}");
        }
        assert!(!page.contains("just test old"), "{page}");
        for foreign in ["src=", "href=\"http", "@import", "<script", "<link"] {
            assert!(!page.contains(foreign), "{foreign} is in {page}");
        }
    }

    #[test]
    fn without_any_results_it_says_who_makes_some() {
        let (_dir, ctx) = context();
        let error = run(&ctx, &args()).expect_err("nothing").to_string();
        assert!(
            error.contains("just test") && error.contains("just bench"),
            "{error}"
        );
    }

    #[test]
    fn figures_that_are_none_are_named() {
        let (_dir, ctx) = context();
        fs::create_dir_all(ctx.repo.join("target/bench")).expect("made");
        fs::write(ctx.repo.join(FIGURES), "{}").expect("written");
        let error = format!("{:#}", run(&ctx, &args()).expect_err("no list"));
        assert!(error.contains(FIGURES), "{error}");
    }
}
