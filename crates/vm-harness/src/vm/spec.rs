// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The machine that somebody wants, as a value.

use std::fmt;
use std::path::PathBuf;
use std::str::FromStr;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cdm_control_protocol::Fault;
use clap::ValueEnum;
use serde::{Deserialize, Serialize};

use super::accel::AccelChoice;
use super::disk::Disk;
use crate::build::{self, Kernel};
use crate::context::Context;

/// Most devices of one machine.
pub const DEVICES_MAX: u8 = 4;
/// Most virtual CPUs: the limit of the kernel configuration (`CONFIG_NR_CPUS`).
pub const CPUS_MAX: u8 = 16;
/// Least guest memory: kernel and initramfs with room to run something.
const MEMORY_MIN: ByteSize = ByteSize(128 << 20);

/// Silence after which a guest counts as dead, with a question unanswered and not
/// a byte on its console. A debug kernel under TCG on a busy host is quiet for half
/// a minute; nothing that still works is for six times that.
pub const SILENT_GUEST_LIMIT: Duration = Duration::from_secs(180);

/// A number of bytes, as people write it: `512M`, `2G`, `65536`.
#[derive(Clone, Copy, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct ByteSize(pub u64);

/// Suffixes with their factors, largest first.
const UNITS: [(char, u64); 4] = [
    ('T', 1 << 40),
    ('G', 1 << 30),
    ('M', 1 << 20),
    ('K', 1 << 10),
];

impl fmt::Display for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let exact = UNITS
            .iter()
            .find(|(_, factor)| self.0 != 0 && self.0.is_multiple_of(*factor));
        match exact {
            Some((unit, factor)) => write!(f, "{}{unit}", self.0 / factor),
            None => write!(f, "{}", self.0),
        }
    }
}

impl fmt::Debug for ByteSize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

impl FromStr for ByteSize {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let wrong =
            || format!("'{text}' is not a size: write a number with K, M, G or T, such as 512M");
        let number_end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (number, suffix) = text.split_at(number_end);
        let number: u64 = number.parse().map_err(|_| wrong())?;
        let suffix = suffix.to_ascii_uppercase();
        let unit = suffix
            .strip_suffix("IB")
            .or_else(|| suffix.strip_suffix('B'))
            .unwrap_or(&suffix);
        let factor = if unit.is_empty() && suffix.len() < 2 {
            1
        } else {
            UNITS
                .iter()
                .find(|(name, _)| unit.len() == 1 && unit.starts_with(*name))
                .map(|(_, factor)| *factor)
                .ok_or_else(wrong)?
        };
        let bytes = number
            .checked_mul(factor)
            .ok_or_else(|| format!("'{text}' is more than a machine can have"))?;
        Ok(Self(bytes))
    }
}

/// Reads `--device-memory`: what the device model takes, and nothing else.
pub fn parse_device_memory(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    let (min, max) = (
        ByteSize(cdm_protocol::MEMORY_BYTES_MIN),
        ByteSize(cdm_protocol::MEMORY_BYTES_MAX),
    );
    if !size.0.is_power_of_two() {
        return Err(format!(
            "{size} is not a power of two, which a PCI BAR must be; try {}",
            ByteSize(size.0.clamp(min.0, max.0).next_power_of_two())
        ));
    }
    if size < min || size > max {
        return Err(format!("{size} is not between {min} and {max}"));
    }
    Ok(size)
}

/// Reads `--memory`.
pub fn parse_guest_memory(text: &str) -> Result<ByteSize, String> {
    let size: ByteSize = text.parse()?;
    if size < MEMORY_MIN {
        return Err(format!(
            "{size} is too little for kernel and initramfs; give {MEMORY_MIN} or more"
        ));
    }
    if !size.0.is_multiple_of(1 << 20) {
        return Err(format!("{size} is not a whole number of MiB"));
    }
    Ok(size)
}

/// How the driver hotplugs device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Deserialize, Serialize, ValueEnum)]
#[serde(rename_all = "lowercase")]
pub enum MemoryType {
    /// MEMORY_DEVICE_PUBLIC, which a patched kernel has
    Public,
    /// MEMORY_DEVICE_COHERENT, which every 7.3 kernel has
    Coherent,
    /// MEMORY_DEVICE_PRIVATE, which the CPU cannot map
    Private,
}

impl fmt::Display for MemoryType {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Public => "public",
            Self::Coherent => "coherent",
            Self::Private => "private",
        })
    }
}

/// What a guest's programs are.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, ValueEnum)]
pub enum Rootfs {
    /// busybox and the project's own programs, in memory
    #[default]
    Small,
    /// Debian on a disk that forgets what the guest writes, with the project's own programs
    Debian,
}

impl Rootfs {
    /// The disk that the guest finds it on, if it is not the initramfs itself.
    pub fn disk(self) -> Result<Option<PathBuf>> {
        match self {
            Self::Small => Ok(None),
            Self::Debian => build::rootfs::debian().map(Some),
        }
    }
}

