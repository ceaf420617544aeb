// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What `ci/just` does on a machine where something is missing or goes wrong.
//!
//! The machine is the real one but for the programs in a folder in front of
//! PATH: those stand for package tools that fail, for a full disk, and for a
//! toolbox of two files.

use std::fs;
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output, Stdio};
use std::thread;
use std::time::{Duration, Instant};

/// Longer than any step here takes, even on a machine that is busy elsewhere.
const PATIENCE: Duration = Duration::from_secs(20);

fn repo() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
        .ancestors()
        .nth(2)
        .expect("two parents")
}

struct Machine {
    dir: tempfile::TempDir,
}

impl Machine {
    /// A machine that allows namespaces and has the package tools.
    fn new() -> Self {
        let machine = Self {
            dir: tempfile::tempdir().expect("temporary folder"),
        };
        fs::create_dir(machine.dir.path().join("programs")).expect("made");
        // Runs the command behind its options, outside of any namespace.
        machine.program(
            "unshare",
            "while [ \"${1#-}\" != \"$1\" ]; do shift; done; exec \"$@\"",
        );
        machine.program("id", "case $1 in -u) echo 0 ;; *) echo root ;; esac");
        machine.program("apt-get", "exit 1");
        machine.program("podman", "exit 1");
        machine.program("docker", "exit 1");
        machine
    }

    fn program(&self, name: &str, script: &str) {
        let path = self.dir.path().join("programs").join(name);
        fs::write(&path, format!("#!/bin/sh\n{script}\n")).expect("written");
        fs::set_permissions(&path, fs::Permissions::from_mode(0o755)).expect("executable");
    }

    fn cache(&self) -> PathBuf {
        self.dir.path().join("cache")
    }

    fn command(&self, args: &[&str]) -> Command {
        let path = format!(
            "{}:{}",
            self.dir.path().join("programs").display(),
            std::env::var("PATH").expect("a PATH")
        );
        let mut command = Command::new(repo().join("ci/just"));
        command
            .args(args)
            .env("PATH", path)
            .env("CDM_CACHE", self.cache())
            .env_remove("CDM_DEBIAN_MIRROR")
            // The machine is outside of any toolbox, unlike this test.
            .env_remove("CDM_TOOLBOX")
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        command
    }

    /// The key of the toolbox that the clone asks for.
    fn toolbox_key(&self) -> String {
        let output = self.command(&["--toolbox-key"]).output().expect("starts");
        let key = String::from_utf8(output.stdout).expect("a key");
        key.trim_end().to_owned()
    }

    /// What is in the cache's folder for toolboxes.
    fn toolboxes(&self) -> Vec<String> {
        fs::read_dir(self.cache().join("toolbox"))
            .expect("made")
            .map(|entry| {
                entry
                    .expect("listed")
                    .file_name()
                    .to_string_lossy()
                    .into_owned()
            })
            .collect()
    }
}

