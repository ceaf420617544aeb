// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The memory of a guest that crashed or hangs, as a file that debuggers open.
//!
//! QEMU writes all memory that the guest can address, its own and that of the devices, as an
//! ELF file into a pipe. What comes out of the pipe is written with holes for zeros, so the file
//! takes as much of the disk as the guest had used. Then the kernel's own view of that memory is
//! added, from its page tables, so that gdb needs nothing but the kernel's symbols.

mod kernel_map;
mod sparse;

use std::fs;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicUsize, Ordering};
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use nix::sys::stat::Mode;
use nix::unistd::mkfifo;
use serde_json::json;

use super::qemu;
use super::qmp::Qmp;
use super::spec::{ByteSize, VmSpec};
use crate::cache;

/// Name of the dump in the folder of a guest's logs.
pub const FILE: &str = "memory.elf";
/// Name of the file beside it that says how to open it, or why there is none.
pub const NOTE: &str = "memory.txt";

/// Most that a dump takes of the disk.
const BYTES_MAX: u64 = 4 << 30;
/// Room on the disk that a dump leaves to others.
const SPARE_BYTES: u64 = 2 << 30;
/// Room without which a dump is not begun: a small guest's.
const BYTES_MIN: u64 = 256 << 20;
/// Address space that is written whole. Zeros go through the pipe, too, a gigabyte in a second or
/// two; of a larger machine the devices' memory stays away.
const WHOLE_BYTES_MAX: u64 = 16 << 30;
/// What QEMU may take. Less than the silence after which a guest counts as dead.
const LIMIT: Duration = Duration::from_secs(150);

/// QEMU's machine puts memory beyond 2 GiB behind the addresses below 4 GiB once there is more of it
/// than this.
const LOW_MEMORY_MAX: u64 = 0xb000_0000;

/// Dumps that one process takes at most: where more guests crash, they have a cause in common.
const DUMPS_MAX: usize = 5;

/// Dumps that this process has begun.
static BEGUN: AtomicUsize = AtomicUsize::new(0);

/// How to dump one machine, at most once.
#[derive(Clone, Debug)]
pub struct Dump {
    file: PathBuf,
    note: PathBuf,
    pipe: PathBuf,
    vmlinux: PathBuf,
    /// End of the guest's own memory, where that of the devices stays away.
    end: Option<u64>,
    wanted: bool,
    begun: Arc<AtomicBool>,
}

impl Dump {
    /// The dump of this machine: the file goes into `logs`.
    pub fn new(spec: &VmSpec, run: &Path, logs: &Path) -> Self {
        let devices = spec.device_memory.0 * u64::from(spec.devices);
        let whole = spec.memory.0 + devices <= WHOLE_BYTES_MAX;
        Self {
            file: logs.join(FILE),
            note: logs.join(NOTE),
            pipe: run.join("memory.pipe"),
            vmlinux: spec.kernel.objects.join("vmlinux"),
            end: (!whole).then(|| end_of_memory(spec.memory)),
            wanted: spec.dump,
            begun: Arc::default(),
        }
    }

    /// Takes the dump, unless somebody has, and leaves a note on it. The guest stands still from now
    /// on.
    pub fn take(&self, qmp: &mut Qmp) {
        if !self.wanted || self.begun.swap(true, Ordering::AcqRel) {
            return;
        }
        let text = match self.write(qmp) {
            Ok(text) => text,
            Err(error) => {
                // Half a dump is worse than none.
                let _ = fs::remove_file(&self.file);
                format!("no memory dump: {error:#}")
            }
        };
        // The note is for people; without it the dump is as good.
        let _ = fs::write(&self.note, text + "\n");
    }

    fn write(&self, qmp: &mut Qmp) -> Result<String> {
        let folder = self.file.parent().context("a dump has a folder")?;
        ensure!(
            BEGUN.fetch_add(1, Ordering::Relaxed) < DUMPS_MAX,
            "{DUMPS_MAX} guests of this run have left theirs, which is enough"
        );
        let room = room(cache::free_bytes(folder)?)?;
        // A guest that has crashed is stopped already.
        qmp.execute("stop", json!(null))?;
        mkfifo(&self.pipe, Mode::S_IRUSR | Mode::S_IWUSR)
            .with_context(|| format!("cannot make {}", self.pipe.display()))?;
        let pipe = sparse::Pipe::open(&self.pipe)?;
        let mut arguments = json!({
            "paging": false,
            "protocol": format!("file:{}", self.pipe.display()),
            "detach": true,
            "format": "elf",
        });
        if let Some(end) = self.end {
            arguments["begin"] = json!(0);
            arguments["length"] = json!(end);
        }
        let deadline = Instant::now() + LIMIT;
        qmp.execute("dump-guest-memory", arguments)?;
        let copied = pipe.copy(&self.file, room, deadline);
        let ended = qmp.wait_event("DUMP_COMPLETED", Duration::from_secs(10));
        let copied = copied?;
        let ended = ended?.context("QEMU does not say that the dump is complete")?;
        if let Some(error) = ended.get("error") {
            bail!("QEMU cannot dump the memory: {error}");
        }
        let devices = match self.end {
            None => "",
            Some(_) => ", without the devices' memory, which is too large",
        };
        let mapped = match kernel_map::add(&self.file, &self.vmlinux) {
            Ok(segments) => format!("{segments} mappings of the kernel"),
            Err(error) => format!("no mappings of the kernel: {error:#}"),
        };
        let gdb = [
            self.vmlinux.display().to_string(),
            self.file.display().to_string(),
        ];
        Ok(format!(
            "{}: {} MiB of memory{devices}, {} MiB of disk; {mapped}\nopen it: {}",
            self.file.display(),
            copied.length >> 20,
            copied.written >> 20,
            qemu::shell_line("gdb", &gdb)
        ))
    }
}

/// How much of the disk a dump may take.
fn room(free_bytes: u64) -> Result<u64> {
    let room = free_bytes.saturating_sub(SPARE_BYTES).min(BYTES_MAX);
    ensure!(
        room >= BYTES_MIN,
        "the disk of the logs has {} MiB free, and {} are wanted",
        free_bytes >> 20,
        (SPARE_BYTES + BYTES_MIN) >> 20
    );
    Ok(room)
}

/// The address behind the guest's own memory.
fn end_of_memory(memory: ByteSize) -> u64 {
    match memory.0 <= LOW_MEMORY_MAX {
        true => memory.0,
        false => (4 << 30) + memory.0 - (2 << 30),
    }
}

#[cfg(test)]
mod tests {
    use super::super::testing;
    use super::*;

    #[test]
    fn dump_is_bounded_by_what_the_disk_can_spare() {
        assert_eq!(room(100 << 30).expect("plenty"), BYTES_MAX);
        assert_eq!(room((2 << 30) + (300 << 20)).expect("enough"), 300 << 20);
        let error = room(2 << 30).expect_err("too little").to_string();
        assert!(error.contains("2048 MiB free"), "{error}");
    }

    #[test]
    fn memory_of_devices_stays_away_where_it_is_too_large() {
        let mut spec = testing::spec();
        let end = |spec: &VmSpec| Dump::new(spec, "/run".as_ref(), "/logs".as_ref()).end;
        assert_eq!(end(&spec), None);
        (spec.devices, spec.device_memory) = (2, ByteSize(64 << 30));
        assert_eq!(end(&spec), Some(1 << 30));
        spec.memory = ByteSize(4 << 30);
        assert_eq!(end(&spec), Some(6 << 30));
    }
}
