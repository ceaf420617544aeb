// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's configuration: fragments on top of allnoconfig, and the check
//! that kconfig left every requested option in place. An option whose
//! dependency is missing disappears without a word; here it is an error.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail};

use super::super::BuildKind;
use super::source::Source;

/// Only for a source that has the option in it.
const DEVICE_PUBLIC: &str = "device-public.config";
/// Only for the debug build.
const DEBUG: &str = "debug.config";

/// The fragments that make one configuration.
#[derive(Clone, Debug)]
pub struct Fragments {
    text: String,
    requests: BTreeMap<String, Request>,
}

#[derive(Clone, Debug, PartialEq, Eq)]
struct Request {
    value: String,
    fragment: String,
}

/// An option that a fragment asks for and the final configuration does not have.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Lost {
    /// Name, with `CONFIG_`.
    pub option: String,
    /// What was asked for.
    pub wanted: String,
    /// What it is in the end.
    pub found: String,
    /// The file that asks for it.
    pub fragment: String,
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let Self {
            option,
            wanted,
            found,
            fragment,
        } = self;
        write!(f, "{option}={wanted} ({fragment}) is {found}")
    }
}

impl Fragments {
    /// Reads the fragments in `dir` for a source and a build: those with a
    /// number in front, in order, then the ones for this case.
    pub fn read(dir: &Path, source: &Source, kind: BuildKind) -> Result<Self> {
        let list = || -> std::io::Result<Vec<String>> {
            fs::read_dir(dir)?
                .map(|entry| Ok(entry?.file_name().to_string_lossy().into_owned()))
                .collect()
        };
        let mut names = list().with_context(|| format!("cannot list {}", dir.display()))?;
        names.retain(|name| {
            name.ends_with(".config") && name.starts_with(|c: char| c.is_ascii_digit())
        });
        names.sort();
        if source.has_device_public()? {
            names.push(DEVICE_PUBLIC.to_owned());
        }
        if kind == BuildKind::Debug {
            names.push(DEBUG.to_owned());
        }
        let mut fragments = Self {
            text: String::new(),
            requests: BTreeMap::new(),
        };
        for name in names {
            let path = dir.join(&name);
            let text = fs::read_to_string(&path)
                .with_context(|| format!("cannot read {}", path.display()))?;
            fragments.add(&name, &text)?;
        }
        Ok(fragments)
    }

    fn add(&mut self, name: &str, text: &str) -> Result<()> {
        for (index, line) in text.lines().enumerate() {
            let Some((option, value)) = setting(line) else {
                if !line.trim().is_empty() && !line.starts_with('#') {
                    bail!("{name}, line {}: '{line}' is no kernel option", index + 1);
                }
                continue;
            };
            let request = Request {
                value: value.to_owned(),
                fragment: name.to_owned(),
            };
            // A later fragment may change its mind about an earlier one.
            self.requests.insert(option.to_owned(), request);
        }
        self.text.push_str(text);
        self.text.push('\n');
        Ok(())
    }

    /// All of them, one after the other: what kconfig is given.
    pub fn text(&self) -> &str {
        &self.text
    }

    /// What of the fragments is not in the final configuration.
    pub fn lost_in(&self, config: &str) -> Vec<Lost> {
        let final_values: BTreeMap<&str, &str> = config.lines().filter_map(setting).collect();
        let mut lost = Vec::new();
        for (option, request) in &self.requests {
            let found = final_values
                .get(option.as_str())
                .copied()
                .unwrap_or(NOT_SET);
            if found != request.value {
                lost.push(Lost {
                    option: option.clone(),
                    wanted: request.value.clone(),
                    found: found.to_owned(),
                    fragment: request.fragment.clone(),
                });
            }
        }
        lost
    }
}

/// The value of an option that is off, or that does not exist.
const NOT_SET: &str = "n";

/// Reads one line of a configuration: `CONFIG_X=y`, or `# CONFIG_X is not set`.
fn setting(line: &str) -> Option<(&str, &str)> {
    let line = line.trim();
    if let Some(rest) = line.strip_prefix("# ") {
        let option = rest.strip_suffix(" is not set")?;
        return option.starts_with("CONFIG_").then_some((option, NOT_SET));
    }
    let (option, value) = line.split_once('=')?;
    option.starts_with("CONFIG_").then_some((option, value))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn fragments(list: &[(&str, &str)]) -> Fragments {
        let mut all = Fragments {
            text: String::new(),
            requests: BTreeMap::new(),
        };
        for (name, text) in list {
            all.add(name, text).expect("well formed");
        }
        all
    }

    #[test]
    fn an_option_that_kconfig_dropped_is_named_with_the_fragment_that_wants_it() {
        let wanted = fragments(&[("10-base.config", "CONFIG_SMP=y\nCONFIG_NR_CPUS=16\n")]);
        let lost = wanted.lost_in("CONFIG_NR_CPUS=16\n# CONFIG_SMP is not set\n");
        assert_eq!(lost.len(), 1);
        assert_eq!(lost[0].to_string(), "CONFIG_SMP=y (10-base.config) is n");
    }

    #[test]
    fn an_option_that_is_absent_counts_as_off() {
        let wanted = fragments(&[("a", "CONFIG_A=m\n# CONFIG_B is not set\n")]);
        let lost = wanted.lost_in("");
        assert_eq!(
            lost.iter().map(|l| l.option.as_str()).collect::<Vec<_>>(),
            ["CONFIG_A"]
        );
    }

    #[test]
    fn an_option_switched_off_on_purpose_must_be_off() {
        let wanted = fragments(&[("a", "# CONFIG_B is not set\n")]);
        assert_eq!(wanted.lost_in("CONFIG_B=y\n").len(), 1);
    }

    #[test]
    fn a_later_fragment_overrides_an_earlier_one() {
        let wanted = fragments(&[("a", "CONFIG_A=y\n"), ("b", "# CONFIG_A is not set\n")]);
        assert_eq!(wanted.lost_in(""), []);
    }

    #[test]
    fn a_line_that_is_no_option_is_refused_with_its_place() {
        let mut all = Fragments {
            text: String::new(),
            requests: BTreeMap::new(),
        };
        let error = all
            .add("a.config", "# why\nCONFG_A=y\n")
            .expect_err("misspelt");
        assert_eq!(
            error.to_string(),
            "a.config, line 2: 'CONFG_A=y' is no kernel option"
        );
    }
}
