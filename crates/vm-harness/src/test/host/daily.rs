// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest that somebody works in: what other processes can do in it, and what it remembers.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::super::run::Run;
use super::left::Leftovers;
use super::subject::{self, Ended, Subject, Typist};
use super::{run_vm, told};
use crate::build::MODULE_SOURCES;
use crate::command::run_logged_within;

/// Enough for several windows of the protocol, and no multiple of a frame.
const LARGE_BYTES: usize = (3 << 20) + 17;

fn done(run: &Run, left: &Leftovers, arguments: &[&str]) -> Result<Ended> {
    let ended = Subject::start(run, left, arguments)?.finish()?;
    ensure!(ended.code == Some(0), "{arguments:?}: {ended}");
    Ok(ended)
}

/// A file that nobody could guess, and a folder with one in it.
fn make_files(folder: &Path) -> Result<Vec<u8>> {
    let mut random = fastrand::Rng::with_seed(7);
    let mut bytes = vec![0; LARGE_BYTES];
    random.fill(&mut bytes);
    fs::write(folder.join("large"), &bytes)?;
    fs::set_permissions(folder.join("large"), fs::Permissions::from_mode(0o750))?;
    fs::create_dir_all(folder.join("tree/inner"))?;
    fs::write(folder.join("tree/inner/leaf"), "leaf\n")?;
    Ok(bytes)
}

pub fn second_shell(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    told(
        &Subject::start(run, &left, &["shell", "true"])?.finish()?,
        &["no guest runs", "just run-vm"],
    )?;
    let logs = tempfile::tempdir_in(run.folder())?;
    let logs = logs.path().display().to_string();
    let line = "echo up; until [ -e /root/enough ]; do sleep 0.1; done; echo over";
    let mut first = Subject::start(run, &left, &run_vm(&["--exec", line, "--keep-logs", &logs]))?;
    first.wait_for_line("up")?;

    let command = ["shell", "echo out; echo err >&2; cat; exit 5"];
    let mut second = Subject::start(run, &left, &command)?;
    second.write("in\n")?;
    let ended = second.finish()?;
    ensure!(
        ended.code == Some(5),
        "the status is not the command's: {ended}"
    );
    ensure!(ended.stdout == "out\nin\n", "{ended}");
    ensure!(ended.stderr.contains("err\n"), "{ended}");
    copies(run, &left)?;
    // A command of a shell that is gone does not go on.
    let mut forgotten = Subject::start(run, &left, &["shell", "echo runs; exec sleep 4321"])?;
    forgotten.wait_for_line("runs")?;
    drop(forgotten);
    let script = "while ps | grep -q '[s]leep 4321'; do usleep 10000; done";
    done(run, &left, &["shell", script])?;

    done(run, &left, &["shell", "touch", "/root/enough"])?;
    let ended = first.finish()?;
    ensure!(
        ended.code == Some(0) && ended.stdout.ends_with("over\n"),
        "{ended}"
    );
    let ended = done(run, &left, &["logs", &logs])?;
    for who in ["console ", "qemu ", "backend0"] {
        // QEMU and a device that have nothing to complain of say nothing.
        let says_nothing = fs::metadata(format!("{logs}/{}.log", who.trim_end()))?.len() == 0;
        let said = ended.stdout.lines().any(|line| line.starts_with(who));
        ensure!(said != says_nothing, "{who}: {ended}");
    }
    ensure!(ended.stdout.contains("public device memory"), "{ended}");
    left.expect_none()
}

