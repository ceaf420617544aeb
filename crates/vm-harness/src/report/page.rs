// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The page: a part for each run, and one for benchmarks.

use std::fmt::Write as _;

use anyhow::Result;
use quick_junit::TestCase;

use super::Run;
use super::bench::Figure;
use super::plot::{self, BAD, Bar, GOOD, NEITHER, PLAIN};
use crate::junit_page::{Count, SHOWN_FAILURES, SHOWN_TEXT, cases, text_of};

/// Cases of a run whose time is shown: those that one would make faster first.
const SLOWEST: usize = 12;

const STYLE: &str = "body { font: 15px/1.4 sans-serif; max-width: 940px; margin: 2em auto; \
                     padding: 0 1em; color: #222; background: #fff } svg { max-width: 100%; \
                     height: auto } pre { background: #f4f4f4; padding: .6em; overflow-x: auto } \
                     .bad { color: #a33c00 } code { overflow-wrap: anywhere }";

/// The whole page.
pub fn page(runs: &[Run], figures: &[Figure]) -> Result<String> {
    let mut page = format!(
        "<!DOCTYPE html>\n<html lang=\"en\">\n<head>\n<meta charset=\"utf-8\">\n\
         <meta name=\"viewport\" content=\"width=device-width\">\n<title>cdm: results</title>\n\
         <style>{STYLE}</style>\n</head>\n<body>\n<h1>cdm: results</h1>\n"
    );
    for run in runs {
        one_run(&mut page, run)?;
    }
    if !figures.is_empty() {
        benchmarks(&mut page, figures)?;
    }
    page.push_str("</body>\n</html>\n");
    Ok(page)
}

fn one_run(page: &mut String, run: &Run) -> Result<()> {
    let all = Count::of(cases(&run.report).map(|(_, case)| case));
    let class = if all.failed > 0 { " class=\"bad\"" } else { "" };
    let _ = write!(
        page,
        "<h2><code>{}</code></h2>\n<p{class}><b>{} passed, {} failed, {} skipped</b>{}</p>\n\
         <p>Logs: <code>{}</code></p>\n",
        escaped(run.command()),
        all.passed,
        all.failed,
        all.skipped,
        run.report
            .time
            .map(|time| format!(" in {:.0} s", time.as_secs_f64()))
            .unwrap_or_default(),
        escaped(&run.folder.display().to_string()),
    );
    let suites: Vec<Bar> = run
        .report
        .test_suites
        .iter()
        .map(|suite| {
            let count = Count::of(suite.test_cases.iter());
            Bar {
                name: suite.name.as_str().to_owned(),
                text: format!("{} / {} / {}", count.passed, count.failed, count.skipped),
                parts: vec![
                    (count.passed as f64, GOOD),
                    (count.failed as f64, BAD),
                    (count.skipped as f64, NEITHER),
                ],
                spread: None,
            }
        })
        .collect();
    section(page, "Passed / failed / skipped", &suites, None)?;
    let seconds = |case: &TestCase| case.time.unwrap_or_default().as_secs_f64();
    let mut slowest: Vec<_> = cases(&run.report).collect();
    slowest.sort_by(|(_, a), (_, b)| seconds(b).total_cmp(&seconds(a)));
    let slowest: Vec<Bar> = slowest
        .iter()
        .take(SLOWEST)
        .map(|(suite, case)| Bar {
            name: format!("{}::{}", suite.name.as_str(), case.name.as_str()),
            text: format!("{:.1} s", seconds(case)),
            parts: vec![(seconds(case), PLAIN)],
            spread: None,
        })
        .collect();
    section(page, "What took longest", &slowest, None)?;
    let failures =
        cases(&run.report).filter_map(|(suite, case)| Some((suite, case, text_of(case)?)));
    for (suite, case, text) in failures.take(SHOWN_FAILURES) {
        let shown: String = text.chars().take(SHOWN_TEXT).collect();
        let _ = write!(
            page,
            "<h3 class=\"bad\">{}::{}</h3>\n<pre>{}</pre>\n",
            escaped(suite.name.as_str()),
            escaped(case.name.as_str()),
            escaped(shown.trim_end())
        );
    }
    if all.failed > SHOWN_FAILURES {
        let more = all.failed - SHOWN_FAILURES;
        let _ = writeln!(page, "<p>and {more} more failures, which junit.xml has</p>");
    }
    Ok(())
}

