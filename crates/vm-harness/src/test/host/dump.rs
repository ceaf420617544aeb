// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a guest leaves that crashes or hangs: its memory, in a form that debuggers open.

mod debuggers;

use std::fs::{self, File};
use std::os::unix::fs::MetadataExt;
use std::path::Path;

use anyhow::{Context as _, Result, ensure};
use object::elf::{self, FileHeader64};
use object::endian::LittleEndian as Le;
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Object as _, ObjectSymbol as _, ReadCache, ReadRef as _};

use super::super::run::Run;
use super::left::Leftovers;
use super::subject::Subject;
use super::{run_vm, told};
use crate::build::{self, BuildKind, Kernel, KernelChoice};
use crate::vm::MEMORY_DUMP;

/// Memory of the small machine here, and of its device.
const GUEST_BYTES: u64 = 512 << 20;
const DEVICE_BYTES: u64 = 256 << 20;
/// Most that its dump takes of the disk: what a guest has used that has just booted.
const DISK_BYTES_MAX: u64 = 256 << 20;
/// Longest banner of a kernel that is read.
const BANNER_MAX: u64 = 512;

/// The disk that a guest's logs go to.
enum Disk {
    /// The one that all else is on.
    Usual,
    /// One that is as good as full.
    Small,
}

/// A kernel that panics.
pub fn of_a_panic(run: &Run) -> Result<()> {
    let line = "echo up; echo c > /proc/sysrq-trigger; sleep 600";
    let words = [
        "panicked",
        "sysrq triggered crash",
        "memory.elf",
        "open it: gdb",
        "repeat: ci/just run-vm",
    ];
    of_a_guest(run, Disk::Usual, &["--exec", line], &words, |logs| {
        has_a_dump(run, logs)
    })
}

/// A command that would run for ever in a guest that lives.
pub fn of_a_hanging_command(run: &Run) -> Result<()> {
    let options = ["--time-limit", "3", "--exec", "sleep 600"];
    let words = ["'sleep 600' still runs after 3 s", "memory.elf"];
    of_a_guest(run, Disk::Usual, &options, &words, |logs| {
        has_a_dump(run, logs)?;
        let console = fs::read_to_string(logs.join("console.log"))?;
        for words in ["Show backtrace of all active CPUs", "Show Blocked State"] {
            ensure!(
                console.contains(&format!("sysrq: {words}")),
                "the console does not end with '{words}':\n{console}"
            );
        }
        Ok(())
    })
}

/// A guest in which nothing answers any more: a kernel that panics and stays where it is.
pub fn of_a_silent_guest(run: &Run) -> Result<()> {
    let line = "echo 0 > /proc/sys/kernel/panic; echo c > /proc/sysrq-trigger";
    let options = ["--silence-limit", "30", "--exec", line];
    let words = [
        "the guest hangs: it said nothing for 30 s",
        "sysrq triggered crash",
        "memory.elf",
    ];
    of_a_guest(run, Disk::Usual, &options, &words, |logs| {
        has_a_dump(run, logs)
    })
}

/// Logs on a disk that is as good as full.
pub fn without_room(run: &Run) -> Result<()> {
    let line = "echo c > /proc/sysrq-trigger; sleep 600";
    let words = ["panicked", "no memory dump", "MiB free"];
    // Its logs go with its disk.
    of_a_guest(run, Disk::Small, &["--exec", line], &words, |_| Ok(()))
}

/// A guest that comes to no good end with these options. The message has these words, its folder of
/// logs is as expected, and nothing else is left.
fn of_a_guest(
    run: &Run,
    disk: Disk,
    options: &[&str],
    words: &[&str],
    expect: impl FnOnce(&Path) -> Result<()>,
) -> Result<()> {
    let left = Leftovers::watch()?;
    let folder = tempfile::tempdir_in(run.folder())?;
    let logs = folder.path().display().to_string();
    let arguments = [&run_vm(&["--keep-logs", &logs]), options].concat();
    let subject = match disk {
        Disk::Usual => Subject::start(run, &left, &arguments)?,
        Disk::Small => Subject::start_with_small_disk(run, &left, folder.path(), &arguments)?,
    };
    told(&subject.finish()?, words)?;
    expect(folder.path())?;
    left.expect_none()
}

