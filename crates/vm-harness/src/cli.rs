// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command line: one subcommand for each recipe, each with its arguments
//! defined next to the code that obeys them.

use std::process::ExitCode;

use anyhow::Result;
use cdm_harness::{
    Context, behaviour, bench, bench_backend, book, build, clean, deny, dev, device, doctor, fuzz,
    guest, ide, image, junit_page, litmus, logs, mutants, package, reference, report, series_check,
    stress, test, vm,
};
use clap::{Parser, Subcommand};

use crate::completions;

/// Build, boot and test a virtual machine with a coherent memory device.
#[derive(Debug, Parser)]
#[command(
    name = "cdm",
    bin_name = "cdm",
    version,
    max_term_width = 100,
    disable_help_subcommand = true
)]
pub struct Cli {
    #[command(subcommand)]
    pub command: Command,
}

#[derive(Debug, Subcommand)]
pub enum Command {
    /// Boot a guest with the device and open a shell in it
    RunVm(vm::RunVmArgs),
    /// Open one more shell in a guest that runs, or run a command in it
    Shell(guest::shell::ShellArgs),
    /// Copy a file or folder into a guest that runs, or out of it
    Cp(guest::copy::CpArgs),
    /// Print what the console, the devices and QEMU of a run have said
    Logs(logs::LogsArgs),
    /// Rebuild the driver on each change, reload it in the running guest, run a scenario
    Dev(dev::DevArgs),
    /// Have rust-analyzer understand the driver and everything else
    Ide(ide::IdeArgs),
    /// Measure how long it takes to a command in a guest, against a bare QEMU boot
    BootTime(vm::BootTimeArgs),
    /// Measure what device and driver do, against what a user would pick instead
    Bench(bench::BenchArgs),
    /// Run all checks and tests; the last line counts them
    Test(test::TestArgs),
    /// Feed the device what a hostile guest could say, for as long as asked
    Fuzz(fuzz::FuzzArgs),
    /// Run named stress scenarios, or the kernel's own suite for device memory
    Stress(stress::StressArgs),
    /// Draw stress scenarios at random for hours, until something is wrong
    Soak(stress::soak::SoakArgs),
    /// Try what CPUs and device see of each other's accesses, millions of times
    Litmus(litmus::LitmusArgs),
    /// Plant mistakes in kernel, driver and device, and see that the tests find them
    Mutants(mutants::MutantsArgs),
    /// Build and boot the kernel after each patch of the series
    SeriesCheck(series_check::SeriesCheckArgs),
    /// Measure the device's process on the host, against what the host does by itself
    BenchBackend(bench_backend::BenchBackendArgs),
    /// Try what each type of device memory can do, and print a table of it
    BehaviourTable(behaviour::BehaviourTableArgs),
    /// Make a book of the documents
    Book(book::BookArgs),
    /// Compare pages and header that are written from code with it, or write them anew
    Reference(reference::ReferenceArgs),
    /// Print the results of a run as Markdown, as GitHub shows them
    Results(junit_page::ResultsArgs),
    /// Put the last results of tests, stress and benchmarks on one page, with plots
    Report(report::ReportArgs),
    /// Make packages for Debian, of the device's process and of the driver's source
    Package(package::PackageArgs),
    /// Look at licences, origin and known faults of the crates that are built in
    Deny(deny::DenyArgs),
    /// Make an image for containers that runs all this without building anything
    Image(image::ImageArgs),
    /// Look at a device that runs, or have it fail on request
    Device(device::DeviceArgs),
    /// Print what a shell needs to complete recipes and their options
    Completions(completions::CompletionsArgs),
    /// Tell what this machine has and lacks, and how to mend it
    Doctor(doctor::DoctorArgs),
    /// Build everything that a guest needs, and boot nothing
    Build(build::BuildArgs),
    /// Build a guest kernel and print where it is
    Kernel(build::KernelArgs),
    /// Build a module of your own for a guest kernel and print where it is
    Module(build::ModuleArgs),
    /// Remove what was built from the cache
    Clean(clean::CleanArgs),
}

impl Command {
    /// Whether it boots guests with a userland that `ci/just` makes.
    pub fn wants_rootfs(&self) -> bool {
        match self {
            Self::RunVm(args) => args.wants_rootfs(),
            Self::Test(args) => args.wants_rootfs(),
            _ => false,
        }
    }

