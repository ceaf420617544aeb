// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a run of all tests leaves to the nightly one: tests that take minutes and seldom find what no
//! other finds. They run with `--nightly`, and where they are asked for by name.

/// Beginnings of names, and why those are left away.
const NIGHTLY: &[(&str, &str)] = &[
    (
        "e2e::vanilla::scenarios",
        "the scenarios run on the public kernel; all other guest tests run on vanilla too",
    ),
    (
        "host::editors_get_messages_about_each_crate_from_the_check_they_call",
        "the check for editors compiles every crate in a folder of its own, minutes where nothing is there",
    ),
    (
        "packages::licences_and_origin_of_crates_are_those_that_are_allowed",
        "cargo-deny takes minutes to build, and what it looks at changes with Cargo.lock alone",
    ),
    (
        "host::instructions_of_the_device_are_as_many_in_each_run",
        "its benchmarks are built as a release, which takes minutes",
    ),
];

/// Tests that a run leaves away: how many of each entry of the table.
#[derive(Debug, Default)]
pub struct LeftAway([usize; NIGHTLY.len()]);

impl LeftAway {
    /// Takes from `names` what is for the night, and counts it.
    pub fn take_from(&mut self, names: &mut Vec<String>) {
        names.retain(|name| match entry(name) {
            None => true,
            Some(entry) => {
                self.0[entry] += 1;
                false
            }
        });
    }

    /// A line for each reason.
    pub fn text(&self) -> String {
        self.entries()
            .filter(|(_, count)| *count > 0)
            .map(|((_, why), count)| {
                format!("{count} tests are left to `just test --nightly`: {why}\n")
            })
            .collect()
    }

    /// Entries of the table that speak of tests that are not there, after a run of all tests.
    pub fn unused(&self) -> Vec<&'static str> {
        self.entries()
            .filter(|(_, count)| *count == 0)
            .map(|((start, _), _)| *start)
            .collect()
    }

    fn entries(&self) -> impl Iterator<Item = (&'static (&'static str, &'static str), usize)> {
        NIGHTLY.iter().zip(self.0)
    }
}

/// The entry of the table that a test falls under.
fn entry(name: &str) -> Option<usize> {
    NIGHTLY.iter().position(|(start, _)| {
        name.strip_prefix(start)
            .is_some_and(|rest| rest.is_empty() || rest.starts_with("::"))
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_left_away_is_counted_with_its_reason() {
        let (start, why) = NIGHTLY[0];
        let mut left = LeftAway::default();
        let of = |rest: &str| format!("{start}{rest}");
        let stays = [of("_of_others::a"), "unit::a".to_owned()];
        let mut names = vec![of("::a"), of("::b::c")];
        names.extend(stays.clone());
        left.take_from(&mut names);
        assert_eq!(names, stays);
        assert!(left.text().starts_with("2 tests are left"));
        assert!(left.text().trim_end().ends_with(why));
        assert_eq!(left.text().lines().count(), 1);
        assert_eq!(left.unused().len(), NIGHTLY.len() - 1);
    }

    #[test]
    fn table_that_names_tests_that_are_gone_shows() {
        let mut left = LeftAway::default();
        left.take_from(&mut vec!["unit::a".to_owned()]);
        assert_eq!(left.text(), "");
        let starts: Vec<&str> = NIGHTLY.iter().map(|(start, _)| *start).collect();
        assert_eq!(left.unused(), starts);
    }
}