fn copies(run: &Run, left: &Leftovers) -> Result<()> {
    let folder = tempfile::tempdir_in(run.folder())?;
    let here = |name: &str| folder.path().join(name).display().to_string();
    let bytes = make_files(folder.path())?;
    done(run, left, &["cp", &here("large"), ":/tmp"])?;
    done(run, left, &["cp", ":/tmp/large", &here("back")])?;
    let back = fs::read(here("back")).context("no copy came back")?;
    ensure!(back == bytes, "{} bytes came back as others", bytes.len());
    let mode = fs::metadata(here("back"))?.permissions().mode() & 0o777;
    ensure!(mode == 0o750, "the copy has the mode {mode:o}");
    done(run, left, &["cp", &here("tree"), ":new"])?;
    done(run, left, &["cp", &here("tree"), ":new"])?;
    done(
        run,
        left,
        &[
            "cp",
            ":/root/new",
            folder.path().to_str().context("a path")?,
        ],
    )?;
    for leaf in ["new/inner/leaf", "new/tree/inner/leaf"] {
        let text = fs::read_to_string(here(leaf)).context("no copy of the folder")?;
        ensure!(text == "leaf\n", "{leaf} has '{text}'");
    }
    for (arguments, words) in [
        (["cp", ":/none", &here("x")], ["/none", "No such file"]),
        (["cp", &here("none"), ":"], ["none", "No such file"]),
        (
            ["cp", &here("large"), ":/none/x"],
            ["/none/x", "nonexistent"],
        ),
    ] {
        told(&Subject::start(run, left, &arguments)?.finish()?, &words)?;
    }
    Ok(())
}

pub fn history(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    let folder = tempfile::tempdir_in(run.folder())?;
    let history = folder.path().join("history");
    fs::write(&history, "echo earlier-$((40 + 2))\n")?;
    let mut typist = Typist::start(run, &left, &history, &run_vm(&[]))?;
    typist.wait_for("guest:~#")?;
    // The line before, as the key for it finds it.
    typist.keys("\x1b[A\r")?;
    typist.wait_for("earlier-42\r")?;
    typist.wait_for("guest:~#")?;
    typist.keys("echo later-$((40 + 2))\r")?;
    typist.wait_for("later-42\r")?;
    typist.wait_for("guest:~#")?;
    typist.keys("cdmctl resid\t-h | head -n 1\r")?;
    typist.wait_for("cdmctl residency ")?;
    typist.wait_for("Count the pages")?;
    typist.wait_for("guest:~#")?;
    typist.keys("exit\r")?;
    let ended = typist.finish()?;
    ensure!(ended.code == Some(0), "{ended}");
    let kept = fs::read_to_string(&history)?;
    ensure!(
        kept.ends_with("echo later-$((40 + 2))\ncdmctl residency -h | head -n 1\nexit\n")
            && kept.starts_with("echo earlier"),
        "what is kept: {kept}"
    );

    // What is typed in a guest that does not end well is kept, too.
    let mut typist = Typist::start(run, &left, &history, &run_vm(&[]))?;
    typist.wait_for("guest:~#")?;
    typist.keys("echo last-$((40 + 2))\r")?;
    typist.wait_for("last-42\r")?;
    let shown = |text: &str| Ok::<_, anyhow::Error>(fs::read_to_string(&history)?.contains(text));
    while !shown("echo last-")? {
        // The typist's own limit is what ends this.
        typist.keys("\r")?;
        typist.wait_for("guest:~#")?;
    }
    typist.keys("\x1d")?;
    typist.finish()?;
    left.expect_none()
}

/// What a reload may take, and where the host is busy elsewhere: as long as the guest took to boot,
/// unless that was built first.
const RELOAD_LIMIT: Duration = Duration::from_secs(5);
const BUSY_LIMIT: Duration = Duration::from_secs(60);

