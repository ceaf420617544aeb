// SPDX-License-Identifier: Apache-2.0 OR MIT

//! All scenarios, a file for each family.

mod address_space;
mod faults;
mod files;
mod huge;
mod life;
mod mixed;
mod moves;
mod pinning;
mod planted;
mod pressure;

use crate::scenario::Scenario;

/// Families, in the order in which they run.
const FAMILIES: &[&[Scenario]] = &[
    moves::SCENARIOS,
    huge::SCENARIOS,
    address_space::SCENARIOS,
    pinning::SCENARIOS,
    files::SCENARIOS,
    pressure::SCENARIOS,
    life::SCENARIOS,
    mixed::SCENARIOS,
];

/// Families of which the host does a part.
const DRIVEN: &[&[Scenario]] = &[life::DRIVEN, faults::DRIVEN];

/// Every scenario.
pub fn all() -> impl Iterator<Item = &'static Scenario> {
    FAMILIES.iter().copied().flatten()
}

/// Those that do wrong on purpose.
pub fn planted() -> impl Iterator<Item = &'static Scenario> {
    planted::SCENARIOS.iter()
}

/// Scenarios that prove nothing by themselves: the host does a part of them. They are neither listed
/// nor run unless they are called by their names.
pub fn driven() -> impl Iterator<Item = &'static Scenario> {
    DRIVEN.iter().copied().flatten()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::HashSet;

    #[test]
    fn names_are_unique_and_survive_ktap() {
        let every = || all().chain(planted()).chain(driven());
        let names: HashSet<_> = every().map(|scenario| scenario.name).collect();
        assert_eq!(names.len(), every().count());
        for name in names {
            let plain = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || "_:".contains(c);
            assert!(name.chars().all(plain), "{name}");
            assert_eq!(name.split("::").count(), 2, "{name}");
        }
    }

    #[test]
    fn each_says_what_must_hold_and_what_makes_it_count() {
        for scenario in all().chain(driven()) {
            let name = scenario.name;
            assert!(scenario.property.ends_with('.'), "{name}");
            assert!(scenario.operations > 0, "{name}");
            assert!(!scenario.least.is_empty(), "{name}");
            assert!(scenario.needs.devices > 0, "{name}");
        }
    }
}
