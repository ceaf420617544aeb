// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which machines the tests run on, and what may be skipped where.

use anyhow::{Result, bail};

use super::debian;
use crate::build::KernelChoice;
use crate::vm::{ByteSize, Disk, MemoryType, Rootfs, VmSpec};

/// Tests that a kernel cannot run, each with the reason. Any other skip is a failure: a test that
/// is not run proves nothing.
/// A name without `::` stands for all tests of that group.
const SKIPS: &[(KernelChoice, &str, &str)] = &[
    (
        KernelChoice::Vanilla,
        "observability::region_has_a_name_of_its_own_in_iomem",
        "the name comes with MEMORY_DEVICE_PUBLIC",
    ),
    (KernelChoice::Vanilla, "huge_files", NO_FILES),
    (
        KernelChoice::Vanilla,
        "hot::shared_memory_that_commands_use_moves_to_the_device",
        NO_FILES,
    ),
    (
        KernelChoice::Vanilla,
        "cpu_hot",
        "the kernel tells what the CPUs use with patch mm-migrate_device-tell-a-driver-which-pages-the-CPU-",
    ),
    (
        KernelChoice::Vanilla,
        "engines::huge_pages_copied_by_the_device_are_as_they_were",
        NO_LARGE,
    ),
    (
        KernelChoice::Vanilla,
        "engines::both_have_turns_before_one_is_chosen",
        NO_LARGE,
    ),
    (
        KernelChoice::Vanilla,
        "engines::pages_of_a_file_are_copied_by_a_cpu",
        NO_FILES,
    ),
    (KernelChoice::Vanilla, "memfd", NO_FILES),
    (KernelChoice::Vanilla, "tmpfs", NO_FILES),
    (KernelChoice::Vanilla, "ramfs", NO_FILES),
    (KernelChoice::Vanilla, "xfs", NO_FILES),
    (
        KernelChoice::Vanilla,
        "pressure::group_of_pages_of_a_shared_file_survives",
        NO_FILES,
    ),
    (
        KernelChoice::Vanilla,
        "memory_failure::failed_page_of_a_file_is_an_error_for_its_readers",
        NO_FILES,
    ),
    (KernelChoice::Vanilla, "refusals", NO_FILES),
    (
        KernelChoice::Vanilla,
        "fixes::failed_page_of_a_huge_page_of_a_file_is_told_from_the_end_of_the_file",
        NO_FILES,
    ),
    (
        KernelChoice::Vanilla,
        "accounts::smaps_counts_pages_of_a_shared_file_for_each_who_maps_them",
        NO_FILES,
    ),
    (
        KernelChoice::Vanilla,
        "eviction::eviction_by_frame_finds_pages_of_a_file_that_nobody_maps",
        NO_FILES,
    ),
    (
        KernelChoice::Vanilla,
        "eviction::holes_of_a_file_are_faulted_in_on_request_and_move",
        NO_FILES,
    ),
    (
        KernelChoice::Vanilla,
        "pins::reader_of_a_file_gets_its_contents_while_a_pin_moves_them_out",
        NO_FILES,
    ),
    (
        KernelChoice::Vanilla,
        "pins::dma_buffer_of_a_file_moves_its_pages_out",
        NO_FILES,
    ),
    (
        KernelChoice::Vanilla,
        "pins::dma_buffer_of_a_part_of_a_huge_page_moves_that_block_out",
        NO_FILES,
    ),
    (
        KernelChoice::Vanilla,
        "eviction::evictions_that_meet_move_each_page_once",
        "a page moves twice there now and then, which patch mm-migrate_device-leave-anonymous-folios-alone mends",
    ),
];

const NO_FILES: &str = "page cache moves to MEMORY_DEVICE_PUBLIC only";
const NO_LARGE: &str = "large folios of MEMORY_DEVICE_COHERENT need the series";

/// Groups of tests inside the guest that want private memory.
pub const PRIVATE_GROUPS: &[&str] = &["private"];

/// Groups of tests inside the guest that want devices whose links carry no atomics.
pub const EXCLUSIVE_GROUPS: &[&str] = &["exclusive"];

/// Whether a group of tests inside the guest runs on the main machine.
pub fn is_general(group: &str) -> bool {
    [PRIVATE_GROUPS, EXCLUSIVE_GROUPS, LONG_GROUPS]
        .iter()
        .all(|others| !others.contains(&group))
}

/// Groups that are the same there as on other machines.
pub const INDIFFERENT_GROUPS: &[&str] = &["addresses"];

/// Groups for the kernel with the series alone: they take the error paths of the kernel's migration as
/// well as the driver's, and the series mends some of the former.
pub const PATCHED_GROUPS: &[&str] = &["injected"];

/// Groups that take too long for here; `just stress --suite fault` runs them.
pub const LONG_GROUPS: &[&str] = &["injected_probe"];