/// A debugger's stub.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub enum Gdb {
    /// The guest starts at once
    Run,
    /// The guest waits for the debugger at its first instruction
    Wait,
}

/// A file or folder of the host that the guest finds when it starts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct FileCopy {
    /// Where it is on the host.
    pub host: PathBuf,
    /// Absolute path in the guest.
    pub guest: String,
}

impl FileCopy {
    /// The kernel's own modules, which are built if they are not yet, for modprobe.
    pub fn kernel_modules(ctx: &Context, kernel: &Kernel) -> Result<Self> {
        let host = build::kernel_modules(ctx, kernel)?;
        let release = host.file_name().context("the modules have no release")?;
        let guest = format!("/lib/modules/{}", release.display());
        Ok(Self { host, guest })
    }
}

impl FromStr for FileCopy {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        // A host path may hold colons, a guest path does not.
        let (host, guest) = text
            .rsplit_once(':')
            .ok_or_else(|| format!("'{text}' has no colon: write HOST:GUEST"))?;
        if host.is_empty() {
            return Err(format!("'{text}' names no file of the host"));
        }
        let plain = guest.len() > 1
            && guest.starts_with('/')
            && guest[1..]
                .split('/')
                .all(|part| !part.is_empty() && part != "." && part != "..");
        if !plain {
            return Err(format!(
                "'{guest}' is not an absolute path of the guest, such as /root/file"
            ));
        }
        Ok(Self {
            host: PathBuf::from(host),
            guest: guest.to_owned(),
        })
    }
}

/// A machine.
#[derive(Clone, Debug)]
pub struct VmSpec {
    /// What it boots.
    pub kernel: Kernel,
    /// Devices, each with a backend of its own.
    pub devices: u8,
    /// Memory of each device.
    pub device_memory: ByteSize,
    /// Memory behind a plain PCI BAR, for drivers that bring the device's part themselves.
    pub plain_memory: Option<ByteSize>,
    /// The guest's own memory.
    pub memory: ByteSize,
    /// How much of it is a second node of memory, if there is one.
    pub second_node: Option<ByteSize>,
    /// Virtual CPUs.
    pub smp: u8,
    /// Who runs the guest's instructions.
    pub accel: AccelChoice,
    /// Types of the device memory: one for all devices, or one for each; the best that the
    /// kernel has if there is none.
    pub memory_types: Vec<MemoryType>,
    /// Further parameters of the driver, as `name=value`.
    pub module_params: Vec<String>,
    /// Whether the guest loads the driver when it starts.
    pub load_module: bool,
    /// Further words of the kernel command line.
    pub kernel_words: Vec<String>,
    /// A folder of the host at /host in the guest.
    pub share: Option<PathBuf>,
    /// What its programs are.
    pub rootfs: Rootfs,
    /// Files that the guest finds.
    pub files: Vec<FileCopy>,
    /// Disks, /dev/vda and on.
    pub disks: Vec<Disk>,
    /// A disk that holds nothing, to compare the device with.
    pub null_disk: bool,
    /// A debugger's stub.
    pub gdb: Option<Gdb>,
    /// Faults that each device has from the start.
    pub faults: Vec<Fault>,
    /// What accesses of each device cost, as the backend reads it; off without it.
    pub link_model: Option<String>,
    /// How atomics of each device reach memory of the guest, as the backend reads it; over the
    /// link without it.
    pub atomics: Option<String>,
    /// Whether each device writes a trace into the folder of the logs, and the guest's tracepoints
    /// are collected and put on one time line with them.
    pub trace: bool,
    /// Whether a guest that crashes or hangs leaves a dump of its memory.
    pub dump: bool,
    /// Silence after which the guest counts as dead.
    pub patience: Duration,
}

impl VmSpec {
    /// The default machine with this kernel.
    pub fn new(kernel: Kernel) -> Self {
        Self {
            kernel,
            devices: 1,
            device_memory: ByteSize(1 << 30),
            plain_memory: None,
            memory: ByteSize(1 << 30),
            second_node: None,
            smp: 2,
            accel: AccelChoice::Auto,
            memory_types: Vec::new(),
            module_params: Vec::new(),
            load_module: true,
            kernel_words: Vec::new(),
            share: None,
            rootfs: Rootfs::Small,
            files: Vec::new(),
            disks: Vec::new(),
            null_disk: false,
            gdb: None,
            faults: Vec::new(),
            link_model: None,
            atomics: None,
            trace: false,
            dump: true,
            patience: SILENT_GUEST_LIMIT,
        }
    }