/// Figures with a reference as their ratio to it; the rest as they are, a plot for each unit.
fn benchmarks(page: &mut String, figures: &[Figure]) -> Result<()> {
    page.push_str("<h2><code>just bench</code></h2>\n");
    let compared: Vec<Bar> = figures
        .iter()
        .filter_map(|figure| {
            let ratio = figure.ratio?;
            let reference = figure.reference.as_deref()?;
            Some(Bar {
                name: format!("{} : {reference}", figure.name),
                text: format!("{ratio:.2}"),
                parts: vec![(ratio, if ratio >= 1.0 { GOOD } else { BAD })],
                spread: None,
            })
        })
        .collect();
    let title = "Against its reference; at the line both do as well";
    section(page, title, &compared, Some(1.0))?;
    let mut units: Vec<&str> = figures.iter().map(|figure| figure.unit.as_str()).collect();
    units.sort_unstable();
    units.dedup();
    for unit in units {
        let mut of_unit: Vec<&Figure> = figures.iter().filter(|one| one.unit == unit).collect();
        // One with several references is there several times.
        of_unit.dedup_by(|a, b| a.name == b.name);
        let bars: Vec<Bar> = of_unit
            .iter()
            .map(|figure| Bar {
                name: figure.name.clone(),
                text: format!("{:.4} of {} runs", Short(figure.median), figure.runs),
                parts: vec![(figure.median, PLAIN)],
                spread: Some((figure.min, figure.max)),
            })
            .collect();
        let title = format!("{unit}: the median, and from least to most");
        section(page, &title, &bars, None)?;
    }
    Ok(())
}

fn section(page: &mut String, title: &str, bars: &[Bar], mark: Option<f64>) -> Result<()> {
    if !bars.is_empty() {
        let svg = plot::bars(bars, mark)?;
        let _ = write!(page, "<h3>{}</h3>\n{svg}\n", escaped(title));
    }
    Ok(())
}

/// A number with as many digits as the precision says, and none that only fill it up.
struct Short(f64);

impl std::fmt::Display for Short {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let digits = f.precision().unwrap_or(4) as i32;
        let before = match self.0.abs() {
            value if value >= 1.0 => value.log10().floor() as i32 + 1,
            _ => 1,
        };
        let behind = (digits - before).max(0) as usize;
        write!(f, "{:.behind$}", self.0)
    }
}

fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
        .replace('"', "&quot;")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, reference: Option<&str>, ratio: Option<f64>) -> Figure {
        Figure {
            name: name.into(),
            unit: "MiB/s".into(),
            reference: reference.map(str::to_owned),
            ratio,
            min: 90.0,
            median: 100.5,
            max: 110.0,
            runs: 3,
        }
    }

    #[test]
    fn figure_with_several_references_has_a_ratio_to_each_and_one_bar() {
        let figures = [
            figure("a", Some("x"), Some(2.0)),
            figure("a", Some("y"), Some(0.5)),
            figure("b", None, None),
        ];
        let page = page(&[], &figures).expect("drawn");
        assert_eq!(page.matches("100.5 of 3 runs").count(), 2, "{page}");
        for text in ["a : x", "a : y", "2.00", "0.50"] {
            assert!(page.contains(text), "{text} is not in {page}");
        }
    }

    #[test]
    fn numbers_have_the_digits_that_mean_something() {
        let short = |number: f64| format!("{:.4}", Short(number));
        assert_eq!(short(12345.6), "12346");
        assert_eq!(short(100.53), "100.5");
        assert_eq!(short(0.12345), "0.123");
    }
}
