// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm` itself, as a user starts it: what it prints and returns, and that
//! nothing of it is left when something dies under it.

mod counts;
mod daily;
mod dump;
mod left;
mod pages;
mod soak;
mod subject;

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::signal::Signal;

use super::run::Run;
use super::table::Table;

use left::Leftovers;
use subject::{Ended, Subject};

/// The stage `host`.
pub const HOST: Table = Table {
    name: "host",
    rows: &[
        ("host::dry_run_prints_commands_and_starts_nothing", dry_run),
        ("host::exec_gives_output_and_status_and_nothing_else", exec),
        (
            "host::killed_backend_is_named_and_nothing_is_left",
            killed_backend,
        ),
        (
            "host::killed_qemu_is_named_and_nothing_is_left",
            killed_qemu,
        ),
        (
            "host::panic_of_the_guest_leaves_a_dump_that_names_the_kernel",
            dump::of_a_panic,
        ),
        (
            "host::command_beyond_its_time_limit_leaves_a_dump_and_how_to_repeat_it",
            dump::of_a_hanging_command,
        ),
        (
            "host::silent_guest_is_given_up_and_leaves_a_dump",
            dump::of_a_silent_guest,
        ),
        (
            "host::dump_without_room_on_the_disk_is_left_away_and_said",
            dump::without_room,
        ),
        ("host::ctrl_c_leaves_nothing", interrupted),
        ("host::killed_cdm_leaves_nothing", killed),
        (
            "host::public_memory_on_vanilla_is_refused_before_a_boot",
            public_on_vanilla,
        ),
        (
            "host::wrong_arguments_are_refused_with_the_next_step",
            wrong_arguments,
        ),
        (
            "host::too_little_disk_is_told_before_anything_starts",
            too_little_disk,
        ),
        ("host::selection_of_no_test_is_a_failure", empty_selection),
        (
            "host::running_guest_has_a_second_shell_files_and_logs",
            daily::second_shell,
        ),
        (
            "host::guest_remembers_what_was_typed_in_others",
            daily::history,
        ),
        (
            "host::driver_is_built_reloaded_and_tried_in_the_running_guest",
            daily::reloaded_driver,
        ),
        (
            "host::soak_goes_on_behind_its_last_draw_and_counts_all_of_them",
            soak::resumed,
        ),
        (
            "host::editors_are_told_of_the_driver_and_of_files_that_exist",
            daily::editor,
        ),
        (
            "host::editors_get_messages_about_each_crate_from_the_check_they_call",
            daily::editor_check,
        ),
        (
            "host::browser_tells_what_is_wrong_with_a_page",
            pages::wrong,
        ),
        (
            "host::page_of_results_reads_well_in_a_browser",
            pages::report_page,
        ),
        (
            "host::page_of_benchmarks_reads_well_in_a_browser",
            pages::bench_page,
        ),
        (
            "host::instructions_of_the_device_are_as_many_in_each_run",
            counts::twice,
        ),
    ],
};

/// A guest that is big enough and no bigger: several of them boot one after the other.
const SMALL: [&str; 5] = ["run-vm", "--device-memory", "256M", "--memory", "512M"];

fn run_vm<'a>(more: &[&'a str]) -> Vec<&'a str> {
    [&SMALL[..], more].concat()
}

fn dry_run(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    let ended = Subject::start(run, &left, &["run-vm", "--dry-run", "--devices", "2"])?.finish()?;
    ensure!(ended.code == Some(0), "{ended}");
    let lines = |word: &str| {
        ended
            .stdout
            .lines()
            .filter(|line| line.contains(word))
            .count()
    };
    ensure!(
        lines("--socket-path") == 2,
        "two devices have two backends:\n{ended}"
    );
    ensure!(
        lines("vhost-user-test-device-pci") == 1,
        "one line starts QEMU:\n{ended}"
    );
    left.expect_none()
}

fn exec(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    let folder = tempfile::tempdir_in(run.folder())?;
    fs::write(folder.path().join("shared"), "from the share\n")?;
    let file = folder.path().join("copied");
    fs::write(&file, "from the file\n")?;
    let share = folder.path().display().to_string();
    let copy = format!("{}:/root/copied", file.display());
    let line = "cat /host/shared /root/copied; cat; echo to stderr >&2; exit 7";
    let arguments = run_vm(&["--share", &share, "--file", &copy, "--exec", line]);
    let mut subject = Subject::start(run, &left, &arguments)?;
    subject.write("from stdin\n")?;
    let ended = subject.finish()?;
    ensure!(
        ended.code == Some(7),
        "the status is not the command's: {ended}"
    );
    let expected = "from the share\nfrom the file\nfrom stdin\n";
    ensure!(
        ended.stdout == expected,
        "stdout is not the command's alone: {ended}"
    );
    ensure!(ended.stderr.contains("to stderr\n"), "{ended}");
    left.expect_none()
}