/// Two small devices, which are filled quickly, room in the guest for more than one holds, and a
/// disk for files; and a piece of memory that stands for persistent memory, for files without a copy
/// in the page cache.
pub fn main_machine(spec: &mut VmSpec) {
    spec.disks = vec![Disk::Xfs];
    spec.kernel_words.push("memmap=32M!512M".into());
    spec.devices = 2;
    spec.device_memory = ByteSize(256 << 20);
    spec.memory = ByteSize(1 << 30);
}

/// The main machine with memory that the CPU cannot map.
pub fn private_machine(spec: &mut VmSpec) {
    main_machine(spec);
    spec.memory_types = vec![MemoryType::Private];
}

/// The main machine with devices whose links carry no atomics.
pub fn exclusive_machine(spec: &mut VmSpec) {
    main_machine(spec);
    spec.atomics = Some("exclusive".to_owned());
}

/// A device that is many times larger than the guest: its struct pages (a 64th of it) have room in
/// the device itself and none in the guest.
pub fn large_device(spec: &mut VmSpec) {
    spec.device_memory = ByteSize(32 << 30);
    spec.memory = ByteSize(384 << 20);
}

/// Two devices whose identity is spoilt on the way (see `identity`).
pub fn two_impostors(spec: &mut VmSpec) {
    spec.devices = 2;
    spec.device_memory = ByteSize(256 << 20);
    spec.memory = ByteSize(512 << 20);
}

/// One small device.
pub fn one_device(spec: &mut VmSpec) {
    spec.device_memory = ByteSize(256 << 20);
    spec.memory = ByteSize(512 << 20);
}

/// One small device, and so much memory that the kernel has huge pages: not with less than 512 MiB.
pub fn one_device_with_huge_pages(spec: &mut VmSpec) {
    one_device(spec);
    spec.memory = ByteSize(1 << 30);
}

/// The same with memory that the CPU cannot map.
pub fn one_private_device_with_huge_pages(spec: &mut VmSpec) {
    one_device_with_huge_pages(spec);
    spec.memory_types = vec![MemoryType::Private];
}

/// One small device on a link that takes time.
pub fn one_timed_device(spec: &mut VmSpec) {
    one_device(spec);
    spec.link_model = Some("on".to_owned());
}

/// One small device, on one time line with its driver.
pub fn one_traced_device(spec: &mut VmSpec) {
    one_device(spec);
    spec.trace = true;
}

/// One small device, in a guest with a userland of its own.
pub fn one_device_for_debian(spec: &mut VmSpec) {
    one_device_with_huge_pages(spec);
    spec.rootfs = Rootfs::Debian;
    spec.share = Some(debian::shared());
    spec.files = vec![debian::brought()];
}

/// Three small devices.
pub fn three_devices(spec: &mut VmSpec) {
    one_device(spec);
    spec.devices = 3;
}

/// One small device with memory that the CPU cannot map.
pub fn one_private_device(spec: &mut VmSpec) {
    one_device(spec);
    spec.memory_types = vec![MemoryType::Private];
}

/// Group of a test inside the guest.
pub fn group_of(test: &str) -> &str {
    test.split("::").next().unwrap_or(test)
}

/// Groups in the order in which their first tests come.
pub fn groups(tests: &[String]) -> Vec<&str> {
    let mut groups: Vec<&str> = Vec::new();
    for group in tests.iter().map(|test| group_of(test)) {
        if !groups.contains(&group) {
            groups.push(group);
        }
    }
    groups
}

/// Why a test may be skipped on a kernel, if it may.
pub fn declared_skip(kernel: &KernelChoice, test: &str) -> Option<&'static str> {
    SKIPS
        .iter()
        .find(|(k, name, _)| k == kernel && (*name == test || *name == group_of(test)))
        .map(|(_, _, reason)| *reason)
}

/// Refuses a table that speaks of tests that are not there.
pub fn check(tests: &[String]) -> Result<()> {
    for (_, name, _) in SKIPS {
        if !tests
            .iter()
            .any(|test| test == name || group_of(test) == *name)
        {
            bail!("the table of skips names '{name}', which is no test");
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn skip_is_allowed_only_where_the_table_says() {
        let test = "observability::region_has_a_name_of_its_own_in_iomem";
        assert!(declared_skip(&KernelChoice::Vanilla, test).is_some());
        assert!(declared_skip(&KernelChoice::Public, test).is_none());
        assert!(declared_skip(&KernelChoice::Vanilla, "fork::x").is_none());
    }

    #[test]
    fn table_that_names_a_test_that_is_gone_is_refused() {
        assert!(check(&["fork::x".to_owned()]).is_err());
    }

    #[test]
    fn groups_keep_their_order() {
        let tests = ["b::x", "a::x", "b::y"].map(str::to_owned);
        assert_eq!(groups(&tests), ["b", "a"]);
    }
}
