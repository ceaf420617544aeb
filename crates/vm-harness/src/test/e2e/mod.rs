// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Tests on real machines: stock QEMU, a real guest kernel, the real driver and
//! a backend process for each device.
//!
//! A [`Suite`] is one machine with the tests that share it. Its groups run inside
//! the guest (crates/guest-tools, `cdm-guest-tests`) and report KTAP; its checks
//! run here and drive the guest from outside. After each group and each check the
//! guest's kernel log is judged, which is a result of its own.

pub mod cdmctl;
mod debian;
mod engines;
mod examples;
pub mod faults;
mod forget;
mod group;
mod held;
mod identity;
mod known;
mod lanes;
mod link;
mod litmus;
mod machine;
mod memory;
mod parameters;
mod patience;
mod persistence;
pub mod plan;
mod plug;
pub mod poison;
mod proxy;
mod scenarios;
mod session;
mod silent;
pub mod stuck;
mod trace;

use std::fs;
use std::process::Command;

use anyhow::{Context as _, Result, bail};

use super::Stage;
use super::run::Run;
use super::select::Selection;
use crate::build::{self, BuildKind, KernelChoice};
use crate::context::Context;
use crate::schema;
use crate::vm::FileCopy;

pub use session::Session;

/// The stage `e2e`.
#[derive(Debug, Default)]
pub struct EndToEnd {
    /// Names of the tests inside the guest, as `group::name`.
    guest_tests: Vec<String>,
    /// Names of the stress scenarios, as `family::name`.
    scenarios: Vec<String>,
}

/// A test that drives a machine from outside.
type Check = (&'static str, fn(&mut Session) -> Result<()>);

/// Groups of tests inside the guest.
#[derive(Clone, Copy)]
enum Groups {
    /// None.
    None,
    /// All but those for a memory type of their own and those that take too long.
    General,
    /// Those.
    Only(&'static [&'static str]),
}

impl Groups {
    fn has(self, group: &str) -> bool {
        match self {
            Self::None => false,
            Self::General => plan::is_general(group),
            Self::Only(groups) => groups.contains(&group),
        }
    }
}

/// One machine and the tests on it.
struct Suite {
    /// Begins the names of its tests: `e2e::public`, `e2e::public::identity`.
    prefix: &'static str,
    kernel: KernelChoice,
    /// Changes the default machine.
    shape: fn(&mut crate::vm::VmSpec),
    /// Which tests inside the guest run on it.
    groups: Groups,
    checks: &'static [&'static [Check]],
}

