// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The page: a part for each run, and one for benchmarks.

use std::fmt::Write as _;

use quick_junit::TestCase;

use super::Run;
use crate::bench::Figure;
use crate::html::{BAD, Bar, GOOD, NEITHER, PLAIN, Piece, bars, escaped};
use crate::junit_page::{Count, SHOWN_FAILURES, SHOWN_TEXT, cases, text_of};

/// Cases of a run whose time is shown: those that one would make faster first.
const SLOWEST: usize = 12;

/// The whole page.
pub fn page(runs: &[Run], figures: &[Figure]) -> String {
    let mut body = String::new();
    for run in runs {
        one_run(&mut body, run);
    }
    if !figures.is_empty() {
        benchmarks(&mut body, figures);
    }
    crate::html::page("cdm: results", &body)
}

fn one_run(page: &mut String, run: &Run) {
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
                pieces: Piece::stacked([
                    (count.passed as f64, GOOD),
                    (count.failed as f64, BAD),
                    (count.skipped as f64, NEITHER),
                ]),
                spread: None,
            }
        })
        .collect();
    section(page, "Passed / failed / skipped", &suites, false);
    let seconds = |case: &TestCase| case.time.unwrap_or_default().as_secs_f64();
    let mut slowest: Vec<_> = cases(&run.report).collect();
    slowest.sort_by(|(_, a), (_, b)| seconds(b).total_cmp(&seconds(a)));
    let slowest: Vec<Bar> = slowest
        .iter()
        .take(SLOWEST)
        .map(|(suite, case)| Bar {
            name: format!("{}::{}", suite.name.as_str(), case.name.as_str()),
            text: format!("{:.1} s", seconds(case)),
            pieces: vec![Piece::to(seconds(case), PLAIN)],
            spread: None,
        })
        .collect();
    section(page, "What took longest", &slowest, false);
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
}

/// Figures as how many times better than each reference they are; then as they are, bars for each
/// unit.
fn benchmarks(page: &mut String, figures: &[Figure]) {
    page.push_str("<h2><code>just bench</code></h2>\n");
    let compared: Vec<Bar> = figures
        .iter()
        .map(|figure| {
            // Of times and memory less is better.
            let better = match figure.unit.less_is_better() {
                true => 1.0 / figure.ratio,
                false => figure.ratio,
            };
            let colour = if better >= 1.0 { GOOD } else { BAD };
            Bar {
                name: format!("{} : {}", figure.name, figure.reference),
                text: format!("{better:.2}x"),
                // Twice as good and half as good are as far from the line.
                pieces: vec![Piece::to(better.log2(), colour)],
                spread: None,
            }
        })
        .collect();
    let title = "How many times better than its reference: left of the line it is worse";
    section(page, title, &compared, true);
    let unit_of = |figure: &Figure| figure.unit.to_string();
    let mut units: Vec<String> = figures.iter().map(unit_of).collect();
    units.sort_unstable();
    units.dedup();
    for unit in units {
        let of_unit = |figure: &&Figure| unit_of(figure) == unit;
        let mut of_unit: Vec<&Figure> = figures.iter().filter(of_unit).collect();
        // One with several references is there several times.
        of_unit.dedup_by(|a, b| a.name == b.name);
        let bars: Vec<Bar> = of_unit
            .iter()
            .map(|figure| Bar {
                name: figure.name.clone(),
                text: format!("{:.4} of {} runs", Short(figure.median), figure.runs),
                pieces: vec![Piece::to(figure.median, PLAIN)],
                spread: Some(figure.min..figure.max),
            })
            .collect();
        let title = format!("{unit}: the median, and from least to most");
        section(page, &title, &bars, false);
    }
}

fn section(page: &mut String, title: &str, rows: &[Bar], marked: bool) {
    if !rows.is_empty() {
        let rows = bars(rows, marked);
        let _ = write!(page, "<h3>{}</h3>\n{rows}", escaped(title));
    }
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

#[cfg(test)]
mod tests {
    use super::*;

    fn figure(name: &str, unit: &str, reference: &str, ratio: f64) -> Figure {
        let json = serde_json::json!({
            "name": name, "unit": unit, "reference": reference, "ratio": ratio,
            "value": 100.5, "min": 90.0, "median": 100.5, "max": 110.0, "runs": 3,
            "reference_value": 50.0, "ratio_min": ratio, "ratio_max": ratio, "ratios": [ratio],
        });
        serde_json::from_value(json).expect("a figure")
    }

    #[test]
    fn figure_with_several_references_is_compared_with_each_and_has_one_bar() {
        let figures = [
            figure("a", "MiB/s", "x", 2.0),
            figure("a", "MiB/s", "y", 0.5),
            figure("b", "MiB/s", "x", 1.0),
        ];
        let page = page(&[], &figures);
        assert_eq!(page.matches("100.5 of 3 runs").count(), 2, "{page}");
        for text in ["a : x", "a : y", "2.00x", "0.50x"] {
            assert!(page.contains(text), "{text} is not in {page}");
        }
    }

    #[test]
    fn time_that_is_half_of_its_reference_is_twice_as_good() {
        let page = page(&[], &[figure("a", "us", "x", 0.5)]);
        assert!(page.contains("2.00x"), "{page}");
        let good = format!("<i class=\"c{GOOD}\" style=\"left:0.00%;width:100.00%\">");
        assert!(page.contains(&good), "{page}");
    }

    #[test]
    fn numbers_have_the_digits_that_mean_something() {
        let short = |number: f64| format!("{:.4}", Short(number));
        assert_eq!(short(12345.6), "12346");
        assert_eq!(short(100.53), "100.5");
        assert_eq!(short(0.12345), "0.123");
    }
}
