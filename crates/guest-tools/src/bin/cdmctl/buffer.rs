// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The memory that `cdmctl run` lets a device work on.

use std::fs::File;
use std::io::{self, Read, Write};
use std::path::Path;

use anyhow::{Context, bail};
use cdm_guest_tools::device::{Device, Direction, Span};
use cdm_guest_tools::memory::Mapping;
use cdm_guest_tools::size;
use clap::ValueEnum;

use crate::open;

/// Seed of the contents where no file is given.
const PATTERN_SEED: u64 = 1;

/// Where the buffer lies while the device works on it.
#[derive(Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Memory {
    /// In the device
    Device,
    /// In ordinary memory
    System,
}

/// Arguments that say what a buffer holds and where it lies.
#[derive(clap::Args)]
pub struct Contents {
    /// Fill the buffer from FILE; '-' is standard input
    #[arg(long, value_name = "FILE", conflicts_with = "size")]
    pub input: Option<String>,

    /// Make the buffer SIZE long, with a fixed pattern in it (default 1M)
    #[arg(long, value_name = "SIZE", value_parser = size::parse)]
    pub size: Option<u64>,
}

/// Where a buffer lies.
#[derive(clap::Args)]
pub struct Placement {
    /// Use device N, of /dev/cdmN
    #[arg(long, value_name = "N", default_value_t = 0)]
    pub device: u32,

    /// Keep the buffer there
    #[arg(long = "in", value_enum, default_value = "device")]
    pub memory: Memory,

    /// Let the device use the addresses of this process, and pin nothing
    #[arg(long)]
    pub bind: bool,
}

impl Placement {
    /// Opens the device, and puts buffers where they shall lie.
    pub fn prepare(&self, buffers: &[&Buffer]) -> anyhow::Result<Device> {
        let device = self.open()?;
        for buffer in buffers {
            buffer.place(&device, self.memory)?;
        }
        Ok(device)
    }

    /// Opens the device, and binds this process to it if it shall be.
    fn open(&self) -> anyhow::Result<Device> {
        let device = open(self.device)?;
        if !self.bind {
            return Ok(device);
        }
        let bound = device.bind().with_context(|| {
            format!(
                "cannot bind this process to device {}: 'cdmctl info' says whether the device can; \
                 leave --bind out",
                self.device
            )
        })?;
        Ok(bound.into_device())
    }
}

/// Memory with its contents, where it was asked for.
pub struct Buffer {
    pub memory: Mapping,
    pub bytes: usize,
}

impl Buffer {
    /// A buffer with the contents of a file, of standard input, or a pattern.
    pub fn load(contents: &Contents) -> anyhow::Result<Self> {
        match &contents.input {
            Some(path) => Self::from_bytes(&read(path)?).with_context(|| format!("input '{path}'")),
            None => {
                let buffer = Self::zeroed(contents.size.unwrap_or(1 << 20))?;
                buffer.memory.fill_pattern(PATTERN_SEED);
                Ok(buffer)
            }
        }
    }

    pub fn from_bytes(bytes: &[u8]) -> anyhow::Result<Self> {
        if bytes.is_empty() {
            bail!("it is empty: the device works on at least one byte");
        }
        let buffer = Self::zeroed(bytes.len() as u64)?;
        buffer.memory.write_bytes(bytes);
        Ok(buffer)
    }

    pub fn zeroed(bytes: u64) -> anyhow::Result<Self> {
        if bytes == 0 {
            bail!("a buffer of no bytes: the device works on at least one byte");
        }
        let memory = usize::try_from(bytes)
            .map_err(io::Error::other)
            .and_then(Mapping::anonymous)
            .with_context(|| format!("cannot map {}", size::Size(bytes)))?;
        // Touch every page, also of a buffer that stays zero: what was never touched cannot move.
        memory.fill(0);
        Ok(Self {
            memory,
            bytes: bytes as usize,
        })
    }

    /// The part that holds the contents.
    pub fn span(&self) -> Span {
        Span {
            offset: 0,
            bytes: self.bytes,
        }
    }

    /// Moves it into the device, if it is to lie there.
    fn place(&self, device: &Device, memory: Memory) -> anyhow::Result<()> {
        if memory == Memory::System {
            return Ok(());
        }
        let number = device.number();
        let migration = device
            .migrate(0, self.memory.range(), Direction::ToDevice)
            .with_context(|| format!("cannot move the buffer to device {number}"))?;
        if migration.moved + migration.there != migration.asked {
            bail!(
                "only {} of {} pages of the buffer fit into device {number}: try a smaller buffer, \
                 or --in system",
                migration.moved + migration.there,
                migration.asked
            );
        }
        Ok(())
    }

    /// Writes the contents to a file, or to standard output for '-'.
    pub fn save(&self, path: &str) -> anyhow::Result<()> {
        let bytes = self.memory.read_bytes(self.bytes);
        let result = match path {
            "-" => io::stdout().write_all(&bytes),
            path => std::fs::write(Path::new(path), &bytes),
        };
        result.with_context(|| format!("cannot write output '{path}'"))
    }
}

fn read(path: &str) -> anyhow::Result<Vec<u8>> {
    let mut bytes = Vec::new();
    let result = match path {
        "-" => io::stdin().read_to_end(&mut bytes),
        path => File::open(path).and_then(|mut file| file.read_to_end(&mut bytes)),
    };
    result.with_context(|| format!("cannot read input '{path}'"))?;
    Ok(bytes)
}