    /// Runs the subcommand. The exit code is 0 for done and 1 for a check that
    /// failed; an error means that it could not run.
    pub fn run(self, ctx: &Context) -> Result<ExitCode> {
        match self {
            Self::RunVm(args) => vm::run_vm(ctx, args),
            Self::Shell(args) => guest::shell::run(ctx, args),
            Self::Cp(args) => guest::copy::run(ctx, &args),
            Self::Logs(args) => logs::run(ctx, &args),
            Self::Dev(args) => dev::run(ctx, &args),
            Self::Ide(args) => ide::run(ctx, &args),
            Self::BootTime(args) => vm::boot_time(ctx, &args),
            Self::Bench(args) => bench::run(ctx, &args),
            Self::Test(args) => test::run(ctx, args),
            Self::Fuzz(args) => fuzz::run(ctx, &args),
            Self::Stress(args) => stress::run(ctx, &args),
            Self::Soak(args) => stress::soak::run(ctx, &args),
            Self::Litmus(args) => litmus::run(ctx, &args),
            Self::Mutants(args) => mutants::run(ctx, &args),
            Self::SeriesCheck(args) => series_check::run(ctx, &args),
            Self::BenchBackend(args) => bench_backend::run(ctx, &args),
            Self::BehaviourTable(args) => behaviour::run(ctx, &args),
            Self::Book(args) => book::run(ctx, &args),
            Self::Reference(args) => reference::run(ctx, &args),
            Self::Results(args) => junit_page::run(&args),
            Self::Report(args) => report::run(ctx, &args),
            Self::Package(args) => package::run(ctx, &args),
            Self::Deny(args) => deny::run(ctx, &args),
            Self::Image(args) => image::run(ctx, &args),
            Self::Device(args) => device::run(args),
            Self::Completions(args) => completions::run(&args),
            Self::Doctor(args) => doctor::run(ctx, &args),
            Self::Build(args) => build::run(ctx, &args),
            Self::Kernel(args) => build::run_kernel(ctx, &args),
            Self::Module(args) => build::run_module(ctx, &args),
            Self::Clean(args) => clean::run(ctx, &args),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;
    use std::fs;
    use std::path::{Path, PathBuf};

    #[test]
    fn the_command_line_definition_is_consistent() {
        Cli::command().debug_assert();
    }

    #[test]
    fn reference_pages_are_what_the_command_line_says() {
        cdm_cli_reference::check("cdm", Cli::command()).expect("fresh");
    }

    /// Command lines of a document: in a line of their own, or between backquotes.
    fn commands_in(text: &str) -> Vec<String> {
        let indented = text.lines().filter_map(|line| line.strip_prefix("    "));
        let quoted = text.split('`').skip(1).step_by(2);
        indented
            .chain(quoted)
            .map(|line| line.trim_start_matches("time "))
            .filter_map(|line| {
                let line = line.strip_prefix("ci/").unwrap_or(line);
                line.strip_prefix("just ").map(str::to_owned)
            })
            .collect()
    }

    fn documents(folder: &Path) -> Vec<PathBuf> {
        let mut found = Vec::new();
        for entry in fs::read_dir(folder).expect("a folder").flatten() {
            let path = entry.path();
            if path.is_dir() {
                found.extend(documents(&path));
            } else if path.extension().is_some_and(|ext| ext == "md") {
                found.push(path);
            }
        }
        found
    }

    #[test]
    fn every_recipe_that_a_document_shows_is_understood() {
        let repo = Path::new(env!("CARGO_MANIFEST_DIR")).join("../..");
        let mut files = vec![repo.join("README.md")];
        for folder in ["docs", "qemu", "images", "ci"] {
            files.extend(documents(&repo.join(folder)));
        }
        let mut seen = 0;
        for file in files {
            let text = fs::read_to_string(&file).expect("a document");
            for command in commands_in(&text) {
                let words = shlex::split(&command).expect("closed quotes");
                // Bare or with an option of just itself, it names no recipe.
                if words.first().is_none_or(|word| word.starts_with('-')) {
                    continue;
                }
                seen += 1;
                let parsed = Cli::try_parse_from(std::iter::once("cdm".to_owned()).chain(words));
                if let Err(error) = parsed {
                    let help = error.kind() == clap::error::ErrorKind::DisplayHelp;
                    assert!(help, "{}: just {command}: {error}", file.display());
                }
            }
        }
        assert!(seen > 5, "only {seen} commands were recognised");
    }

    #[test]
    fn commands_are_found_in_lines_and_in_quotes() {
        let text =
            "Run `ci/just test` or\n\n    time ci/just run-vm --smp 2  # four\n\nnot just so.";
        assert_eq!(commands_in(text), ["run-vm --smp 2  # four", "test"]);
    }

    #[test]
    fn every_subcommand_has_help_with_an_example() {
        for sub in Cli::command().get_subcommands_mut() {
            let help = sub.render_long_help().to_string();
            assert!(
                help.contains("Example"),
                "{} shows no example:\n{help}",
                sub.get_name()
            );
        }
    }
}