/// A toolbox of as much as the bootstrap looks at. `$out` is its folder.
const MAKE_TOOLBOX: &str = "for out; do :; done
case $out in http*) shift $(($# - 2)); out=$1 ;; esac
mkdir -p $out/etc $out/usr/bin";

fn assert_refused(output: &Output, parts: &[&str]) {
    let text = String::from_utf8_lossy(&output.stderr);
    assert_eq!(output.status.code(), Some(2), "{text}");
    for part in parts {
        assert!(text.contains(part), "'{part}' is not in: {text}");
    }
}

#[test]
fn a_cache_path_that_kbuild_cannot_work_in_is_refused() {
    let machine = Machine::new();
    let output = machine
        .command(&["--cdm", "doctor"])
        .env("CDM_CACHE", machine.dir.path().join("with space"))
        .output()
        .expect("starts");
    assert_refused(&output, &["with space", "CDM_CACHE"]);
}

#[test]
fn a_cache_that_cannot_be_written_is_refused() {
    let output = Machine::new()
        .command(&["--cdm", "doctor"])
        .env("CDM_CACHE", "/proc/nowhere")
        .output()
        .expect("starts");
    assert_refused(&output, &["cannot write to /proc/nowhere", "CDM_CACHE"]);
}

#[test]
fn a_machine_without_a_home_is_told_what_to_set() {
    let output = Machine::new()
        .command(&["--cdm", "doctor"])
        .env_remove("CDM_CACHE")
        .env_remove("XDG_CACHE_HOME")
        .env_remove("HOME")
        .output()
        .expect("starts");
    assert_refused(&output, &["set CDM_CACHE"]);
}

#[test]
fn too_little_disk_is_refused_before_anything_starts_with_both_numbers() {
    let machine = Machine::new();
    machine.program("df", "printf 'head\\nfs 1 1 2048000 1%% /\\n'");
    machine.program("mmdebstrap", "touch \"$CDM_CACHE/started\"");
    let output = machine
        .command(&["--cdm", "doctor"])
        .output()
        .expect("starts");
    assert_refused(&output, &["needs 11000 MiB", "2000 MiB free", "CDM_CACHE"]);
    assert!(!machine.cache().join("started").exists());
}

#[test]
fn a_plain_user_without_the_tools_gets_the_one_command_for_root() {
    let machine = Machine::new();
    machine.program(
        "id",
        "case $1 in -u) echo 1000 ;; *) echo nobody-here ;; esac",
    );
    let output = machine
        .command(&["--cdm", "doctor"])
        .output()
        .expect("starts");
    assert_refused(
        &output,
        &["as root, run: apt-get install mmdebstrap", "nobody-here"],
    );
}

#[test]
fn a_machine_without_namespaces_and_containers_is_told_so() {
    let machine = Machine::new();
    machine.program("unshare", "exit 1");
    let output = machine
        .command(&["--cdm", "doctor"])
        .output()
        .expect("starts");
    assert_refused(&output, &["neither namespaces", "podman", "sysctl "]);
}

#[test]
fn an_unreachable_archive_is_told_with_the_log_and_leaves_nothing() {
    let machine = Machine::new();
    machine.program(
        "mmdebstrap",
        &format!("{MAKE_TOOLBOX}; echo 'E: Failed to fetch InRelease'; exit 100"),
    );
    let output = machine
        .command(&["--cdm", "doctor"])
        .output()
        .expect("starts");
    assert_refused(&output, &["network", "CDM_DEBIAN_MIRROR", "toolbox.log"]);
    assert_eq!(machine.toolboxes(), Vec::<String>::new());
}

#[test]
fn a_kernel_series_that_left_the_archive_is_told_and_the_rest_goes_on() {
    let machine = Machine::new();
    machine.program(
        "mmdebstrap",
        &format!(
            "case $* in *linux-source-*)
                echo 'E: Unable to locate package linux-source-7.3'; exit 25 ;;
            esac
            {MAKE_TOOLBOX}"
        ),
    );
    let output = machine
        .command(&["--cdm", "doctor"])
        .output()
        .expect("starts");
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("linux-source-7.3 has left") && text.contains("--kernel PATH"),
        "{text}"
    );
    assert_eq!(machine.toolboxes().len(), 1, "{text}");
}

#[test]
fn an_interrupted_set_up_leaves_nothing_and_the_next_one_works() {
    let machine = Machine::new();
    machine.program(
        "mmdebstrap",
        &format!("{MAKE_TOOLBOX}; echo $$ > \"$CDM_CACHE/worker\"; exec sleep 1000"),
    );
    let mut child = machine
        .command(&["--cdm", "doctor"])
        .spawn()
        .expect("starts");
    let worker = wait_for(|| {
        let text = fs::read_to_string(machine.cache().join("worker")).ok()?;
        text.trim().parse::<i32>().ok()
    });
    let pid = i32::try_from(child.id()).expect("a pid");
    let terminate = nix::sys::signal::Signal::SIGTERM;
    nix::sys::signal::kill(nix::unistd::Pid::from_raw(pid), terminate).expect("sent");
    let status = child.wait().expect("ends");
    assert_eq!(status.code(), Some(143));
    assert_eq!(machine.toolboxes(), Vec::<String>::new());
    wait_for(|| (!is_running(worker)).then_some(()));

    machine.program("mmdebstrap", MAKE_TOOLBOX);
    let output = machine
        .command(&["--cdm", "doctor"])
        .output()
        .expect("starts");
    let names = machine.toolboxes();
    assert_eq!(
        names.len(),
        1,
        "{}",
        String::from_utf8_lossy(&output.stderr)
    );
    assert!(!names[0].contains("unfinished"));
}

/// Stands for the build of cdm, and says where it is built.
const BUILD_CDM: &str = "echo \"$CDM_TOOLBOX $CDM_REPO\" > \"$CDM_CACHE/built-in\"; exit 101";

#[test]
fn inside_the_right_toolbox_no_other_one_is_made_or_entered() {
    let machine = Machine::new();
    machine.program("mmdebstrap", MAKE_TOOLBOX);
    machine.program("cargo", BUILD_CDM);
    let key = machine.toolbox_key();
    assert_eq!(key.len(), 16, "{key}");
    let output = machine
        .command(&["--cdm", "doctor"])
        .env("CDM_TOOLBOX", &key)
        .env("CDM_REPO", "/some/other/clone")
        .output()
        .expect("starts");
    assert_refused(&output, &["cdm could not be built"]);
    assert_eq!(machine.toolboxes(), Vec::<String>::new());
    let built_in = fs::read_to_string(machine.cache().join("built-in")).expect("built");
    assert_eq!(
        built_in.trim_end(),
        format!("{key} {}", repo().canonicalize().expect("there").display())
    );
}

#[test]
fn inside_another_toolbox_the_right_one_is_made() {
    let machine = Machine::new();
    machine.program("mmdebstrap", MAKE_TOOLBOX);
    machine.program("cargo", BUILD_CDM);
    machine
        .command(&["--cdm", "doctor"])
        .env("CDM_TOOLBOX", "0123456789abcdef")
        .output()
        .expect("starts");
    assert_eq!(machine.toolboxes(), [machine.toolbox_key()]);
}

#[test]
fn just_is_fetched_once_and_then_found_in_the_cache() {
    let machine = Machine::new();
    // Stands for pip: installs a `just` that says what it was asked for.
    machine.program(
        "python3",
        "case $* in *--version*) exit 0 ;; esac
        echo fetched >> \"$CDM_CACHE/fetches\"
        while [ \"$1\" != --target ]; do shift; done
        mkdir -p \"$2/bin\"
        printf '#!/bin/sh\\necho \"just $*\"\\n' > \"$2/bin/just\"
        chmod +x \"$2/bin/just\"",
    );
    for _ in 0..2 {
        let output = machine
            .command(&["doctor", "--json"])
            .output()
            .expect("starts");
        let text = String::from_utf8_lossy(&output.stdout);
        assert!(text.trim_end().ends_with("doctor --json"), "{output:?}");
    }
    let fetches = fs::read_to_string(machine.cache().join("fetches")).expect("fetched");
    assert_eq!(fetches.lines().count(), 1);
}

#[test]
fn just_that_cannot_be_fetched_is_told_with_the_next_step() {
    let machine = Machine::new();
    machine.program(
        "python3",
        "case $* in *--version*) exit 0 ;; esac; echo 'Temporary failure in name resolution'; exit 1",
    );
    machine.program("cargo", "exit 101");
    let output = machine.command(&["doctor"]).output().expect("starts");
    assert_refused(&output, &["cannot fetch 'just'", "just.log"]);
}

/// Stands for the toolbox's entrance and for cargo in it: builds a `cdm` that wants a userland
/// for `--rootfs`, and says what it was told of it.
const ENTER: &str = r#"for word; do case $word in
    true) exit 0 ;;
    cargo)
        out=$(echo "$CDM_CACHE"/toolbox/*); out=$CDM_CACHE/cargo/${out##*/}/cdm/debug
        mkdir -p "$out"
        printf '#!/bin/sh\n[ -z "$CDM_ROOTFS_ASK" ] || case $* in *--rootfs*) exit 0 ;; *) exit 1 ;; esac
            echo "disk $CDM_ROOTFS, but $CDM_ROOTFS_WHY"\n' > "$out/cdm"
        chmod +x "$out/cdm"
        exit 0 ;;
    */bin/cdm-*)
        while [ "$1" != "$word" ]; do shift; done
        exec "$@" ;;