/// The dump, and all that helps to understand it.
fn has_a_dump(run: &Run, logs: &Path) -> Result<()> {
    has_what_helps(logs)?;
    names_the_kernel(run, logs)
}

/// All in one folder: what the guest and the device said, what was run, and how to run it again.
fn has_what_helps(logs: &Path) -> Result<()> {
    for file in [
        "console.log",
        "backend0.log",
        "commands.txt",
        "kernel.config",
        "memory.txt",
        "repeat.txt",
    ] {
        let length = fs::metadata(logs.join(file)).map_or(0, |meta| meta.len());
        ensure!(length > 0, "no {file} in {}", logs.display());
    }
    let repeat = fs::read_to_string(logs.join("repeat.txt"))?;
    ensure!(repeat.starts_with("ci/just run-vm "), "{repeat}");
    Ok(())
}

/// The dump is of all memory, takes no more of the disk than is in use, and shows the kernel's banner
/// at its virtual address, by its own table of segments and in debuggers.
fn names_the_kernel(run: &Run, logs: &Path) -> Result<()> {
    let dump = logs.join(MEMORY_DUMP);
    let meta = fs::metadata(&dump).with_context(|| format!("no {}", dump.display()))?;
    let on_disk = meta.blocks() * 512;
    ensure!(
        meta.len() >= GUEST_BYTES + DEVICE_BYTES && on_disk <= DISK_BYTES_MAX,
        "{} bytes, {on_disk} of them on the disk",
        meta.len()
    );
    let kernel = build::kernel(run.ctx(), &KernelChoice::Public, BuildKind::Plain)?;
    let console = fs::read_to_string(logs.join("console.log"))?;
    let said = console
        .lines()
        .find_map(|line| Some(&line[line.find("Linux version ")?..]))
        .context("the kernel did not say what it is")?
        .trim_end();
    let banner = banner(&dump, &kernel)?;
    ensure!(
        banner.trim_end() == said,
        "the dump has '{banner}', and the console '{said}'"
    );
    let release = said.split_whitespace().nth(2).unwrap_or_default();
    let release = format!("\"{release}\"");
    let in_gdb = debuggers::in_gdb(&dump, &kernel)?;
    shows("gdb", &in_gdb, &[said, "LWP 2", "init_uts_ns"])?;
    let in_drgn = debuggers::in_drgn(&dump, &kernel)?;
    shows("drgn", &in_drgn, &[&release, said, r"b'cdm\x00'"])
}

fn shows(debugger: &str, shown: &str, expected: &[&str]) -> Result<()> {
    for words in expected {
        ensure!(
            shown.contains(words),
            "{debugger} does not show '{words}': {shown}"
        );
    }
    Ok(())
}

/// What stands in the dump where the kernel has its banner.
fn banner(dump: &Path, kernel: &Kernel) -> Result<String> {
    let vmlinux = ReadCache::new(File::open(kernel.objects.join("vmlinux"))?);
    let address = ElfFile64::<Le, _>::parse(&vmlinux)?
        .symbols()
        .find(|symbol| symbol.name_bytes() == Ok(b"linux_banner"))
        .context("the kernel has no linux_banner")?
        .address();
    let dump = ReadCache::new(File::open(dump)?);
    let header = FileHeader64::<Le>::parse(&dump)?;
    let offset = header
        .program_headers(Le, &dump)?
        .iter()
        .filter(|segment| segment.p_type(Le) == elf::PT_LOAD)
        .find_map(|segment| {
            let at = address.checked_sub(segment.p_vaddr(Le))?;
            (at < segment.p_filesz(Le)).then(|| segment.p_offset(Le) + at)
        })
        .with_context(|| format!("the dump has nothing at {address:#x}"))?;
    let bytes = dump
        .read_bytes_at(offset, BANNER_MAX)
        .ok()
        .context("the dump ends there")?;
    let text = bytes.split(|byte| *byte == 0).next().unwrap_or_default();
    Ok(String::from_utf8_lossy(text).into_owned())
}
