// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests that a kernel is known to fail, and the patch of the series that mends
//! each of them.
//!
//! Such a test runs all the same, and must fail as it is said here: one that
//! passes is a line too many in the table. Its result is a skip that says so.

use std::path::PathBuf;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

use super::super::report::Verdict;
use super::super::run::Run;
use super::Session;
use crate::build::KernelChoice;
use crate::context::Context;
use crate::vm::{VmSpec, breaches};

/// What is to be seen of the fault.
#[derive(Clone, Copy, Debug)]
pub enum Shows {
    /// The test fails, and the kernel goes on as before.
    Failure,
    /// The test fails, and what it leaves behind would mislead the tests that come after it, so it has
    /// a machine of its own.
    Damage,
    /// The kernel reports it, and a line of the report has this text. Nothing that comes after it
    /// counts, so the test has a machine of its own.
    Report(&'static str),
}

/// A test that a kernel fails.
#[derive(Debug)]
pub struct Failure {
    kernel: KernelChoice,
    test: &'static str,
    /// The patch that mends it, by a part of its name in images/kernel/patches.
    patch: &'static str,
    shows: Shows,
}

/// Every known failure.
const FAILURES: &[Failure] = &[
    vanilla(
        "huge::huge_pages_come_back_whole_by_address",
        SELECT,
        Shows::Failure,
    ),
    vanilla(
        "huge::huge_zero_page_becomes_a_zeroed_block",
        SELECT,
        Shows::Failure,
    ),
    vanilla(
        "huge::second_migration_finds_the_blocks_there",
        SELECT,
        Shows::Failure,
    ),
    vanilla(
        "huge::block_of_one_device_moves_to_the_other_and_is_not_taken_for_system_memory",
        SELECT,
        Shows::Failure,
    ),
    vanilla(
        "huge::aligned_mremap_keeps_the_block_in_one_piece",
        SELECT,
        Shows::Failure,
    ),
    vanilla(
        "huge::block_that_is_mapped_by_small_entries_comes_back",
        SPLIT,
        BAD_SPLIT,
    ),
    vanilla(
        "huge::block_of_which_half_was_unmapped_comes_back",
        SPLIT,
        BAD_SPLIT,
    ),
    vanilla(
        "huge::block_of_which_half_moved_away_by_mremap_comes_back",
        SPLIT,
        BAD_SPLIT,
    ),
    vanilla(
        "huge::block_of_which_half_was_dropped_comes_back",
        SPLIT,
        BAD_SPLIT,
    ),
    vanilla(
        "huge::block_that_is_half_unmapped_survives_the_shrinkers",
        SPLIT,
        BAD_SPLIT,
    ),
    vanilla(
        "huge::writes_of_parent_and_child_copy_out_of_the_block",
        SPLIT,
        BAD_SPLIT,
    ),
    vanilla(
        "huge::long_term_pin_of_one_page_moves_its_whole_block_out",
        EVICT,
        BAD_EVICTION,
    ),
    vanilla(
        "huge::long_term_pin_of_a_whole_block_moves_it_out",
        EVICT,
        BAD_EVICTION,
    ),
    vanilla(
        "neighbours::mlock_of_device_pages_counts_them_as_of_system_pages",
        FLAGS,
        Shows::Damage,
    ),
    vanilla(
        "pressure::group_whose_limit_falls_below_its_device_pages_survives",
        RECLAIM,
        Shows::Failure,
    ),
    vanilla(
        "pressure::group_that_grows_beyond_its_limit_survives",
        RECLAIM,
        Shows::Failure,
    ),
    vanilla(
        "pressure::group_of_huge_pages_survives",
        RECLAIM,
        Shows::Failure,
    ),
    vanilla(
        "memory_failure::failed_page_raises_sigbus_at_its_address_and_its_neighbours_stay",
        POISON,
        BAD_POISON,
    ),
    vanilla(
        "memory_failure::failed_page_of_a_block_costs_that_page_alone",
        POISON,
        BAD_POISON,
    ),
    vanilla(
        "memory_failure::failed_page_that_two_processes_share_raises_sigbus_in_both",
        POISON,
        BAD_POISON,
    ),
    vanilla(
        "memory_failure::failed_page_never_serves_again_until_the_module_is_loaded_anew",
        POISON,
        BAD_POISON,
    ),
    vanilla(
        "fixes::huge_page_that_a_child_shares_takes_small_pages_for_both",
        "mm-migrate_device-split-the-migration-entries-of-all",
        Shows::Report("kernel BUG at mm/migrate.c"),
    ),
    vanilla(
        "fixes::pinned_folio_of_16_kib_keeps_no_other_page",
        "mm-migrate_device-let-one-unsplittable-folio",
        Shows::Failure,
    ),
    vanilla(
        "fixes::memory_that_is_unlocked_in_the_device_counts_as_locked_no_more",
        "mm-memremap-clear-stale-folio-flags",
        Shows::Failure,
    ),
    vanilla(
        "fixes::what_is_stored_by_small_entries_survives_their_collapse",
        "mm-khugepaged-do-not-lose-the-dirty-bit",
        Shows::Failure,
    ),
    vanilla(
        "pressure::group_that_is_told_to_shrink_swaps_its_device_pages_out",
        RECLAIM,
        Shows::Failure,
    ),
    vanilla(
        "accounts::smaps_counts_the_small_pages_in_the_device",
        SMAPS,
        Shows::Failure,
    ),
    vanilla(
        "accounts::smaps_counts_blocks_in_the_device_whole_and_cut",
        SMAPS,
        Shows::Failure,
    ),
    vanilla(
        "accounts::vmstat_counts_the_pages_that_migrations_move",
        VMSTAT,
        Shows::Failure,
    ),
    vanilla(
        "accounts::vmstat_counts_a_block_as_its_pages",
        VMSTAT,
        Shows::Failure,
    ),
    vanilla(
        "accounts::vmstat_counts_a_move_between_devices_both_ways",
        VMSTAT,
        Shows::Failure,
    ),
    vanilla(
        "accounts::vmstat_counts_pages_that_a_pin_or_an_eviction_brings_home",
        VMSTAT,
        Shows::Failure,
    ),
    vanilla(
        "accounts::numa_maps_counts_device_pages_under_their_node",
        NUMA_MAPS,
        Shows::Failure,
    ),
    vanilla(
        "accounts::move_pages_tells_the_node_of_device_pages",
        MOVE_PAGES,
        Shows::Failure,
    ),
];

const fn vanilla(test: &'static str, patch: &'static str, shows: Shows) -> Failure {
    Failure {
        kernel: KernelChoice::Vanilla,
        test,
        patch,
        shows,
    }
}

const FLAGS: &str = "mm-memremap-clear-stale-folio-flags";
const SELECT: &str = "mm-migrate_device-select-huge-PMDs";
const SPLIT: &str = "mm-huge_memory-split-coherent-device-folios";
const BAD_SPLIT: Shows = Shows::Report("WARNING: mm/huge_memory.c");
const EVICT: &str = "mm-migrate_device-let-migrate_device_coherent_folio";
const RECLAIM: &str = "mm-vmscan-let-drivers-bring";
const POISON: &str = "mm-memory-failure-handle-errors";
/// The mapping of an anonymous page is taken for that of a file. What the kernel calls the fault
/// depends on where that page lies; where it was met does not.
const BAD_POISON: Shows = Shows::Report("RIP: 0010:dax_lock_folio");
const SMAPS: &str = "fs-proc-show-the-bytes-in-device-memory-in-smaps";
const VMSTAT: &str = "mm-vmstat-count-pages-that-migrate";
const NUMA_MAPS: &str = "fs-proc-count-device-memory-in-numa_maps";
const MOVE_PAGES: &str = "mm-migrate-let-move_pages-report";
const BAD_EVICTION: Shows = Shows::Report("WARNING: mm/migrate_device.c");

/// How long the kernel may take to report a fault, boot not included: the longest such test takes a
/// tenth of it.
const REPORT_LIMIT: Duration = Duration::from_secs(60);

/// The failure that a test is known for on a kernel.
pub fn failure(kernel: &KernelChoice, test: &str) -> Option<&'static Failure> {
    FAILURES
        .iter()
        .find(|failure| failure.kernel == *kernel && failure.test == test)
}