esac; done"#;

#[test]
fn userland_that_cannot_be_made_is_told_to_who_wants_it_and_leaves_nothing() {
    let machine = Machine::new();
    machine.program("bwrap", ENTER);
    machine.program("df", "printf 'head\\nfs 1 1 99999999 1%% /\\n'");
    machine.program(
        "mmdebstrap",
        &format!(
            "case $* in *--format=tar*)
                echo half; echo 'E: Failed to fetch InRelease' >&2; exit 100 ;;
            esac
            {MAKE_TOOLBOX}"
        ),
    );
    let run = |args: &[&str]| {
        let output = machine.command(args).output().expect("starts");
        let said = String::from_utf8_lossy(&output.stdout).into_owned();
        (said, String::from_utf8_lossy(&output.stderr).into_owned())
    };
    let (said, _) = run(&["--cdm", "run-vm"]);
    assert!(said.ends_with("/disk.img, but \n"), "{said}");
    assert!(!machine.cache().join("rootfs").exists(), "made unasked");

    let (said, told) = run(&["--cdm", "run-vm", "--rootfs", "debian"]);
    for text in [said, told] {
        for part in [
            "archive cannot be reached",
            "CDM_DEBIAN_MIRROR",
            "rootfs-debian.log",
        ] {
            assert!(text.contains(part), "'{part}' is not in: {text}");
        }
    }
    let left = fs::read_dir(machine.cache().join("rootfs")).expect("tried");
    assert_eq!(left.count(), 0);
}

#[test]
fn the_bootstrap_passes_shellcheck() {
    let output = Command::new("shellcheck")
        .args(["ci/just", ".ci/run"])
        .current_dir(repo())
        .output()
        .expect("shellcheck is part of the toolbox");
    assert!(
        output.status.success(),
        "{}",
        String::from_utf8_lossy(&output.stdout)
    );
}

/// A process that has ended and was not waited for runs no longer.
fn is_running(pid: i32) -> bool {
    fs::read_to_string(format!("/proc/{pid}/stat")).is_ok_and(|stat| !stat.contains(") Z "))
}

fn wait_for<T>(mut look: impl FnMut() -> Option<T>) -> T {
    let began = Instant::now();
    loop {
        if let Some(found) = look() {
            return found;
        }
        assert!(began.elapsed() < PATIENCE, "it did not happen in time");
        thread::sleep(Duration::from_millis(20));
    }
}
