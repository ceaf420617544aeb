// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Names of the suite's tests: read from its own list, chosen by variant, and given
//! back to it as arguments.

use anyhow::{Context as _, Result, ensure};

/// A test, in one variant of its fixture.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Test {
    /// Variant of the fixture, such as `hmm_device_private`.
    pub variant: String,
    /// The suite's name for it: fixture, variant and test.
    pub name: String,
}

/// Columns of the list (kselftest_harness.h): fixture, variant, test.
const VARIANT_AT: usize = 21;
const TEST_AT: usize = 47;

/// Reads what `hmm-tests -l` prints: for each fixture one table, whose columns are independent
/// lists of its variants and its tests.
pub fn parse(listed: &str) -> Result<Vec<Test>> {
    let mut tests = Vec::new();
    let mut tables: Vec<Vec<&str>> = Vec::new();
    for line in listed.lines() {
        if line.starts_with("# FIXTURE") || line.starts_with("---") {
            tables.push(Vec::new());
        } else if let Some(table) = tables.last_mut() {
            table.push(line);
        }
    }
    for table in &tables {
        let column = |from: usize, to: usize| {
            let cut = move |line: &&str| {
                let to = to.min(line.len());
                line.get(from.min(to)..to)
                    .unwrap_or_default()
                    .trim()
                    .to_owned()
            };
            table.iter().map(cut).filter(|text| !text.is_empty())
        };
        let fixture = column(0, VARIANT_AT)
            .next()
            .context("a fixture without a name")?;
        for variant in column(VARIANT_AT, TEST_AT) {
            tests.extend(column(TEST_AT, usize::MAX).map(|test| Test {
                name: format!("{fixture}.{variant}.{test}"),
                variant: variant.clone(),
            }));
        }
    }
    ensure!(
        !tests.is_empty(),
        "the suite lists no test; it says:\n{listed}"
    );
    Ok(tests)
}

/// Reads the suite's source, which tells the names where nothing can be run.
pub fn parse_source(source: &str) -> Result<Vec<Test>> {
    let arguments = |macros: &[&str]| -> Vec<(String, String)> {
        let found = source.lines().filter_map(|line| {
            let rest = macros.iter().find_map(|name| line.strip_prefix(name))?;
            let (inside, _) = rest.strip_prefix('(')?.split_once(')')?;
            let mut words = inside.split(',').map(|word| word.trim().to_owned());
            Some((words.next()?, words.next()?))
        });
        found.collect()
    };
    let variants = arguments(&["FIXTURE_VARIANT_ADD"]);
    let mut tests = Vec::new();
    for (fixture, test) in arguments(&["TEST_F_TIMEOUT", "TEST_F"]) {
        let of_fixture = variants.iter().filter(|(other, _)| *other == fixture);
        tests.extend(of_fixture.map(|(_, variant)| Test {
            name: format!("{fixture}.{variant}.{test}"),
            variant: variant.clone(),
        }));
    }
    ensure!(!tests.is_empty(), "the suite's source has no test");
    Ok(tests)
}

/// Names of the tests whose variant ends with `suffix`, in the order in which the suite runs them.
pub fn of_variant(tests: &[Test], suffix: &str) -> Vec<String> {
    tests
        .iter()
        .filter(|test| test.variant.ends_with(suffix))
        .map(|test| test.name.clone())
        .collect()
}

/// Arguments that choose all variants of these tests.
pub fn variant_arguments(names: &[String]) -> String {
    let mut variants: Vec<&str> = Vec::new();
    for variant in names.iter().filter_map(|name| name.split('.').nth(1)) {
        if !variants.contains(&variant) {
            variants.push(variant);
        }
    }
    let options: Vec<String> = variants.iter().map(|name| format!("-v {name}")).collect();
    options.join(" ")
}

/// Arguments that choose these tests.
pub fn test_arguments(names: &[String]) -> String {
    let options: Vec<String> = names.iter().map(|name| format!("-r {name}")).collect();
    options.join(" ")
}

#[cfg(test)]
mod tests {
    use super::*;

    const LIST: &str = "\
# FIXTURE            VARIANT                   TEST
hmm                  hmm_device_private        open_close
                     hmm_device_coherent       anon_read
                                               migrate
--------------------------------------------------------------------------------
hmm2                 hmm2_device_private       snapshot
                     hmm2_device_coherent      
";

    #[test]
    fn each_test_comes_in_each_variant_of_its_fixture() {
        let tests = parse(LIST).expect("well formed");
        assert_eq!(tests.len(), 8);
        let names = of_variant(&tests, "_coherent");
        let expected = [
            "hmm.hmm_device_coherent.open_close",
            "hmm.hmm_device_coherent.anon_read",
            "hmm.hmm_device_coherent.migrate",
            "hmm2.hmm2_device_coherent.snapshot",
        ];
        assert_eq!(names, expected);
        assert_eq!(
            variant_arguments(&names),
            "-v hmm_device_coherent -v hmm2_device_coherent"
        );
        assert_eq!(
            test_arguments(&names[3..]),
            "-r hmm2.hmm2_device_coherent.snapshot"
        );
    }

    #[test]
    fn source_tells_the_same_names_as_the_list() {
        let source = "FIXTURE(hmm)\n{\n};\n\
                      FIXTURE_VARIANT_ADD(hmm, hmm_device_private)\n{\n};\n\
                      FIXTURE_VARIANT_ADD(hmm, hmm_device_coherent)\n\
                      FIXTURE_VARIANT_ADD(hmm2, hmm2_device_private)\n\
                      FIXTURE_VARIANT_ADD(hmm2, hmm2_device_coherent)\n\
                      TEST_F(hmm, open_close)\n{\n}\n/* TEST_F(hmm, none) */\n\
                      TEST_F_TIMEOUT(hmm, anon_read, 120)\nTEST_F(hmm2, snapshot)\n\
                      TEST_F(hmm, migrate)\n";
        let sorted = |tests: Vec<Test>| {
            let mut names: Vec<String> = tests.into_iter().map(|test| test.name).collect();
            names.sort();
            names
        };
        let of_source = sorted(parse_source(source).expect("tests"));
        assert_eq!(of_source, sorted(parse(LIST).expect("well formed")));
        assert!(parse_source("int main(void) {}").is_err());
    }

    #[test]
    fn list_without_tests_is_an_error_that_shows_it() {
        let error = parse("not found\n").expect_err("no list");
        assert!(error.to_string().contains("not found"), "{error}");
    }
}
