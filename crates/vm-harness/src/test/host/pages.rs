// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The pages of results, looked at in a browser: a reader's wide and narrow screen, light and dark.

use std::fmt::Write as _;
use std::fs;
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::super::run::Run;
use crate::bench;
use crate::context::Context;
use crate::junit::{self, Case, Ending};
use crate::junit_page;
use crate::report::{self, FIGURES, ReportArgs};

/// Part of the toolbox (images/toolbox/packages).
const BROWSER: &str = "chromium-headless-shell";
/// Longest that it may take, in seconds: half a second, on a host that does much else.
const LIMIT_SECONDS: &str = "90";
const HEIGHT: u32 = 1600;
/// Widths of windows in pixels, and whether they are dark: a screen, and a telephone.
const WINDOWS: [(u32, bool); 4] = [(1280, false), (400, false), (1280, true), (400, true)];
const DOCTYPE: &str = "<!DOCTYPE html>";
/// Has the browser refuse, and say so, whatever a page would fetch.
const ALONE: &str = "<meta http-equiv=\"Content-Security-Policy\" content=\"default-src 'none'; \
                     style-src 'unsafe-inline'; script-src 'unsafe-inline'\">";
const PROBE: &str = include_str!("pages/probe.js");

/// What the probe leaves.
#[derive(Debug, Deserialize)]
struct Seen {
    problems: Vec<String>,
    width: u32,
    dark: bool,
    bars: usize,
    lines: usize,
    text: String,
}

/// Looks at a page through a window. A picture of what was there stays in the folder of the run.
fn look(run: &Run, page: &Path, (width, dark): (u32, bool)) -> Result<Seen> {
    let html = fs::read_to_string(page)?;
    let html = html.replacen(DOCTYPE, &format!("{DOCTYPE}{ALONE}"), 1);
    ensure!(html.contains(ALONE), "it begins with no {DOCTYPE}");
    let (body, rest) = html.rsplit_once("</body>").context("no body")?;
    let folder = tempfile::tempdir_in(run.folder())?;
    let probed = folder.path().join("page.html");
    fs::write(
        &probed,
        format!("{body}<script>\n{PROBE}</script>\n</body>{rest}"),
    )?;
    let name = page.file_stem().context("a file")?.display();
    let ground = if dark { "dark" } else { "light" };
    let picture = run.folder().join(format!("{name}-{width}-{ground}.png"));
    let output = Command::new("timeout")
        .args(["--kill-after=5", LIMIT_SECONDS, BROWSER])
        // The toolbox is a sandbox already, in which the browser cannot make another one.
        .args(["--no-sandbox", "--disable-gpu", "--hide-scrollbars"])
        .args(["--enable-logging=stderr", "--virtual-time-budget=5000"])
        .arg(format!(
            "--blink-settings=preferredColorScheme={}",
            u8::from(!dark)
        ))
        .arg(format!("--window-size={width},{HEIGHT}"))
        .arg(format!("--user-data-dir={}", folder.path().display()))
        .arg(format!("--screenshot={}", picture.display()))
        .arg("--dump-dom")
        .arg(format!("file://{}", probed.display()))
        .output()
        .context("cannot start timeout, which the toolbox should have; see 'just doctor'")?;
    let said = String::from_utf8_lossy(&output.stderr);
    let dom = String::from_utf8_lossy(&output.stdout);
    let seen = dom
        .split_once("<script id=\"seen\" type=\"application/json\">")
        .and_then(|(_, rest)| rest.split_once("</script>"));
    let Some((seen, _)) = seen.filter(|_| output.status.success()) else {
        bail!(
            "{BROWSER}, which the toolbox should have, showed no page: {}\n{said}",
            output.status
        );
    };
    let mut seen: Seen = serde_json::from_str(seen)?;
    ensure!(
        (seen.width, seen.dark) == (width, dark),
        "the window is {} wide, dark: {}, instead of {width}, {dark}",
        seen.width,
        seen.dark
    );
    let messages = said.lines().filter(|line| line.contains(":CONSOLE"));
    seen.problems
        .extend(messages.map(|line| format!("it says on the console: {line}")));
    Ok(seen)
}

/// Looks at a page through all windows: nothing is wrong there, and it has these texts, and so many
/// bars and lines at least.
fn judge(run: &Run, page: &Path, texts: &[&str], (bars, lines): (usize, usize)) -> Result<()> {
    for window in WINDOWS {
        let seen = look(run, page, window)?;
        ensure!(
            seen.problems.is_empty(),
            "{} in a window of {window:?}:\n{}",
            page.display(),
            seen.problems.join("\n")
        );
        for text in texts {
            ensure!(
                seen.text.contains(text),
                "'{text}' is not shown: {}",
                seen.text
            );
        }
        ensure!(
            seen.bars >= bars && seen.lines >= lines,
            "{} bars and {} lines, least {bars} and {lines}",
            seen.bars,
            seen.lines
        );
    }
    Ok(())
}

/// A page in which all is wrong that can be.
const WRONG: &str = "<!DOCTYPE html><html><body><img src=\"none.png\">\
    <p style=\"color:#ccc;background:#fff\">pale</p><p style=\"font-size:3px\">tiny</p>\
    <div style=\"width:3000px\">wide</div>\
    <p style=\"position:absolute;left:0;top:50px\">over</p>\
    <p style=\"position:absolute;left:0;top:50px\">under</p>\
    <svg width=\"90\" height=\"50\"><text x=\"60\" y=\"20\">beyond the end</text>\
    <polyline points=\"0,0 200,10\" stroke=\"red\"/></svg>\
    <div class=\"track\" style=\"width:90px\">\
    <i style=\"position:absolute;width:200px;height:9px;left:0\"></i></div>\
    <script>console.error('a complaint')</script></body></html>";