/// A device that fails on request; each check leaves it as it was.
const FAULTS: &[Check] = &[
    (
        "faults::refused_commands_say_why",
        faults::refused_commands_say_why,
    ),
    (
        "faults::nth_command_is_refused_and_no_other",
        faults::nth_command_is_refused_and_no_other,
    ),
    (
        "faults::short_completions_are_errors",
        faults::short_completions_are_errors,
    ),
    (
        "faults::long_completions_do_no_harm",
        faults::long_completions_do_no_harm,
    ),
    (
        "faults::corrupt_completions_do_no_harm",
        faults::corrupt_completions_do_no_harm,
    ),
    (
        "faults::late_commands_succeed",
        faults::late_commands_succeed,
    ),
    (
        "faults::reordered_commands_succeed",
        faults::reordered_commands_succeed,
    ),
    (
        "faults::hanging_commands_can_be_interrupted_and_reset",
        faults::hanging_commands_can_be_interrupted_and_reset,
    ),
    (
        "faults::reset_ends_hanging_commands_with_an_error",
        faults::reset_ends_hanging_commands_with_an_error,
    ),
    (
        "faults::lost_commands_can_be_interrupted",
        faults::lost_commands_can_be_interrupted,
    ),
    (
        "faults::doubled_commands_cost_no_more_than_the_queue",
        faults::doubled_commands_cost_no_more_than_the_queue,
    ),
    (
        "faults::refused_mapping_leaves_a_device_that_can_be_bound",
        faults::refused_mapping_leaves_a_device_that_can_be_bound,
    ),
    (
        "stuck::hung_queue_is_reset_at_the_limit_and_memory_survives",
        stuck::hung_queue_is_reset,
    ),
    (
        "stuck::lost_completion_ends_at_the_limit_and_memory_survives",
        stuck::lost_completion_ends_at_the_limit,
    ),
    (
        "stuck::batch_without_answers_ends_at_the_limit_and_the_next_one_works",
        stuck::batch_ends_at_the_limit,
    ),
    (
        "stuck::lost_answer_about_an_address_space_ends_at_the_limit",
        stuck::lost_answer_about_an_address_space_ends_at_the_limit,
    ),
    (
        "stuck::lost_command_of_a_killed_process_keeps_nothing_after_a_reset",
        stuck::lost_command_of_a_killed_process_keeps_nothing,
    ),
    (
        "forget::refused_page_ends_its_command_with_an_error_and_nothing_else",
        forget::refused_page_ends_its_command_alone,
    ),
    (
        "forget::late_invalidation_is_waited_for_before_its_pages_are_used_again",
        forget::late_invalidation_is_waited_for,
    ),
    (
        "forget::late_access_is_waited_for_before_its_page_is_used_again",
        forget::late_access_is_waited_for,
    ),
    (
        "forget::invalidation_that_is_too_late_ends_with_one_reset",
        forget::invalidation_that_is_too_late_is_a_reset,
    ),
    (
        "forget::lost_answer_to_an_invalidation_ends_with_one_reset",
        forget::lost_answer_to_an_invalidation_is_a_reset,
    ),
    (
        "forget::lost_answer_to_an_unbind_ends_with_one_reset",
        forget::lost_answer_to_an_unbind_is_a_reset,
    ),
    (
        "forget::pages_of_a_device_that_hangs_at_an_invalidation_are_never_used_again",
        forget::pages_of_a_device_that_hangs_at_an_invalidation,
    ),
    (
        "forget::pages_of_a_device_that_hangs_at_an_unbind_are_never_used_again",
        forget::pages_of_a_device_that_hangs_at_an_unbind,
    ),
    (
        "stuck::device_without_an_answer_to_reset_is_given_up_and_nobody_hangs",
        stuck::hung_control_queue_is_the_end_of_the_device,
    ),
];

/// A device that copies what moves, and fails at that; the last ones end it.
const ENGINES: &[Check] = &[
    (
        "engines::migrations_are_the_same_when_the_device_copies",
        engines::migrations_are_the_same,
    ),
    (
        "engines::copies_that_the_device_spoils_are_made_by_the_cpu",
        engines::faulty_copies_are_made_by_the_cpu,
    ),
    (
        "engines::copies_that_the_device_loses_are_made_by_the_cpu",
        engines::lost_copies_are_made_by_the_cpu,
    ),
    (
        "engines::late_copies_to_the_device_harm_nobody",
        engines::late_copies_to_the_device_harm_nobody,
    ),
    (
        "engines::late_copies_to_the_system_harm_nobody",
        engines::late_copies_to_the_system_harm_nobody,
    ),
];

/// Devices that come and go; each check leaves one like the first.
const PLUG: &[Check] = &[
    (
        "plug::unplug_under_load_brings_memory_home_and_another_device_works",
        plug::under_load,
    ),
    (
        "plug::unplug_waits_for_pages_that_somebody_holds",
        plug::waits_for_held_pages,
    ),
    (
        "plug::unplug_waits_for_a_device_that_does_not_answer",
        plug::waits_for_a_silent_device,
    ),
];

