// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `report.html`: all figures and their plots on one page, which needs nothing besides.

mod bars;
mod plot;
mod shape;

use std::fmt::Write as _;

use anyhow::Result;

use self::plot::{Axis, lines};
use self::shape::Plot;
use super::about::About;
use super::figure::Figure;
use super::table::{number, ratio};
use cdm_agent_protocol::Sample;

const HEAD: &str = "\
<!DOCTYPE html>
<!-- SPDX-License-Identifier: Apache-2.0 OR MIT -->
<html lang=\"en\"><head><meta charset=\"utf-8\"><title>cdm bench</title>
<style>
body { font: 15px/1.45 sans-serif; margin: 2em auto; max-width: 1340px; padding: 0 1em; color: #222 }
table { border-collapse: collapse } td, th { padding: .15em .7em; border-bottom: 1px solid #ddd }
td.n { text-align: right; font-variant-numeric: tabular-nums }
.plots { display: flex; flex-wrap: wrap; gap: 10px } svg { border: 1px solid #eee }
</style></head><body>
";

/// The page.
pub fn page(about: &About, samples: &[Sample], figures: &[Figure]) -> Result<String> {
    let mut html = HEAD.to_owned();
    html += "<h1>cdm bench</h1>\n";
    for line in about.sentence().lines() {
        writeln!(html, "<p>{}</p>", escaped(line))?;
    }
    section(
        &mut html,
        "Throughput by size",
        "Both axes are logarithmic; each point is the median of all rounds.",
        &shape::by_size(figures),
        (&shape::SIZE, &shape::THROUGHPUT),
    )?;
    section(
        &mut html,
        "Scaling",
        "Throughput by threads that do the same work together, each a part of it; by devices, each of \
         which takes as much as the next; and by processes that share the same memory in all. Both \
         axes are logarithmic.",
        &shape::by_count(figures),
        (&shape::COUNT, &shape::THROUGHPUT),
    )?;
    section(
        &mut html,
        "Growth: time",
        "How long it takes until the driver has the device, by the memory of the device. Both axes are \
         logarithmic: 'linear' is as many times what 1 GiB took in the same round.",
        &shape::times_by_size(figures),
        (&shape::SIZE, &shape::LONG_TIME),
    )?;
    section(
        &mut html,
        "Growth: memory",
        "What the guest and the backend spend, by the memory of the device; on the same axes.",
        &shape::memory_by_size(figures),
        (&shape::SIZE, &shape::MEMORY),
    )?;
    section(
        &mut html,
        "Latency",
        "Which part of all samples took no longer than so long.",
        &shape::distributions(samples),
        (&shape::TIME, &shape::SHARE),
    )?;
    breakdowns(&mut html, figures)?;
    table(&mut html, figures)?;
    html += "</body></html>\n";
    Ok(html)
}

/// Plots of a kind, if there are any.
fn section(
    html: &mut String,
    title: &str,
    what: &str,
    plots: &[Plot],
    (x, y): (&Axis, &Axis),
) -> Result<()> {
    if plots.is_empty() {
        return Ok(());
    }
    write!(
        html,
        "<h2>{title}</h2><p>{what}</p>\n<div class=\"plots\">\n"
    )?;
    for plot in plots {
        html.push_str(&lines(&plot.title, x, y, &plot.lines)?);
    }
    html.push_str("</div>\n");
    Ok(())
}

/// What times are made of, if that was measured.
fn breakdowns(html: &mut String, figures: &[Figure]) -> Result<()> {
    let found = shape::breakdowns(figures);
    if found.is_empty() {
        return Ok(());
    }
    html.push_str(
        "<h2>Where the time goes</h2><p>By samples of what the kernel is found at.</p>\n\
         <div class=\"plots\">\n",
    );
    for (title, all) in found {
        html.push_str(&bars::bars(&title, &shape::PARTS, &all)?);
    }
    html.push_str("</div>\n");
    Ok(())
}

/// Every figure against every reference.
fn table(html: &mut String, figures: &[Figure]) -> Result<()> {
    html.push_str(
        "<h2>All figures</h2><p>The ratio is the value by the reference's of the same round. Of MiB/s \
         and 1/s more is better, of us, ms and MiB less.</p>\n<table><tr><th>figure</th><th>median</th><th>min</th><th>max\
         </th><th>unit</th><th>reference</th><th>its median</th><th>ratio</th><th>from</th><th>to</th>\
         <th>runs</th></tr>\n",
    );
    for figure in figures {
        let cells = [number(figure.value), number(figure.min), number(figure.max)];
        write!(html, "<tr><td>{}</td>", escaped(&figure.name))?;
        for cell in cells {
            write!(html, "<td class=\"n\">{cell}</td>")?;
        }
        write!(
            html,
            "<td>{}</td><td>{}</td>",
            figure.unit,
            escaped(&figure.reference)
        )?;
        let ratios = [figure.ratio, figure.ratio_min, figure.ratio_max].map(ratio);
        write!(
            html,
            "<td class=\"n\">{}</td>",
            number(figure.reference_value)
        )?;
        for cell in ratios {
            write!(html, "<td class=\"n\">{cell}</td>")?;
        }
        writeln!(html, "<td class=\"n\">{}</td></tr>", figure.runs)?;
    }
    html.push_str("</table>\n");
    Ok(())
}

/// Text in a page.
fn escaped(text: &str) -> String {
    text.replace('&', "&amp;")
        .replace('<', "&lt;")
        .replace('>', "&gt;")
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::bench::figure::{collate, tests::samples};
    use cdm_agent_protocol::Unit;

    #[test]
    fn page_has_every_figure_and_asks_nobody_for_more() {
        let mut samples = samples();
        for number in 0..40 {
            samples.extend(["cdm", "one"].map(|by| Sample {
                name: "t/b".into(),
                by: by.into(),
                unit: Unit::Microseconds,
                round: 0,
                value: f64::from(number + 1),
            }));
        }
        let figures = collate(&samples).expect("figures");
        let about = About::sample();
        let html = page(&about, &samples, &figures).expect("a page");
        for figure in &figures {
            assert!(html.contains(&figure.reference), "{}", figure.reference);
        }
        assert!(html.contains("<svg") && html.ends_with("</html>\n"));
        assert!(html.contains("a processor &lt;fast&gt;"), "{html}");
        for outside in ["<script", "<link", "src=", "@import", "url("] {
            assert!(!html.contains(outside), "{outside}");
        }
    }
}
