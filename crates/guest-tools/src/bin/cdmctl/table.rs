// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tables for people.

/// A column: words begin at its left, figures end at its right.
#[derive(Clone, Copy, Debug)]
pub struct Column<'a> {
    pub name: &'a str,
    pub is_figure: bool,
    /// As wide as this even where all that is in it is narrower, so that tables that follow each
    /// other have it in the same place.
    pub width_min: usize,
}

/// A column of words.
pub const fn words(name: &str) -> Column<'_> {
    Column {
        name,
        is_figure: false,
        width_min: 0,
    }
}

/// A column of figures.
pub const fn figures(name: &str) -> Column<'_> {
    Column {
        is_figure: true,
        ..words(name)
    }
}

impl Column<'_> {
    pub const fn at_least(self, width_min: usize) -> Self {
        Self { width_min, ..self }
    }

    /// With these cells in it.
    pub fn width(&self, cells: &[&String]) -> usize {
        let cells = cells.iter().map(|cell| cell.chars().count());
        let widest = cells.max().unwrap_or_default();
        widest.max(self.name.chars().count()).max(self.width_min)
    }
}

/// The names of the columns, then the rows, each on a line of its own.
pub fn text(columns: &[Column<'_>], rows: &[Vec<String>]) -> String {
    let widths = columns.iter().enumerate().map(|(at, column)| {
        let cells: Vec<_> = rows.iter().filter_map(|row| row.get(at)).collect();
        column.width(&cells)
    });
    let widths: Vec<_> = widths.collect();
    let names = columns.iter().map(|column| column.name.to_owned());
    let line = |cells: &Vec<String>| {
        let cells = cells.iter().zip(columns).zip(&widths);
        let padded = cells.map(|((cell, column), &width)| match column.is_figure {
            true => format!("{cell:>width$}"),
            false => format!("{cell:<width$}"),
        });
        padded.collect::<Vec<_>>().join("  ").trim_end().to_owned() + "\n"
    };
    [names.collect()].iter().chain(rows).map(line).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn words_begin_and_figures_end_below_each_other_whatever_the_values() {
        let columns = [words("WHAT"), figures("N"), words("WHY")];
        let row = |cells: [&str; 3]| cells.map(str::to_owned).to_vec();
        let rows = [row(["a", "1", "x"]), row(["longest", "12345", ""])];
        assert_eq!(
            text(&columns, &rows),
            "WHAT         N  WHY\n\
             a            1  x\n\
             longest  12345\n"
        );
    }

    #[test]
    fn column_is_as_wide_as_it_was_asked_to_be_at_least() {
        let columns = [figures("N").at_least(4), words("WHY")];
        let row = vec!["1".to_owned(), "x".to_owned()];
        assert_eq!(text(&columns, &[row]), "   N  WHY\n   1  x\n");
    }
}
