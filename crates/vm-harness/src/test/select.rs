// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which tests the user asked for.

/// A piece of a test's name, or nothing for all tests.
#[derive(Debug, Default)]
pub struct Selection {
    text: Option<String>,
}

impl Selection {
    /// Takes every test if `text` is `None`.
    pub fn new(text: Option<String>) -> Self {
        Self { text }
    }

    /// Whether a test is chosen.
    pub fn takes(&self, name: &str) -> bool {
        self.text
            .as_ref()
            .is_none_or(|text| name.contains(text.as_str()))
    }

    /// Whether a test of `stage` can be chosen, as far as that shows without its names: text that
    /// begins with the name of a stage speaks of that stage alone, and then no other one has to be
    /// built to learn its names.
    pub fn may_be_in(&self, stage: &str) -> bool {
        let Some(text) = &self.text else { return true };
        match STAGES.iter().find(|name| begins_with_stage(text, name)) {
            Some(named) => *named == stage,
            None => true,
        }
    }
}

/// Every stage.
pub const STAGES: &[&str] = &[
    "lint", "docs", "unit", "doctest", "fuzz", "packages", "kernel", "e2e", "hmm", "host",
];

fn begins_with_stage(text: &str, stage: &str) -> bool {
    text == stage
        || text
            .strip_prefix(stage)
            .is_some_and(|rest| rest.starts_with("::"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn no_text_takes_everything() {
        let all = Selection::default();
        assert!(all.takes("e2e::public::fork::x") && all.may_be_in("unit"));
    }

    #[test]
    fn text_is_looked_for_anywhere_in_the_name() {
        let pinned = Selection::new(Some("pinned".into()));
        assert!(pinned.takes("e2e::public::pins::pinned_pages_are_refused"));
        assert!(!pinned.takes("e2e::public::fork::x"));
        assert!(pinned.may_be_in("unit") && pinned.may_be_in("e2e"));
    }

    #[test]
    fn text_that_names_a_stage_leaves_the_others_alone() {
        let fork = Selection::new(Some("e2e::public::fork".into()));
        assert!(fork.may_be_in("e2e"));
        assert!(!fork.may_be_in("unit"));
        // 'units' is a word that happens to begin like a stage.
        assert!(Selection::new(Some("units".into())).may_be_in("e2e"));
    }
}