pub fn reloaded_driver(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    let line = "cdmctl info > /dev/null && echo up; until [ -e /root/enough ]; do sleep 0.1; done; \
                dmesg | grep -c 'device memory at'; cat /sys/module/cdm/parameters/max_order";
    let arguments = ["--exec", line, "--module-param", "max_order=0"];
    let began = Instant::now();
    let mut guest = Subject::start(run, &left, &run_vm(&arguments))?;
    guest.wait_for_line("up")?;
    let limit = began
        .elapsed()
        .clamp(RELOAD_LIMIT, BUSY_LIMIT)
        .as_secs_f64();
    let turn = ["dev", "--once", "moves::overlapping_ranges_both_ways"];
    let scenario = Subject::start(run, &left, &turn)?.finish()?;
    ensure!(scenario.code == Some(0), "{scenario}");
    ensure!(
        scenario.stdout.contains("\nok "),
        "no scenario ran: {scenario}"
    );
    let reloaded = scenario.stderr.split("reloaded in ").nth(1);
    let seconds: f64 = reloaded
        .and_then(|rest| rest.split(' ').next()?.parse().ok())
        .with_context(|| format!("it does not say how long it took: {scenario}"))?;
    ensure!(
        seconds < limit,
        "{seconds} s for a reload, not {limit}: {scenario}"
    );
    let failed = Subject::start(run, &left, &["dev", "--once", "--exec", "exit 3"])?.finish()?;
    ensure!(
        failed.code == Some(3) && failed.stderr.contains("IT FAILED"),
        "{failed}"
    );
    // As long as somebody has a device open, the driver stays.
    let mut holder = Subject::start(run, &left, &["shell", "exec 3< /dev/cdm0; echo holds; cat"])?;
    holder.wait_for_line("holds")?;
    told(
        &Subject::start(run, &left, &["dev", "--once", "--exec", "true"])?.finish()?,
        &["cannot be taken out", "has a device open"],
    )?;
    holder.finish()?;
    done(run, &left, &["shell", "touch /root/enough"])?;
    let ended = guest.finish()?;
    // Loaded three times, with the parameter that it had at first.
    ensure!(ended.stdout.ends_with("3\n0\n"), "{ended}");
    left.expect_none()
}

pub fn editor(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    let folder = tempfile::tempdir_in(run.folder())?;
    let out = folder.path().display().to_string();
    let ended = done(run, &left, &["ide", "--out", &out])?;
    let project: Value = serde_json::from_str(&fs::read_to_string(ended.stdout.trim_end())?)?;
    let crates = project["crates"].as_array().context("no crates")?;
    for one in crates {
        let root = one["root_module"].as_str().context("no root")?;
        ensure!(Path::new(root).is_file(), "there is no {root}");
    }
    let driver = crates.iter().find(|one| one["display_name"] == "cdm");
    let driver = driver.context("the driver is not among the crates")?;
    let bindings = driver["env"]["CDM_BINDINGS"].as_str().unwrap_or_default();
    ensure!(Path::new(bindings).is_file(), "there is no '{bindings}'");
    let include = driver["source"]["include_dirs"].as_array();
    let include: Vec<&str> = include
        .into_iter()
        .flatten()
        .filter_map(Value::as_str)
        .collect();
    for source in MODULE_SOURCES {
        for file in crate::cache::files_below(&run.ctx().repo.join(source))? {
            let is_rust = file.extension().is_some_and(|ending| ending == "rs");
            let is_named = include.iter().any(|folder| file.starts_with(folder));
            ensure!(!is_rust || is_named, "nobody names {}", file.display());
        }
    }
    let standard = project["sysroot_src"].as_str().unwrap_or_default();
    let core = Path::new(standard).join("core/src/lib.rs");
    ensure!(core.is_file(), "there is no {}", core.display());
    let settings = fs::read_to_string(folder.path().join(".vscode/settings.json"))?;
    ensure!(settings.contains("rust-project.json"), "{settings}");
    left.expect_none()
}

/// A check of every crate in a folder of its own, which may be empty.
const CHECK_LIMIT: Duration = Duration::from_secs(1800);

pub fn editor_check(run: &Run) -> Result<()> {
    let left = Leftovers::watch()?;
    let mut check = subject::command(run, &left, &["ide", "--check"])?;
    let log = run.log("host-ide-check");
    let mut messages = Vec::new();
    run_logged_within(CHECK_LIMIT, &mut check, "ide --check", &log, |line| {
        // What is no message is for people, and goes to standard error.
        messages.extend(serde_json::from_str::<Value>(line));
    })?;
    let crates = run.ctx().repo.join("crates");
    for folder in fs::read_dir(&crates).context("no crates")? {
        let manifest = folder?.path().join("Cargo.toml");
        let is_told = messages.iter().any(|message| {
            let path = message["manifest_path"].as_str();
            message["reason"] == "compiler-artifact" && path.map(Path::new) == Some(&*manifest)
        });
        ensure!(is_told, "nothing is said of {}", manifest.display());
    }
    let last = messages.last().context("no message")?;
    ensure!(
        last["reason"] == "build-finished" && last["success"] == true,
        "the last message is {last}"
    );
    left.expect_none()
}
