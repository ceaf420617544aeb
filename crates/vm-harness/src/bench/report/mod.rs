// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `report.html`: all figures and their plots on one page, which needs nothing besides.

mod plot;
mod shape;

use std::fmt::Write as _;

use anyhow::Result;

use self::plot::{Axis, lines};
use self::shape::Plot;
use super::about::About;
use super::figure::Figure;
use super::table::{number, ratio};
use crate::html::{bars, escaped, legend};
use cdm_agent_protocol::Sample;

/// The page.
pub fn page(about: &About, samples: &[Sample], figures: &[Figure]) -> Result<String> {
    let mut html = String::new();
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
    Ok(crate::html::page("cdm bench", &html))
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
        let names = plot.lines.iter().map(|line| &*line.label);
        write!(
            html,
            "<figure><figcaption>{}</figcaption>\n{}{}</figure>\n",
            escaped(&plot.title),
            lines(x, y, &plot.lines)?,
            legend(names)
        )?;
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
        "<h2>Where the time goes</h2><p>Microseconds for each MiB, by samples of what the kernel is \
         found at.</p>\n",
    );
    for part in found {
        write!(
            html,
            "<h3>{}</h3>\n{}{}",
            escaped(&part.title),
            legend(part.pieces.iter().map(String::as_str)),
            bars(&part.bars, false)
        )?;
    }
    Ok(())
}

/// Every figure against every reference.
fn table(html: &mut String, figures: &[Figure]) -> Result<()> {
    html.push_str(
        "<h2>All figures</h2><p>The ratio is the value by the reference's of the same round. Of MiB/s \
         and 1/s more is better, of us, ms and MiB less.</p>\n<div class=\"wide\">\n<table><tr><th>figure</th><th class=\"n\">median</th>\
         <th class=\"n\">min</th><th class=\"n\">max</th><th>unit</th><th>reference</th>\
         <th class=\"n\">its median</th><th class=\"n\">ratio</th><th class=\"n\">from</th>\
         <th class=\"n\">to</th><th class=\"n\">runs</th></tr>\n",
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
    html.push_str("</table>\n</div>\n");
    Ok(())
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