/// A machine whose guest has said that it is up.
fn running<'a>(run: &Run, left: &'a Leftovers, line: &str) -> Result<Subject<'a>> {
    let script = format!("echo up; {line}");
    let mut subject = Subject::start(run, left, &run_vm(&["--exec", &script]))?;
    subject.wait_for_line("up")?;
    Ok(subject)
}

/// What an error must be: one that the user can act on, with exit code 2.
fn told(ended: &Ended, words: &[&str]) -> Result<()> {
    ensure!(
        ended.code == Some(2),
        "it ran into an error and does not exit with 2: {ended}"
    );
    for word in words {
        ensure!(
            ended.stderr.contains(word),
            "the message lacks '{word}': {ended}"
        );
    }
    Ok(())
}

fn killed_backend(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    let subject = running(run, &left, "sleep 600")?;
    left.kill("cdm-backend", Signal::SIGKILL)?;
    told(
        &subject.finish()?,
        &["cdm-backend of device 0", "SIGKILL", "logs"],
    )?;
    left.expect_none()
}

fn killed_qemu(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    let subject = running(run, &left, "sleep 600")?;
    left.kill("qemu-system-x86", Signal::SIGKILL)?;
    told(
        &subject.finish()?,
        &["qemu-system-x86_64", "SIGKILL", "logs"],
    )?;
    left.expect_none()
}

fn interrupted(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    let subject = running(run, &left, "sleep 600")?;
    subject.signal(Signal::SIGINT)?;
    let ended = subject.finish()?;
    // Ended by the signal, or with the status that shells give such an end.
    ensure!(matches!(ended.code, None | Some(130)), "{ended}");
    left.expect_none()
}

/// Even SIGKILL, which nobody can handle, leaves no process.
fn killed(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    let subject = running(run, &left, "sleep 600")?;
    subject.signal(Signal::SIGKILL)?;
    let ended = subject.finish()?;
    ensure!(ended.code.is_none(), "{ended}");
    left.expect_no_process()?;
    // The sockets go with the next run, which works.
    let next = Subject::start(run, &left, &run_vm(&["--exec", "cdmctl run nop"]))?.finish()?;
    ensure!(next.code == Some(0), "the next run does not work: {next}");
    left.expect_none()
}

fn public_on_vanilla(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    let arguments = [
        "run-vm",
        "--kernel",
        "vanilla",
        "--memory-type",
        "public",
        "--exec",
        "true",
    ];
    let ended = Subject::start(run, &left, &arguments)?.finish()?;
    told(
        &ended,
        &["vanilla", "MEMORY_DEVICE_PUBLIC", "--memory-type coherent"],
    )?;
    left.expect_none()
}

fn wrong_arguments(run: &Run) -> Result<()> {
    let cases: [(&[&str], &[&str]); 9] = [
        (
            &["run-vm", "--device-memory", "192M"],
            &["power of two", "256M"],
        ),
        (&["run-vm", "--devices", "5"], &["--devices"]),
        (&["run-vm", "--kernel", "publik"], &["'publik'", "./publik"]),
        (&["run-vm", "--kernel", "/none/linux"], &["/none/linux"]),
        (&["run-vm", "--share", "/none"], &["--share", "/none"]),
        (&["run-vm", "--file", "/none:/root/x"], &["--file", "/none"]),
        (&["soak", "moves"], &["--hours"]),
        (
            &["stress", "--suite", "hmm-tests", "--seed", "1"],
            &["--seed", "--suite scenarios"],
        ),
        (
            &[
                "stress",
                "--suite",
                "hmm-tests",
                "--kernel",
                "vanilla",
                "--memory-type",
                "public",
            ],
            &["vanilla", "MEMORY_DEVICE_PUBLIC", "--memory-type coherent"],
        ),
    ];
    for (arguments, words) in cases {
        let left = Leftovers::watch()?;
        let ended = Subject::start(run, &left, arguments)?.finish()?;
        told(&ended, words).with_context(|| format!("{arguments:?}"))?;
        left.expect_none()?;
    }
    Ok(())
}

fn too_little_disk(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    let folder = tempfile::tempdir_in(run.folder())?;
    let ended = Subject::start_on_small_disk(run, &left, folder.path(), &["kernel"])?.finish()?;
    told(&ended, &["MiB free", "needs", "CDM_CACHE"])?;
    left.expect_none()
}

fn empty_selection(run: &Run) -> Result<()> {
    /// No build, no boot: the names of these stages are known without either.
    const LIMIT: Duration = Duration::from_secs(60);
    let left = Leftovers::watch()?;
    let folder = tempfile::tempdir_in(run.folder())?;
    let logs = folder.path().display().to_string();
    let arguments = ["test", "docs::no_such_test", "--keep-logs", &logs];
    let ended = Subject::start(run, &left, &arguments)?.finish_within(LIMIT)?;
    if ended.code == Some(0) {
        bail!("a run of no test is a success: {ended}");
    }
    let last = ended.stdout.lines().last().unwrap_or_default();
    ensure!(last == "0 passed, 0 failed, 0 skipped", "{ended}");
    left.expect_none()
}