/// A device whose memory fails, whatever the kernel can do about it; in this order, after what the
/// type of memory adds.
const POISON: &[Check] = &[
    (
        "poison::free_page_that_fails_is_never_handed_out",
        poison::free_page_is_never_handed_out,
    ),
    (
        "poison::device_that_does_not_say_what_failed_is_asked_again",
        poison::failed_question_is_asked_again,
    ),
    (
        "poison::next_driver_uses_nothing_that_failed_before_it",
        poison::next_driver_uses_nothing_that_failed,
    ),
    (
        "poison::failed_struct_pages_are_said_and_then_avoided",
        poison::failed_struct_pages_are_said,
    ),
    (
        "poison::pages_that_fail_while_they_move_are_out_of_use_and_the_others_unchanged",
        poison::pages_fail_while_they_move,
    ),
    (
        "poison::errors_beyond_the_buffers_are_all_heard",
        poison::errors_beyond_the_buffers_are_heard,
    ),
];

/// The drivers in `examples/`, in the place of ours.
const EXAMPLES: &[Check] = &[
    (
        "examples::first_driver_moves_a_page_of_the_shell_that_writes_its_address",
        examples::first_page_moves,
    ),
    (
        "examples::minimal_driver_moves_a_process_for_cdmctl",
        examples::minimal_driver_serves_cdmctl,
    ),
    (
        "examples::driver_built_for_version_1_2_moves_a_process_for_cdmctl",
        examples::earlier_driver_serves_cdmctl,
    ),
];

/// What CPUs and device see of each other's accesses.
const LITMUS: &[Check] = &[
    (
        "litmus::device_memory_shows_what_the_memory_model_says",
        litmus::in_device_memory,
    ),
    (
        "litmus::system_memory_shows_what_the_memory_model_says",
        litmus::in_system_memory,
    ),
    (
        "litmus::words_in_both_memories_show_what_the_memory_model_says",
        litmus::in_both_memories,
    ),
    (
        "litmus::report_is_what_its_schema_says",
        litmus::report_follows_its_schema,
    ),
];

/// A device on a link that takes time.
const LINK: &[Check] = &[
    (
        "link::known_commands_come_to_what_the_arithmetic_says",
        link::known_commands_come_to_what_the_arithmetic_says,
    ),
    (
        "link::host_that_stands_still_changes_no_account",
        link::host_that_stands_still_changes_no_account,
    ),
];

/// A guest whose programs are Debian's. The first one wants it quiet, the last one changes its machine.
const DEBIAN: &[Check] = &[
    ("debian::guest_test_passes", debian::guest_test_passes),
    (
        "debian::programs_are_debians_and_work",
        debian::programs_work,
    ),
    (
        "debian::apt_installs_packages_that_are_there",
        debian::apt_installs,
    ),
    (
        "debian::cdmctl_info_is_what_its_schema_says",
        cdmctl::info_matches_schema,
    ),
    (
        "debian::cdmctl_migrates_a_process_and_tells_where_it_is",
        cdmctl::migrates_a_process,
    ),
    (
        "debian::statuses_files_and_shared_folder_are_as_in_the_small_guest",
        debian::host_is_reached,
    ),
    (
        "debian::modules_load_with_its_own_programs",
        debian::modules_load,
    ),
    (
        "debian::writes_last_as_long_as_the_machine",
        debian::writes_last_as_long_as_the_machine,
    ),
];

/// A machine whose devices and driver are traced; the check ends it.
const TRACE: &[Check] = &[(
    "trace::migrations_and_commands_are_on_one_time_line",
    trace::one_time_line,
)];