/// Who finds nothing wrong must be able to.
pub fn wrong(run: &Run) -> Result<()> {
    let folder = tempfile::tempdir_in(run.folder())?;
    let page = folder.path().join("wrong.html");
    fs::write(&page, WRONG)?;
    let problems = look(run, &page, WINDOWS[0])?.problems.join("\n");
    for problem in [
        "none.png' violates",
        "pixels wide",
        "'pale' has a contrast",
        "'tiny' is too small",
        "'over' and 'under' lie on each other",
        "'beyond the end' is cut off by its drawing",
        "a line leaves its drawing",
        "a bar is longer",
        "a complaint",
    ] {
        ensure!(
            problems.contains(problem),
            "nobody says '{problem}', but:\n{problems}"
        );
    }
    Ok(())
}

/// Lines as the program that measures prints them: names as long as they come, two sizes and two
/// numbers of threads, times enough for a distribution, and parts of a time.
fn samples() -> String {
    let mut lines = String::new();
    let mut add = |name: &str, unit: &str, values: [f64; 2]| {
        for (by, value) in ["cdm", "test_hmm-coherent-bare"].into_iter().zip(values) {
            for round in 0..3 {
                let sample = serde_json::json!({
                    "name": name, "by": by, "unit": unit, "round": round,
                    "value": value * (1.0 + f64::from(round) / 10.0),
                });
                let _ = writeln!(lines, "{sample}");
            }
        }
    };
    for (size, speed) in [("64KiB", 340.0), ("1MiB", 2000.0), ("16MiB", 12345.0)] {
        for threads in [1, 2] {
            let name = format!("migrate/4KiB/{size}/to-device/{threads}-thread");
            add(&name, "MiB/s", [speed * f64::from(threads), 500.0]);
        }
    }
    for number in 1..=30 {
        add(
            "page/to-device",
            "us",
            [f64::from(number), 2.0 * f64::from(number)],
        );
    }
    for part in ["copy", "remap", "flush-of-the-translations"] {
        add(
            &format!("breakdown/4KiB/to-device/{part}"),
            "us",
            [40.0, 80.0],
        );
    }
    add("requests", "1/s", [1.0e6, 0.25]);
    lines
}

pub fn bench_page(run: &Run) -> Result<()> {
    let folder = tempfile::tempdir_in(run.folder())?;
    bench::write_example(folder.path(), &samples())?;
    let texts = [
        "a processor <fast>",
        "migrate/4KiB/16MiB/to-device/2-thread",
        "test_hmm-coherent-bare",
        "flush-of-the-translations",
        "16 MiB",
        "27159",
        "0.50x",
    ];
    // By size and by threads, a distribution, each of two; and two bars of three parts.
    let least = (6, 2 * (2 + 3 + 1));
    judge(run, &folder.path().join("report.html"), &texts, least)
}

/// Results of a run, some of which are no good and have much to say.
fn results(folder: &Path, command: &str) -> Result<()> {
    fs::create_dir_all(folder)?;
    let case = |suite: &str, number: u32, ending| Case {
        suite: suite.into(),
        name: format!(
            "test_{number}_of_what_is_long_enough_to_need_more_than_a_line_on_telephones"
        ),
        ending,
        time: Some(Duration::from_millis(u64::from(number) * 700)),
        detail: format!(
            "repeat: just stress {}",
            "moves::and_more --seed 7 ".repeat(9)
        ),
    };
    let cases: Vec<Case> = (0..30)
        .map(|number| match number % 10 {
            8 => case("e2e::public::migration", number, Ending::Skipped),
            9 => case("unit", number, Ending::Failed("failed")),
            _ => case("unit", number, Ending::Passed),
        })
        .collect();
    junit::write(&folder.join(junit_page::FILE), command, &cases)
}

pub fn report_page(run: &Run) -> Result<()> {
    let folder = tempfile::tempdir_in(run.folder())?;
    // Figures are where a clone has them.
    let ctx = Context {
        repo: folder.path().into(),
        ..run.ctx().clone()
    };
    let figures = ctx.repo.join(FIGURES);
    bench::write_example(figures.parent().context("a folder")?, &samples())?;
    let folders = [
        ("tests", "just test unit"),
        ("stress", "just stress --seconds 60"),
    ];
    let folders: Vec<_> = folders
        .into_iter()
        .map(|(name, command)| {
            let results_of = folder.path().join(name);
            results(&results_of, command).map(|()| results_of)
        })
        .collect::<Result<_>>()?;
    let args = ReportArgs {
        out: Some(folder.path().join("results.html")),
        folders,
    };
    let texts = [
        "just test unit",
        "just stress --seconds 60",
        "24 passed, 3 failed, 3 skipped",
        "24 / 3 / 0",
        "20.3 s",
        "--seed 7",
        "migrate/4KiB/16MiB/to-device/2-thread : test_hmm-coherent-bare",
        "2.00x",
        "27159 of 3 runs",
    ];
    // In each of two runs two suites of two parts at most, and the slowest; then the figures.
    judge(
        run,
        &report::written(&ctx, &args)?,
        &texts,
        (2 * (3 + 12) + 20, 0),
    )
}
