// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Whether an image does what an Indexed Job asks of it, without an engine for containers: unpacked,
//! entered with bubblewrap, and held to what a careful cluster allows. Without a network and with
//! the cache's products on a read-only file system nothing can be fetched or built in there.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::contents::{CACHE, REPO, WRITTEN};
use super::layout::Layout;
use crate::build::{BuildKind, KernelChoice};
use crate::cache;
use crate::command::run_logged_within;
use crate::context::Context;

/// Indices of the Job.
const COMPLETIONS: usize = 3;
/// The Job's command, in the project.
const ENTRY: &str = "ci/kubernetes/shard";
/// What each index does, as in `ci/kubernetes/soak.yaml` but for some seconds.
const WORK: [&str; 5] = ["soak", "moves", "--seed", "1", "--resume"];
const HOURS: &str = "0.002";
/// What one of them does when its pod has moved: it goes on, behind what is done.
const MORE_HOURS: &str = "0.004";
const GOES_ON: &str = ": done before";
/// Where results go, in the container.
const RESULTS: &str = "/tmp/results";
/// Longest that one start may take: some guests without KVM, on the debug build.
const LIMIT: Duration = Duration::from_secs(1800);
/// A user that the image does not know.
const USER: &str = "1000";
/// Room for the unpacked image.
const NEEDED_MIB: u64 = 4500;

/// What umoci makes of an image's configuration (runtime-spec).
#[derive(Debug, Deserialize)]
struct Bundle {
    process: Process,
}

#[derive(Debug, Deserialize)]
struct Process {
    args: Vec<String>,
    env: Vec<String>,
    cwd: String,
}

/// Unpacks the image and runs each index.
pub fn run(
    ctx: &Context,
    layout: &Layout,
    kernel: &KernelChoice,
    build: BuildKind,
) -> Result<ExitCode> {
    cache::require_space(&ctx.cache, NEEDED_MIB, "unpacking the image")?;
    let folder = tempfile::tempdir_in(&ctx.cache).context("cannot make a folder in the cache")?;
    let bundle = folder.path().join("bundle");
    {
        let _task = ctx.progress.task("unpacking the image", None);
        layout.unpack(ctx, &bundle)?;
    }
    let text = fs::read(bundle.join("config.json")).context("umoci wrote no config.json")?;
    let process = serde_json::from_slice::<Bundle>(&text)
        .context("cannot understand umoci's config.json")?
        .process;
    let entry = format!("/{REPO}/ci/just");
    ensure!(
        process.args == [entry.clone()],
        "the entry point is {:?}, not {entry}",
        process.args
    );
    let start = |index: usize, hours: &str, expected: &str| -> Result<bool> {
        let work = folder.path().join(index.to_string());
        let mut command = container(&bundle.join("rootfs"), &process, &work)?;
        command
            .args(["--setenv", "JOB_COMPLETION_INDEX", &index.to_string()])
            .args(["--", &format!("/{REPO}/{ENTRY}"), &COMPLETIONS.to_string()])
            .args(WORK)
            .args(["--hours", hours])
            .args(["--kernel", &kernel.to_string()])
            .args(["--build", &build.to_string()])
            .args(["--keep-logs", RESULTS]);
        let what = format!("index {index} of {COMPLETIONS}, {hours} hours");
        one(ctx, &mut command, &what, expected)
    };
    let mut good = true;
    for index in 0..COMPLETIONS {
        good &= start(index, HOURS, " draws")?;
    }
    good &= start(0, MORE_HOURS, GOES_ON)?;
    Ok(if good {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// Starts a container, and tells how it ended. Whether well, and with what is expected in a line.
fn one(ctx: &Context, command: &mut Command, what: &str, expected: &str) -> Result<bool> {
    let log = ctx.logs().join("image-check.log");
    let task = ctx.progress.task(what, Some(&log));
    let began = Instant::now();
    let mut said = String::new();
    let ended = run_logged_within(LIMIT, command, what, &log, |line| {
        task.set_detail(line.trim());
        if line.contains(expected) {
            line.trim().clone_into(&mut said);
        }
    });
    drop(task);
    let ended = ended.and_then(|()| {
        ensure!(
            !said.is_empty(),
            "it did not say '{expected}'; log: {}",
            log.display()
        );
        Ok(())
    });
    let took = began.elapsed().as_secs();
    match &ended {
        Ok(()) => println!("{what}: {said} ({took} s)"),
        Err(error) => println!("{what}: FAILED ({took} s)\n{error:#}"),
    }
    Ok(ended.is_ok())
}

/// A container as the Job's security context wants it, but for its command: another user without
/// capabilities, a root that cannot be written to, no namespaces of its own, and no network.
fn container(rootfs: &Path, process: &Process, work: &Path) -> Result<Command> {
    let mut command = Command::new("bwrap");
    if nix::unistd::geteuid().is_root() {
        // The toolbox covers parts of root's /proc, and then the kernel lets no plain user have a
        // new one. This one is whole.
        command = Command::new("unshare");
        command.args(["--mount", "--pid", "--fork", "--kill-child", "--mount-proc"]);
        command.args(["--", "bwrap"]);
    }
    command
        .args(["--unshare-all", "--unshare-user", "--disable-userns"])
        .args(["--die-with-parent", "--clearenv"])
        .args(["--uid", USER, "--gid", USER])
        .arg("--ro-bind")
        .args([rootfs, Path::new("/")])
        .args(["--dev", "/dev", "--proc", "/proc", "--tmpfs", "/tmp"]);
    let written = WRITTEN.iter().map(|name| format!("/{CACHE}/{name}"));
    for place in written.chain([RESULTS.to_owned()]) {
        let volume: PathBuf = work.join(place.replace('/', "-"));
        cache::create_folder(&volume)?;
        command.arg("--bind").arg(volume).arg(place);
    }
    for variable in &process.env {
        let (name, value) = variable
            .split_once('=')
            .with_context(|| format!("'{variable}' is no variable"))?;
        command.args(["--setenv", name, value]);
    }
    command.args(["--chdir", &process.cwd]);
    Ok(command)
}