/// Whether a test has a machine of its own on a kernel.
pub fn is_alone(kernel: &KernelChoice, test: &str) -> bool {
    failure(kernel, test).is_some_and(|failure| !matches!(failure.shows, Shows::Failure))
}

/// Refuses a table that speaks of tests or patches that are not there.
pub fn check(tests: &[String], patches: &[String]) -> Result<()> {
    for Failure { test, patch, .. } in FAILURES {
        if !tests.iter().any(|name| name == test) {
            bail!("the table of known failures names '{test}', which is no test");
        }
        if !patches.iter().any(|name| name.contains(patch)) {
            bail!("the table of known failures names '{patch}', which is no patch");
        }
    }
    Ok(())
}

impl Failure {
    /// The verdict on a test that the guest finished with `verdict`, saying `notes`.
    pub fn judge(&self, verdict: Verdict, notes: &str) -> (Verdict, String) {
        match verdict {
            Verdict::Failed => (Verdict::Skipped, self.describe(notes)),
            Verdict::Passed | Verdict::Skipped => {
                let why = format!(
                    "it is declared a known failure of {}, but does not fail\n{notes}",
                    self.kernel
                );
                (Verdict::Failed, why)
            }
        }
    }

    fn describe(&self, seen: &str) -> String {
        format!(
            "known failure of {}, mended by patch {}\n{seen}",
            self.kernel, self.patch
        )
    }