/// Every machine, the main ones first.
const SUITES: &[Suite] = &[
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::main_machine,
        groups: Groups::General,
        checks: &[
            &[
                (
                    "cdmctl::info_is_what_its_schema_says",
                    cdmctl::info_matches_schema,
                ),
                (
                    "cdmctl::runs_each_operation_on_addresses_of_its_process",
                    cdmctl::runs_each_operation_on_addresses_of_its_process,
                ),
                (
                    "cdmctl::best_memory_type_of_the_kernel_is_public",
                    cdmctl::memory_type_is_public,
                ),
                (
                    "cdmctl::migrates_a_process_and_tells_where_it_is",
                    cdmctl::migrates_a_process,
                ),
                ("cdmctl::runs_each_operation", cdmctl::runs_each_operation),
                ("cdmctl::moves_what_is_hot", cdmctl::moves_what_is_hot),
                (
                    "cdmctl::top_sees_moves_and_who_has_memory_in_the_device",
                    cdmctl::top_sees_moves_and_who_has_memory_in_the_device,
                ),
                (
                    "cdmctl::failed_checks_exit_with_1",
                    cdmctl::failed_checks_exit_with_1,
                ),
                (
                    "cdmctl::what_cannot_run_exits_with_2_and_says_why",
                    cdmctl::errors_exit_with_2,
                ),
            ],
            LITMUS,
            &[
                (
                    "machine::reset_guest_finds_the_device_working",
                    machine::reboot_works,
                ),
                (
                    "machine::broken_streams_of_results_are_failures",
                    machine::broken_streams_fail,
                ),
                (
                    "machine::failure_has_a_folder_with_all_of_its_guest",
                    machine::failure_has_a_folder,
                ),
                (
                    "machine::planted_warning_fails_the_log_check",
                    machine::planted_warning_is_found,
                ),
            ],
        ],
    },
    Suite {
        prefix: "e2e::vanilla",
        kernel: KernelChoice::Vanilla,
        shape: plan::main_machine,
        groups: Groups::General,
        checks: &[
            &[
                (
                    "cdmctl::info_is_what_its_schema_says",
                    cdmctl::info_matches_schema,
                ),
                (
                    "cdmctl::runs_each_operation_on_addresses_of_its_process",
                    cdmctl::runs_each_operation_on_addresses_of_its_process,
                ),
                (
                    "cdmctl::driver_falls_back_to_coherent_and_says_so",
                    cdmctl::falls_back_to_coherent,
                ),
                (
                    "parameters::public_memory_is_refused_with_one_line",
                    parameters::public_is_refused,
                ),
            ],
            LITMUS,
            &[(
                "machine::reset_guest_finds_the_device_working",
                machine::reboot_works,
            )],
        ],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::private_machine,
        groups: Groups::Only(plan::PRIVATE_GROUPS),
        checks: &[],
    },
    Suite {
        prefix: "e2e::vanilla",
        kernel: KernelChoice::Vanilla,
        shape: plan::private_machine,
        groups: Groups::Only(plan::PRIVATE_GROUPS),
        checks: &[],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::exclusive_machine,
        groups: Groups::Only(plan::EXCLUSIVE_GROUPS),
        checks: &[],
    },
    Suite {
        prefix: "e2e::public::exclusive",
        kernel: KernelChoice::Public,
        shape: plan::exclusive_machine,
        groups: Groups::Only(plan::INDIFFERENT_GROUPS),
        checks: &[],
    },
    Suite {
        prefix: "e2e::vanilla",
        kernel: KernelChoice::Vanilla,
        shape: plan::exclusive_machine,
        groups: Groups::Only(plan::EXCLUSIVE_GROUPS),
        checks: &[],
    },
    Suite {
        prefix: "e2e::vanilla::exclusive",
        kernel: KernelChoice::Vanilla,
        shape: plan::exclusive_machine,
        groups: Groups::Only(plan::INDIFFERENT_GROUPS),
        checks: &[],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::large_device,
        groups: Groups::None,
        checks: &[&[
            (
                "memory::backend_grows_with_touched_pages_only",
                memory::grows_with_touched_pages,
            ),
            (
                "parameters::too_little_memory_without_altmap_is_refused",
                parameters::no_room_without_altmap,
            ),
            (
                "parameters::unknown_memory_type_is_refused",
                parameters::unknown_type_is_refused,
            ),
        ]],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::two_impostors,
        groups: Groups::None,
        checks: &[&[
            (
                "identity::wrong_magic_is_refused_with_one_line",
                identity::wrong_magic,
            ),
            (
                "identity::wrong_version_is_refused_with_one_line",
                identity::wrong_version,
            ),
        ]],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::one_device,
        groups: Groups::None,
        checks: &[&[
            (
                "persistence::second_guest_on_the_same_backend_works",
                persistence::second_guest,
            ),
            (
                "held::unload_ends_and_the_holder_keeps_its_bytes",
                held::unload_ends,
            ),
            (
                "held::unbind_ends_and_the_holder_keeps_its_bytes",
                held::unbind_ends,
            ),
            (
                "held::unbind_ends_although_an_ioctl_does_not",
                held::unbind_ends_around_an_ioctl,
            ),
            (
                "silent::unbind_ends_and_memory_comes_home",
                silent::addressable_memory_comes_home,
            ),
        ]],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::one_device_with_huge_pages,
        groups: Groups::None,
        checks: &[scenarios::FRAME, ENGINES],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::three_devices,
        groups: Groups::None,
        checks: &[&[(
            "parameters::list_with_too_few_memory_types_is_refused",
            parameters::short_list_is_refused,
        )]],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::one_private_device,
        groups: Groups::None,
        checks: &[&[
            (
                "stuck::fault_on_private_memory_outlives_a_hung_queue",
                stuck::fault_on_private_memory_outlives_a_hung_queue,
            ),
            (
                "plug::unplug_under_load_brings_private_memory_home",
                plug::under_load,
            ),
            (
                "silent::unbind_ends_and_private_memory_is_lost",
                silent::private_memory_is_lost,
            ),
            (
                "silent::unload_ends_and_private_memory_is_lost",
                silent::unload_loses_private_memory,
            ),
        ]],
    },
    Suite {
        prefix: "e2e::vanilla",
        kernel: KernelChoice::Vanilla,
        shape: plan::one_private_device,
        groups: Groups::None,
        checks: &[&[
            (
                "stuck::fault_on_private_memory_outlives_a_hung_queue",
                stuck::fault_on_private_memory_outlives_a_hung_queue,
            ),
            (
                "plug::unplug_under_load_brings_private_memory_home",
                plug::under_load,
            ),
            (
                "silent::unbind_ends_and_private_memory_is_lost",
                silent::private_memory_is_lost,
            ),
            (
                "silent::unload_waits_for_users_of_private_memory_and_says_so",
                silent::unload_waits_for_users_of_private_memory,
            ),
        ]],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::one_device,
        groups: Groups::None,
        checks: &[FAULTS],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::one_device,
        groups: Groups::None,
        checks: &[
            PLUG,
            &[(
                "plug::unplug_leaves_lost_what_has_failed",
                plug::lost_page_stays_lost,
            )],
        ],
    },
    Suite {
        prefix: "e2e::vanilla",
        kernel: KernelChoice::Vanilla,
        shape: plan::one_device,
        groups: Groups::None,
        checks: &[FAULTS],
    },
    Suite {
        prefix: "e2e::vanilla",
        kernel: KernelChoice::Vanilla,
        shape: plan::one_device,
        groups: Groups::None,
        checks: &[
            PLUG,
            &[(
                "plug::unplug_takes_memory_along_that_has_failed",
                plug::takes_failed_memory_along,
            )],
        ],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::one_device,
        groups: Groups::None,
        checks: &[
            EXAMPLES,
            &[(
                "examples::tutorial_works_as_it_is_written",
                examples::tutorial_works_as_written,
            )],
        ],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::one_timed_device,
        groups: Groups::None,
        checks: &[LINK],
    },
    Suite {
        prefix: "e2e::vanilla",
        kernel: KernelChoice::Vanilla,
        shape: plan::one_device,
        groups: Groups::None,
        checks: &[EXAMPLES],
    },
    Suite {
        prefix: "e2e::vanilla",
        kernel: KernelChoice::Vanilla,
        shape: plan::one_timed_device,
        groups: Groups::None,
        checks: &[LINK],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::one_device_for_debian,
        groups: Groups::None,
        checks: &[DEBIAN],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::one_traced_device,
        groups: Groups::None,
        checks: &[TRACE],
    },
    Suite {
        prefix: "e2e::vanilla",
        kernel: KernelChoice::Vanilla,
        shape: plan::one_traced_device,
        groups: Groups::None,
        checks: &[TRACE],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::one_device_with_huge_pages,
        groups: Groups::None,
        checks: &[
            &[
                (
                    "poison::touched_page_raises_sigbus_at_its_address_and_neighbours_stay",
                    poison::touched_page_raises_sigbus,
                ),
                (
                    "poison::page_of_a_huge_page_fails_alone",
                    poison::page_of_a_huge_page_fails_alone,
                ),
                (
                    "poison::bound_process_loses_its_page_when_the_device_has_forgotten_it",
                    poison::bound_process_loses_its_page,
                ),
                (
                    "poison::lost_page_stays_lost_when_the_driver_has_gone",
                    poison::lost_page_stays_lost_without_the_driver,
                ),
            ],
            POISON,
        ],
    },
    Suite {
        prefix: "e2e::public",
        kernel: KernelChoice::Public,
        shape: plan::one_private_device_with_huge_pages,
        groups: Groups::None,
        checks: &[&[
            (
                "poison::private_page_fails_alone",
                poison::private_page_fails_alone,
            ),
            (
                "poison::bound_process_loses_its_private_page_alone",
                poison::bound_process_loses_its_private_page,
            ),
            (
                "poison::page_of_a_private_huge_page_fails_alone",
                poison::page_of_a_private_huge_page_fails_alone,
            ),
        ]],
    },
    Suite {
        prefix: "e2e::vanilla",
        kernel: KernelChoice::Vanilla,
        shape: plan::one_private_device,
        groups: Groups::None,
        checks: &[&[(
            "poison::private_page_cannot_be_taken_and_all_else_goes_on",
            poison::private_page_cannot_be_taken,
        )]],
    },
    Suite {
        prefix: "e2e::vanilla",
        kernel: KernelChoice::Vanilla,
        shape: plan::one_device,
        groups: Groups::None,
        checks: &[
            &[
                (
                    "poison::driver_says_that_it_cannot_and_all_else_goes_on",
                    poison::driver_says_that_it_cannot,
                ),
                (
                    "poison::commands_on_addresses_are_told_also_after_a_reset",
                    poison::commands_on_addresses_are_told,
                ),
                (
                    "poison::failed_page_leaves_with_the_driver_for_who_has_it",
                    poison::failed_page_leaves_with_the_driver,
                ),
            ],
            POISON,
        ],
    },
];

