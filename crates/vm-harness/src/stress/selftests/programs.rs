// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which of the kernel's mm selftests run, and how often their memory must have moved.
//!
//! Not here: tests of hugetlb alone and of address space layout (none of it can be in a device),
//! of soft-dirty bits and of protection keys (the guest has none), those that load kernel
//! modules of their own, and those that have the kernel split or collapse huge pages by its debugging
//! files, which pass over device memory.

use anyhow::{Result, ensure};

/// A program, as run_vmtests.sh of the kernel runs it.
#[derive(Debug)]
pub struct Program {
    /// Its name.
    pub name: &'static str,
    /// Its arguments.
    pub arguments: &'static str,
    /// How often it runs with a device. Most are over within a second, which is no time to meet
    /// with resident pages everywhere; each time the moves have another seed.
    pub times: u64,
    /// Pages that must have moved into a device under it, all times together.
    pub least_pages: u64,
}

impl Program {
    /// What it is called in results.
    pub fn title(&self) -> String {
        format!("{} {}", self.name, self.arguments)
            .trim_end()
            .to_owned()
    }
}

const fn program(
    name: &'static str,
    arguments: &'static str,
    times: u64,
    least_pages: u64,
) -> Program {
    Program {
        name,
        arguments,
        times,
        least_pages,
    }
}

/// All of them, short ones first.
pub const PROGRAMS: &[Program] = &[
    program("mremap_dontunmap", "", 5, 10),
    program("mlock2-tests", "", 5, 10),
    program("madv_populate", "", 5, 10),
    program("mkdirty", "", 5, 10),
    program("process_madv", "", 3, 10),
    program("mrelease_test", "", 5, 10),
    program("map_populate", "", 5, 10),
    program("droppable", "", 5, 10),
    program("gup_test", "-ct -F 0x1 0 19 0x1000", 3, 10),
    program("guard-regions", "", 2, 100),
    program("merge", "", 3, 10),
    program("rmap", "", 5, 10),
    program("gup_longterm", "", 3, 10),
    program("ksm_tests", "-M -p 10", 3, 10),
    program("ksm_tests", "-U", 3, 10),
    program("ksm_tests", "-Z -p 10 -z 0", 3, 10),
    program("ksm_tests", "-Z -p 10 -z 1", 3, 10),
    program("ksm_tests", "-N -m 0", 2, 10),
    program("prctl_thp_disable", "", 1, 10),
    program("cow", "", 1, 1000),
    program("mremap_test", "", 1, 1000),
    program("uffd-stress", "anon 20 16", 1, 100),
    program("uffd-stress", "shmem 20 16", 1, 100),
    program("uffd-stress", "shmem-private 20 16", 1, 100),
    program("migration", "", 1, 100),
    program("transhuge-stress", "-d 5", 1, 1000),
    program("ksm_functional_tests", "", 1, 100),
    program("uffd-unit-tests", "", 1, 1000),
];

/// The programs of these names, or all if there is no name.
pub fn chosen(wanted: &[String]) -> Result<Vec<&'static Program>> {
    for name in wanted {
        ensure!(
            PROGRAMS.iter().any(|program| program.name == name),
            "there is no program '{name}'; there are {}",
            names().join(", ")
        );
    }
    let is_wanted =
        |program: &&Program| wanted.is_empty() || wanted.iter().any(|name| program.name == name);
    Ok(PROGRAMS.iter().filter(is_wanted).collect())
}

/// Names of the programs, each once.
pub fn names() -> Vec<&'static str> {
    let mut names: Vec<&str> = PROGRAMS.iter().map(|program| program.name).collect();
    names.sort_unstable();
    names.dedup();
    names
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_is_chosen_with_all_its_arguments_and_a_wrong_name_is_refused() {
        let named = |names: &[&str]| {
            let names: Vec<String> = names.iter().map(|name| (*name).to_owned()).collect();
            chosen(&names).map(|programs| programs.len())
        };
        assert_eq!(named(&[]).expect("all"), PROGRAMS.len());
        assert_eq!(named(&["cow", "uffd-stress"]).expect("some"), 4);
        let error = named(&["cow", "cw"]).expect_err("none").to_string();
        assert!(
            error.contains("'cw'") && error.contains("migration"),
            "{error}"
        );
    }

    #[test]
    fn each_program_has_a_title_of_its_own_and_must_meet_pages() {
        let mut titles: Vec<String> = PROGRAMS.iter().map(Program::title).collect();
        titles.sort();
        titles.dedup();
        assert_eq!(titles.len(), PROGRAMS.len());
        for program in PROGRAMS {
            assert!(program.times > 0 && program.least_pages > 0, "{program:?}");
        }
    }
}