    /// Runs the test in a machine of its own, where it must show what it is known for.
    pub fn run_alone(
        &self,
        run: &mut Run,
        ctx: &Context,
        spec: VmSpec,
        logs: PathBuf,
        prefix: &str,
    ) {
        let started = Instant::now();
        let name = format!("{prefix}::{}", self.test);
        // What is known to crash needs no dump.
        let spec = VmSpec {
            dump: false,
            ..spec
        };
        let mut session = Session::new(ctx, spec, logs);
        let (verdict, detail) = match self.provoke(&mut session) {
            Ok(seen) => (Verdict::Skipped, self.describe(&seen)),
            Err(error) => (Verdict::Failed, format!("{error:#}")),
        };
        run.record(&name, verdict, started.elapsed(), &detail);
        run.keep_evidence(&[name], || session.evidence());
    }

    /// What is seen of the failure: the test's words, or the kernel's report.
    fn provoke(&self, session: &mut Session<'_>) -> Result<String> {
        let vm = session.vm()?;
        let text = match self.shows {
            Shows::Failure => bail!("'{}' needs no machine of its own", self.test),
            Shows::Damage => {
                let line = format!("cdm-guest-tests --exact {} || true", self.test);
                let said = vm.exec(&line)?.text()?;
                if !said.lines().any(|line| line.starts_with("not ok ")) {
                    bail!("it is declared a known failure, but does not fail:\n{said}");
                }
                return Ok(said);
            }
            Shows::Report(text) => text,
        };
        // In the background: the program may never come back from the kernel.
        let output = "/tmp/cdm-guest-tests.out";
        let line = format!("cdm-guest-tests --exact {} > {output} 2>&1 &", self.test);
        vm.exec(&line)?;
        let deadline = Instant::now() + REPORT_LIMIT;
        loop {
            let log = vm.kernel_log()?;
            let mut lines = log.lines();
            if let Some(line) = lines.find(|line| line.contains(text))
                && !breaches(&log).is_empty()
            {
                return Ok(line.trim_end().to_owned());
            }
            if Instant::now() >= deadline {
                let said = vm.exec(&format!("cat {output}"))?.text()?;
                bail!(
                    "the kernel did not report '{text}' within {} s; the test says:\n{said}\nthe kernel:\n{log}",
                    REPORT_LIMIT.as_secs()
                );
            }
            thread::sleep(Duration::from_millis(20));
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    const FAILURE: Failure = Failure {
        kernel: KernelChoice::Vanilla,
        test: "huge::x",
        patch: "select-huge-PMDs",
        shows: Shows::Failure,
    };

    #[test]
    fn failure_that_is_known_is_a_skip_that_names_the_patch() {
        let (verdict, detail) = FAILURE.judge(Verdict::Failed, "no page moved");
        assert_eq!(verdict, Verdict::Skipped);
        assert!(
            detail.contains("select-huge-PMDs") && detail.contains("no page moved"),
            "{detail}"
        );
    }

    #[test]
    fn known_failure_that_passes_or_is_skipped_is_a_failure() {
        for verdict in [Verdict::Passed, Verdict::Skipped] {
            assert_eq!(FAILURE.judge(verdict, "").0, Verdict::Failed);
        }
    }

    #[test]
    fn the_series_leaves_no_test_failing() {
        assert!(FAILURES.iter().all(|f| f.kernel == KernelChoice::Vanilla));
    }
}
