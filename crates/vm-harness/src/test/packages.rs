// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What others install: crates, Debian's packages, and the licences they come under.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};

use super::e2e::{self, Session, plan};
use super::run::Run;
use super::table::Table;
use super::unit;
use crate::build::{self, BuildKind, KernelChoice};
use crate::cache;
use crate::command::run_logged;
use crate::deny::{self, Check};
use crate::package::debian;
use crate::vm::{FileCopy, VmSpec};

/// The stage `packages`.
pub const PACKAGES: Table = Table {
    name: "packages",
    rows: &[
        (
            "packages::each_file_has_a_licence_and_each_licence_its_text",
            licences,
        ),
        (
            "packages::licences_and_origin_of_crates_are_those_that_are_allowed",
            crates_of_others,
        ),
        (
            "packages::crates_have_all_that_a_registry_asks_for",
            publishable,
        ),
        (
            "packages::backend_that_cargo_installs_tells_its_capabilities",
            cargo_install,
        ),
        (
            "packages::debian_package_of_the_backend_has_what_qemu_looks_for",
            debian_backend,
        ),
        (
            "packages::driver_that_dkms_builds_from_its_debian_package_moves_a_process",
            debian_driver,
        ),
    ],
};

fn licences(run: &Run) -> Result<()> {
    let mut reuse = Command::new("reuse");
    reuse
        .arg("--root")
        .arg(&run.ctx().repo)
        .args(["lint", "--lines"]);
    run_logged(&mut reuse, "reuse lint", &run.log("packages-reuse"), |_| {})
        .context("a file says its licence in a line of its own, or REUSE.toml does")
}

fn crates_of_others(run: &Run) -> Result<()> {
    let log = run.log("packages-deny");
    deny::check(run.ctx(), &Check::OF_THE_LOCK_FILE, &log)
}

fn publishable(run: &Run) -> Result<()> {
    let to = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut cargo = unit::cargo(run.ctx());
    // What is in them is built by the other tests, and verifying would build it once more.
    cargo
        .args(["package", "--workspace", "--locked", "--no-verify"])
        .args(["--allow-dirty", "--target-dir"])
        .arg(to.path());
    let mut warnings = Vec::new();
    run_logged(
        &mut cargo,
        "cargo package",
        &run.log("packages-crates"),
        |line| {
            if line.trim_start().starts_with("warning:") {
                warnings.push(line.to_owned());
            }
        },
    )?;
    ensure!(
        warnings.is_empty(),
        "cargo package:\n{}",
        warnings.join("\n")
    );
    Ok(())
}

fn cargo_install(run: &Run) -> Result<()> {
    let to = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut cargo = Command::new("cargo");
    build::set_environment(&mut cargo, run.ctx(), "host");
    cargo
        .args(["install", "--locked", "--no-track"])
        .args(["--path", "crates/device-backend", "--root"])
        .arg(to.path());
    let log = run.log("packages-install");
    run_logged(&mut cargo, "cargo install", &log, |_| {})?;
    tells_capabilities(&to.path().join("bin/cdm-backend"))
}

/// What QEMU's conventions ask of a vhost-user program, before anything else.
fn tells_capabilities(program: &Path) -> Result<()> {
    let output = Command::new(program)
        .arg("--print-capabilities")
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    let text = String::from_utf8_lossy(&output.stdout);
    ensure!(
        output.status.success() && text.contains("\"type\""),
        "{} --print-capabilities: {}, {text}",
        program.display(),
        output.status
    );
    Ok(())
}

/// Debian's packages, which whoever asks first in a run builds.
fn debian_packages(run: &Run) -> Result<Vec<PathBuf>> {
    let to = run.folder().join("debian");
    if !to.is_dir() {
        let new = tempfile::tempdir_in(run.folder()).context("cannot make a temporary folder")?;
        debian::build(run.ctx(), new.path())?;
        // Whole, or not there.
        fs::rename(new.keep(), &to).with_context(|| format!("cannot make {}", to.display()))?;
    }
    cache::files_ending_in(&to, "deb")
}

/// Unpacks the package of Debian's whose name begins so.
fn unpacked(run: &Run, package: &str) -> Result<tempfile::TempDir> {
    let made = debian_packages(run)?;
    let wanted = made
        .iter()
        .find(|path| named(path).starts_with(package))
        .with_context(|| format!("there is no {package} among {made:?}"))?;
    let root = tempfile::tempdir().context("cannot make a temporary folder")?;
    let mut dpkg = Command::new("dpkg-deb");
    dpkg.arg("--extract").arg(wanted).arg(root.path());
    let log = run.log(&format!("packages-{package}"));
    run_logged(&mut dpkg, "dpkg-deb --extract", &log, |_| {})?;
    Ok(root)
}

fn named(path: &Path) -> String {
    path.file_name()
        .unwrap_or_default()
        .to_string_lossy()
        .into_owned()
}

fn debian_backend(run: &Run) -> Result<()> {
    let root = unpacked(run, "cdm-backend_")?;
    let description = root
        .path()
        .join("usr/share/qemu/vhost-user/50-cdm-backend.json");
    let text = fs::read_to_string(&description)
        .with_context(|| format!("cannot read {}", description.display()))?;
    let description: serde_json::Value = serde_json::from_str(&text)?;
    let binary = description["binary"].as_str().context("no 'binary'")?;
    tells_capabilities(&root.path().join(binary.trim_start_matches('/')))?;
    let page = root.path().join("usr/share/man/man1/cdm-backend.1.gz");
    ensure!(page.is_file(), "there is no {}", page.display());
    Ok(())
}

fn debian_driver(run: &Run) -> Result<()> {
    let kernel = build::kernel(run.ctx(), &KernelChoice::Public, BuildKind::Plain)?;
    let root = unpacked(run, "cdm-dkms_")?;
    let tree = tempfile::tempdir().context("cannot make a temporary folder")?;
    let release = fs::read_to_string(kernel.objects.join("include/config/kernel.release"))
        .context("the kernel's build tree does not say which release it is")?;
    let release = release.trim();
    let module = format!("cdm/{}", debian::version());
    let mut dkms = Command::new("dkms");
    dkms.args(["build", &module, "-k", release, "--arch", "x86_64"])
        .arg("--kernelsourcedir")
        .arg(&kernel.objects)
        .arg("--sourcetree")
        .arg(root.path().join("usr/src"))
        .arg("--dkmstree")
        .arg(tree.path());
    let log = run.log("packages-dkms");
    let built: PathBuf = tree
        .path()
        .join(&module)
        .join(release)
        .join("x86_64/module");
    run_logged(&mut dkms, "dkms build", &log, |_| {})?;
    let host = built.join("cdm.ko");
    ensure!(
        host.is_file(),
        "DKMS left no {}; log: {}",
        host.display(),
        log.display()
    );
    moves_a_process(run, VmSpec::new(kernel), host)
}

/// Has a driver in the place of the one that the guest has loaded, and move a process there and back.
fn moves_a_process(run: &Run, mut spec: VmSpec, host: PathBuf) -> Result<()> {
    /// Where it is in the guest.
    const BROUGHT: &str = "/root/cdm.ko";
    plan::one_device(&mut spec);
    spec.files.push(FileCopy {
        host,
        guest: BROUGHT.to_owned(),
    });
    let mut session = Session::new(run.ctx(), spec, run.folder().join("packages-dkms-guest"));
    session.text("rmmod cdm")?;
    session.text(&format!("insmod {BROUGHT}"))?;
    e2e::cdmctl::migrates_a_process(&mut session)?;
    session.judge_log()?;
    session.end()
}
