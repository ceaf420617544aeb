// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A figure and what it is measured against.

use serde::Serialize;
use std::fmt;

/// What a measurement came to, in the form that all benchmarks of the project write.
#[derive(Debug, Serialize)]
pub struct Figure {
    /// What was measured.
    pub name: String,
    /// The median.
    pub value: f64,
    /// Of value and reference.
    pub unit: &'static str,
    /// The median of what it was measured against.
    pub reference: f64,
    /// The median of the ratios of each round: value by reference.
    pub ratio: f64,
    /// The least ratio.
    pub min: f64,
    /// The median ratio.
    pub median: f64,
    /// The greatest ratio.
    pub max: f64,
    /// Rounds.
    pub runs: usize,
}

/// Measures `own` and `reference` in turn.
pub fn in_turn(
    name: String,
    unit: &'static str,
    rounds: u32,
    mut own: impl FnMut() -> f64,
    mut reference: impl FnMut() -> f64,
) -> Figure {
    // The first time, caches are cold and pages are missing.
    let _ = (own(), reference());
    let pairs: Vec<(f64, f64)> = (0..rounds).map(|_| (own(), reference())).collect();
    let sorted = |of: &dyn Fn(&(f64, f64)) -> f64| {
        let mut values: Vec<f64> = pairs.iter().map(of).collect();
        values.sort_by(f64::total_cmp);
        values
    };
    let middle = |values: &[f64]| values[values.len() / 2];
    let ratios = sorted(&|(own, reference)| own / reference);
    Figure {
        name,
        value: middle(&sorted(&|pair| pair.0)),
        unit,
        reference: middle(&sorted(&|pair| pair.1)),
        ratio: middle(&ratios),
        min: ratios[0],
        median: middle(&ratios),
        max: ratios[ratios.len() - 1],
        runs: ratios.len(),
    }
}

impl fmt::Display for Figure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(
            f,
            "{:<40} {:>10.2} against {:>10.2} {:<5} ratio {:.2} ({:.2} to {:.2})",
            self.name, self.value, self.reference, self.unit, self.ratio, self.min, self.max
        )
    }
}