/// Whether a test is chosen whose guest has a userland that `ci/just` makes.
pub fn wants_rootfs(selection: &Selection) -> bool {
    let names = DEBIAN
        .iter()
        .map(|(name, _)| format!("e2e::public::{name}"));
    names.into_iter().any(|name| selection.takes(&name))
}

/// A test that drives a machine from outside, with the machine that it wants.
#[derive(Clone, Copy)]
pub struct HostTest {
    /// Changes the default machine.
    pub shape: fn(&mut crate::vm::VmSpec),
    /// What it does.
    pub check: fn(&mut Session) -> Result<()>,
}

/// The test of that name on a kernel, if it is one that drives a machine from outside.
pub fn host_test(name: &str, kernel: &KernelChoice) -> Option<HostTest> {
    let suites = SUITES.iter().filter(|suite| suite.kernel == *kernel);
    suites
        .filter_map(|suite| {
            let own = name.strip_prefix(suite.prefix)?.strip_prefix("::")?;
            let checks = suite.checks.concat();
            let (_, check) = checks.iter().find(|(name, _)| *name == own)?;
            Some(HostTest {
                shape: suite.shape,
                check: *check,
            })
        })
        .next()
}

impl Suite {
    /// Its groups of tests inside the guest, in their order.
    fn groups_of<'a>(&self, guest_tests: &'a [String]) -> Vec<&'a str> {
        let mut groups = plan::groups(guest_tests);
        let is_patched = self.kernel != KernelChoice::Vanilla;
        groups.retain(|group| {
            self.groups.has(group) && (is_patched || !plan::PATCHED_GROUPS.contains(group))
        });
        groups
    }

    fn names(&self, guest_tests: &[String]) -> Vec<String> {
        let mut names = Vec::new();
        for group in self.groups_of(guest_tests) {
            let of_group = |test: &&String| plan::group_of(test) == group;
            let tests = guest_tests.iter().filter(of_group);
            names.extend(tests.map(|test| format!("{}::{test}", self.prefix)));
            names.push(group::log_test(self.prefix, group));
        }
        names.extend(
            self.checks
                .concat()
                .iter()
                .map(|(name, _)| format!("{}::{name}", self.prefix)),
        );
        names
    }
}

