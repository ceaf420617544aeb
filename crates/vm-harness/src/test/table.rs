// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A stage whose tests are the rows of a table.

use anyhow::Result;

use super::Stage;
use super::run::Run;

/// A test: its whole name, and what it does.
pub type Row = (&'static str, fn(&Run) -> Result<()>);

/// A stage.
#[derive(Debug)]
pub struct Table {
    /// First part of the names of its tests.
    pub name: &'static str,
    /// Its tests, in the order in which they run.
    pub rows: &'static [Row],
}

impl Stage for Table {
    fn name(&self) -> &'static str {
        self.name
    }

    fn list(&mut self, _run: &Run) -> Result<Vec<String>> {
        Ok(self
            .rows
            .iter()
            .map(|(name, _)| (*name).to_owned())
            .collect())
    }

    fn run(&mut self, run: &mut Run, chosen: &[String]) -> Result<()> {
        for (name, test) in self.rows {
            if chosen.iter().any(|wanted| wanted == name) {
                run.check(name, |run| test(run));
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::context::Context;
    use anyhow::bail;

    const TABLE: Table = Table {
        name: "x",
        rows: &[
            ("x::one", |_| Ok(())),
            ("x::two", |_| bail!("no")),
            ("x::three", |_| Ok(())),
        ],
    };

    #[test]
    fn only_chosen_rows_run_and_each_has_its_own_result() {
        let ctx = Context::for_test("/nonexistent".as_ref());
        let mut run = Run::quiet(&ctx, "/nonexistent".into());
        let mut table = TABLE;
        assert_eq!(
            table.list(&run).expect("a list"),
            ["x::one", "x::two", "x::three"]
        );
        table
            .run(&mut run, &["x::two".into(), "x::three".into()])
            .expect("runs");
        assert_eq!(run.report().count(), "1 passed, 1 failed, 0 skipped");
    }
}