    /// Refuses what the command line could not have asked for.
    pub fn check(&self) -> Result<()> {
        ensure!(
            self.devices <= DEVICES_MAX,
            "a machine has at most {DEVICES_MAX} devices, not {}",
            self.devices
        );
        ensure!(
            (1..=CPUS_MAX).contains(&self.smp),
            "a machine has 1 to {CPUS_MAX} CPUs, not {}",
            self.smp
        );
        ensure!(
            matches!(self.memory_types.len(), 0 | 1)
                || self.memory_types.len() == usize::from(self.devices),
            "{} memory types are neither one for all devices nor one for each of {}",
            self.memory_types.len(),
            self.devices
        );
        parse_device_memory(&self.device_memory.to_string()).map_err(anyhow::Error::msg)?;
        parse_guest_memory(&self.memory.to_string()).map_err(anyhow::Error::msg)?;
        ensure!(
            self.first_node().0 > 0,
            "a second node of {} leaves nothing of {} to the first one",
            self.second_node.unwrap_or_default(),
            self.memory
        );
        Ok(())
    }

    /// Whether anything goes behind the initramfs.
    pub fn has_files(&self) -> bool {
        !self.files.is_empty() || self.rootfs != Rootfs::Small
    }

    /// Memory of the first node.
    pub fn first_node(&self) -> ByteSize {
        let second = self.second_node.unwrap_or_default();
        ByteSize(self.memory.0.saturating_sub(second.0))
    }

    /// Command queues of each device: one for each virtual CPU, and one for commands on
    /// addresses of processes, as far as the device has them.
    pub fn command_queues(&self) -> u16 {
        (u16::from(self.smp) + 1).min(cdm_protocol::COMMAND_QUEUES_MAX)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sizes_are_read_as_people_write_them() {
        for (text, bytes) in [
            ("65536", 65536),
            ("4K", 4096),
            ("256M", 256 << 20),
            ("256m", 256 << 20),
            ("256MiB", 256 << 20),
            ("2GB", 2 << 30),
            ("1T", 1 << 40),
        ] {
            assert_eq!(text.parse(), Ok(ByteSize(bytes)), "{text}");
        }
    }

    #[test]
    fn what_is_no_size_is_refused_with_an_example() {
        for text in ["", "G", "1X", "1GG", "-1G", "1.5G", "1 G", "iB", "1iB"] {
            let error = text.parse::<ByteSize>().expect_err(text);
            assert!(error.contains("512M"), "{text}: {error}");
        }
    }

    #[test]
    fn a_size_beyond_64_bits_is_refused() {
        let error = "99999999999T".parse::<ByteSize>().expect_err("too much");
        assert!(error.contains("more than"), "{error}");
    }

    #[test]
    fn sizes_are_shown_in_the_largest_unit_that_is_exact() {
        assert_eq!(ByteSize(1 << 30).to_string(), "1G");
        assert_eq!(ByteSize(1536 << 20).to_string(), "1536M");
        assert_eq!(ByteSize(1000).to_string(), "1000");
        assert_eq!(ByteSize(0).to_string(), "0");
    }

    #[test]
    fn device_memory_is_a_power_of_two_within_the_limits_of_the_device() {
        assert_eq!(parse_device_memory("256M"), Ok(ByteSize(256 << 20)));
        assert_eq!(parse_device_memory("64G"), Ok(ByteSize(64 << 30)));
        let error = parse_device_memory("192M").expect_err("no power of two");
        assert!(
            error.contains("power of two") && error.contains("256M"),
            "{error}"
        );
        let error = parse_device_memory("3G").expect_err("no power of two");
        assert!(error.contains("try 4G"), "{error}");
        let error = parse_device_memory("128M").expect_err("too small");
        assert!(error.contains("between 256M and 64G"), "{error}");
        let error = parse_device_memory("128G").expect_err("too large");
        assert!(error.contains("between 256M and 64G"), "{error}");
    }

    #[test]
    fn memory_types_are_one_for_all_devices_or_one_for_each() {
        let mut spec = crate::vm::testing::spec();
        spec.devices = 3;
        for (count, is_good) in [(0, true), (1, true), (2, false), (3, true), (4, false)] {
            spec.memory_types = vec![MemoryType::Private; count];
            assert_eq!(spec.check().is_ok(), is_good, "{count} types");
        }
    }

    #[test]
    fn a_guest_too_small_to_boot_is_refused() {
        assert!(parse_guest_memory("64M").is_err());
        assert_eq!(parse_guest_memory("512M"), Ok(ByteSize(512 << 20)));
    }

    #[test]
    fn a_file_to_copy_is_named_on_both_sides() {
        let copy: FileCopy = "a:b/x.ko:/root/x.ko".parse().expect("well formed");
        assert_eq!(copy.host, PathBuf::from("a:b/x.ko"));
        assert_eq!(copy.guest, "/root/x.ko");
        for text in [
            "x",
            ":/root/x",
            "x:root/x",
            "x:/",
            "x:/a/../b",
            "x:/a//b",
            "x:/a/",
        ] {
            assert!(text.parse::<FileCopy>().is_err(), "{text}");
        }
    }
}