impl Stage for EndToEnd {
    fn name(&self) -> &'static str {
        "e2e"
    }

    fn list(&mut self, run: &Run) -> Result<Vec<String>> {
        self.guest_tests = guest_tests(run.ctx())?;
        plan::check(&self.guest_tests)?;
        known::check(&self.guest_tests, &patches(run.ctx())?)?;
        self.scenarios = scenarios::list(run)?;
        let mut names: Vec<String> = SUITES
            .iter()
            .flat_map(|suite| suite.names(&self.guest_tests))
            .collect();
        for kernel in &scenarios::KERNELS {
            let tests = self.scenarios.iter();
            names.extend(tests.map(|name| scenarios::test_name(kernel, name)));
        }
        Ok(names)
    }

    fn run(&mut self, run: &mut Run, chosen: &[String]) -> Result<()> {
        let mut jobs = Vec::new();
        for kernel in &scenarios::KERNELS {
            let names = self.scenarios.iter();
            let names = names.map(|name| scenarios::test_name(kernel, name));
            jobs.extend(Job::of(Work::Scenarios(kernel), names, chosen));
        }
        for (number, suite) in SUITES.iter().enumerate() {
            let names = suite.names(&self.guest_tests).into_iter();
            jobs.extend(Job::of(Work::Suite(number, suite), names, chosen));
        }
        // The longest first, or everybody waits for the last one.
        jobs.sort_by_key(|job| std::cmp::Reverse(job.weight()));
        let run = &*run;
        lanes::run(lanes::of_this_host(), jobs, |job| {
            let mut run = run.beside();
            let done = match job.work {
                Work::Scenarios(kernel) => {
                    scenarios::run(&mut run, kernel, &self.scenarios, &job.wanted)
                }
                Work::Suite(number, suite) => {
                    run_suite(&mut run, suite, number, &job.wanted, &self.guest_tests)
                }
            };
            if let Err(error) = done {
                let why = format!("its machine could not be had: {error:#}");
                run.fail_missing_of(&job.wanted, &why);
            }
        });
        Ok(())
    }
}

