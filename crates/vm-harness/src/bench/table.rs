// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The figures on one screen: a line for each name, with its ratio to each reference.

use super::figure::Figure;

/// Lines that fit; with more names than that, only those are shown that tell most.
const LINES: usize = 45;
/// Where there are too many sizes, this one stands for them.
const TELLING: &str = "/16MiB/";

/// The table.
pub fn table(figures: &[Figure]) -> String {
    let mut names: Vec<&str> = Vec::new();
    for figure in figures {
        if !names.contains(&&*figure.name) {
            names.push(&figure.name);
        }
    }
    let all = names.len();
    if all > LINES {
        names.retain(|name| !name.contains("iB/") || name.contains(TELLING));
        names.truncate(LINES);
    }
    let width = names.iter().map(|name| name.len()).max().unwrap_or(0);
    let mut text = String::new();
    for name in &names {
        let own: Vec<&Figure> = figures
            .iter()
            .filter(|figure| figure.name == **name)
            .collect();
        let ratios: Vec<String> = own
            .iter()
            .map(|figure| format!("{} {}", ratio(figure.ratio), figure.reference))
            .collect();
        if let Some(first) = own.first() {
            text += &format!(
                "{name:width$}  {:>9} {:<5}  {}\n",
                number(first.value),
                first.unit,
                ratios.join("  ")
            );
        }
    }
    if all > names.len() {
        text += &format!(
            "and {} more in results.json and report.html\n",
            all - names.len()
        );
    }
    text + "The factors are the value by that of each reference, measured in turn; of MiB/s and 1/s more is better, of us, ms and MiB less.\n"
}

/// A value with three digits that tell something.
pub fn number(value: f64) -> String {
    match value {
        value if value >= 100.0 => format!("{value:.0}"),
        value if value >= 10.0 => format!("{value:.1}"),
        _ => format!("{value:.2}"),
    }
}

/// A ratio as a factor.
pub fn ratio(ratio: f64) -> String {
    format!("{ratio:.2}x")
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdm_agent_protocol::Unit;

    fn figure(name: &str, reference: &str) -> Figure {
        Figure {
            name: name.into(),
            value: 1234.5,
            unit: Unit::MebibytesPerSecond,
            reference: reference.into(),
            ratio: 0.456,
            min: 1.0,
            median: 1.0,
            max: 1.0,
            runs: 3,
            reference_value: 1.0,
            ratio_min: 1.0,
            ratio_max: 1.0,
            ratios: vec![1.0; 3],
        }
    }

    #[test]
    fn line_has_the_value_and_a_factor_for_each_reference() {
        let text = table(&[figure("a/b", "memcpy"), figure("a/b", "test_hmm")]);
        let line = text.lines().next().expect("a line");
        assert_eq!(line, "a/b       1234 MiB/s  0.46x memcpy  0.46x test_hmm");
    }

    #[test]
    fn too_many_names_are_cut_to_a_telling_size_and_the_rest_is_counted() {
        let mut figures: Vec<Figure> = (0..LINES)
            .map(|number| figure(&format!("m/{number}/64KiB/x"), "memcpy"))
            .collect();
        figures.push(figure("m/4KiB/16MiB/x", "memcpy"));
        figures.push(figure("page/x", "memcpy"));
        let text = table(&figures);
        assert!(
            text.contains("m/4KiB/16MiB/x") && text.contains("page/x"),
            "{text}"
        );
        assert!(text.contains(&format!("and {LINES} more")), "{text}");
    }

    #[test]
    fn numbers_have_three_digits_that_tell() {
        assert_eq!(
            [0.123, 1.234, 12.34, 123.4].map(number),
            ["0.12", "1.23", "12.3", "123"]
        );
    }
}