/// What one lane does at a time, with the names of the tests that are wanted of it.
struct Job<'a> {
    work: Work<'a>,
    wanted: Vec<String>,
}

/// Tests that follow each other.
enum Work<'a> {
    /// The stress scenarios on a kernel.
    Scenarios(&'a KernelChoice),
    /// Those of one machine, with its number.
    Suite(usize, &'a Suite),
}

impl<'a> Job<'a> {
    /// None, if none of its tests is chosen.
    fn of(work: Work<'a>, names: impl Iterator<Item = String>, chosen: &[String]) -> Option<Self> {
        let wanted: Vec<String> = names.filter(|name| chosen.contains(name)).collect();
        (!wanted.is_empty()).then_some(Self { work, wanted })
    }

    /// About how long it takes, in tests inside a guest.
    fn weight(&self) -> usize {
        match self.work {
            Work::Scenarios(_) => 10 * self.wanted.len(),
            Work::Suite(..) => self.wanted.len(),
        }
    }
}

fn run_suite(
    run: &mut Run,
    suite: &Suite,
    number: usize,
    wanted: &[String],
    guest_tests: &[String],
) -> Result<()> {
    let kernel = build::kernel(run.ctx(), &suite.kernel, BuildKind::Plain)?;
    let mut spec = crate::vm::VmSpec::new(kernel);
    (suite.shape)(&mut spec);
    if !spec.disks.is_empty() {
        // File systems and block devices are modules.
        let modules = FileCopy::kernel_modules(run.ctx(), &spec.kernel)?;
        spec.files.push(modules);
    }
    let logs = run
        .folder()
        .join(format!("machine{number}-{}", suite.kernel));
    for (number, test) in guest_tests.iter().enumerate() {
        let failure = known::failure(&suite.kernel, test);
        if let Some(failure) = failure.filter(|_| known::is_alone(&suite.kernel, test))
            && wanted.contains(&format!("{}::{test}", suite.prefix))
        {
            let logs = logs.join(format!("alone{number}"));
            failure.run_alone(run, run.ctx(), spec.clone(), logs, suite.prefix);
        }
    }
    let mut session = Session::new(run.ctx(), spec, logs);
    for group in suite.groups_of(guest_tests) {
        group::run(
            run,
            &mut session,
            suite.prefix,
            &suite.kernel,
            group,
            wanted,
        );
    }
    for (short, check) in suite.checks.concat() {
        let name = format!("{}::{short}", suite.prefix);
        if wanted.contains(&name) {
            run.check(&name, |_| session.check(&check));
            run.keep_evidence(&[name], || session.evidence());
        }
    }
    session.end()
}

/// Files of the kernel series, in order.
fn patches(ctx: &Context) -> Result<Vec<String>> {
    let path = ctx.repo.join("images/kernel/patches/series");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(text.lines().map(str::to_owned).collect())
}

/// The programs for the guest are static, so the names can be had without one.
pub fn guest_tests(ctx: &Context) -> Result<Vec<String>> {
    let program = build::guest_tools(ctx)?.join("cdm-guest-tests");
    let output = Command::new(&program)
        .arg("--list")
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    if !output.status.success() {
        bail!(
            "{} cannot list its tests: {}",
            program.display(),
            output.status
        );
    }
    Ok(String::from_utf8(output.stdout)?
        .lines()
        .map(str::to_owned)
        .collect())
}

/// A schema of docs/reference/schemas/, and a document that must follow it.
fn follows_schema(ctx: &Context, schema: &str, document: &[u8]) -> Result<serde_json::Value> {
    schema::check(&ctx.repo, schema, document)
}

#[cfg(test)]
mod tests {
    use std::path::Path;

    use cdm_control_protocol::FaultKind;

    use super::*;

    /// What the row of a kind says in the table whose head begins with these words.
    fn row<'a>(page: &'a str, head: &str, kind: FaultKind) -> &'a str {
        let (_, table) = page.split_once(head).expect("there is such a table");
        let begin = format!("| `{kind}` | ");
        let mut lines = table
            .lines()
            .skip(1)
            .take_while(|line| line.starts_with('|'));
        lines
            .find_map(|line| line.strip_prefix(&begin))
            .unwrap_or_else(|| panic!("no row for {kind} below '{head}'"))
    }

    #[test]
    fn each_fault_has_tests_on_each_kernel_that_the_specification_names() {
        let path =
            Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/reference/control-socket.md");
        let page = fs::read_to_string(path).expect("a page");
        for kind in FaultKind::ALL {
            let named: Vec<&str> = row(&page, "| kind | tests |", kind)
                .split('`')
                .filter(|word| word.contains("::"))
                .collect();
            assert!(!named.is_empty(), "{kind}");
            for test in named {
                for prefix in ["e2e::public", "e2e::vanilla"] {
                    let is_there = SUITES
                        .iter()
                        .any(|suite| suite.names(&[]).contains(&format!("{prefix}::{test}")));
                    assert!(is_there, "{kind}: no {prefix}::{test}");
                }
            }
            // And what a correct driver does.
            assert!(row(&page, "| kind | what the device does |", kind).len() > 80);
        }
    }
}
