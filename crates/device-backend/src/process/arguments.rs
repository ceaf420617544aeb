// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The command line.

use super::metrics;
use crate::model::{Atomics, Capacity, Link, LinkSpeed, MemorySize, Shape, Timing, TimingError};
use crate::sandbox::Level;
use cdm_control_protocol::Fault;
use cdm_protocol::COMMAND_QUEUES_MAX;
use clap::builder::PossibleValuesParser;
use clap::builder::TypedValueParser;
use clap::{ArgGroup, Parser, ValueEnum};
use std::net::SocketAddr;
use std::num::NonZero;
use std::os::fd::RawFd;
use std::path::PathBuf;
use std::str::FromStr;
use std::thread;

const AFTER_HELP: &str = "\
Exit codes:
  0  ended as asked: SIGTERM, SIGINT, or the guest of --fd hung up
  1  failed while serving
  2  wrong arguments
  3  could not start: no memory, or the socket is not to be had
  4  ended by its own sandbox; the log says why

Environment:
  CDM_LOG  what to log, such as debug or cdm_backend=trace (default info)

Example:
  cdm-backend --socket-path /tmp/cdm.sock --memory-size 1G --command-queues 2
  qemu-system-x86_64 ... -chardev socket,id=cdm,path=/tmp/cdm.sock \\
    -device vhost-user-test-device-pci,chardev=cdm,virtio-id=38,num_vqs=4,vq_size=256,config_size=208";

/// Most engines: more than copying can use on any machine.
const ENGINES_MAX: u16 = 64;

/// Serve a coherent device memory (cdm) device to QEMU over vhost-user.
#[derive(Debug, Parser)]
#[command(name = "cdm-backend", version, after_help = "Exit codes, environment and an example: --help", after_long_help = AFTER_HELP)]
#[command(group = ArgGroup::new("mode").required(true).args(["socket_path", "fd", "print_capabilities"]))]
pub struct Arguments {
    /// Serve guest after guest at a Unix socket made at PATH; memory outlives a guest
    #[arg(long, value_name = "PATH")]
    pub socket_path: Option<PathBuf>,

    /// Serve the one guest behind the inherited socket FDNUM, then end
    #[arg(long, value_name = "FDNUM")]
    pub fd: Option<RawFd>,

    /// Print what this backend is, as JSON for management programs, and exit
    #[arg(long)]
    pub print_capabilities: bool,

    /// Device memory: a power of two from 256M to 64G
    #[arg(long, value_name = "SIZE", default_value = "1G")]
    pub memory_size: MemorySize,

    /// Command queues; QEMU's num_vqs is 2 more
    #[arg(long, value_name = "NUM", default_value_t = 1,
          value_parser = clap::value_parser!(u16).range(1..=i64::from(COMMAND_QUEUES_MAX)))]
    pub command_queues: u16,

    /// Threads that share the work of commands (default: as many as the machine has CPUs)
    #[arg(long, value_name = "NUM",
          value_parser = clap::value_parser!(u16).range(1..=i64::from(ENGINES_MAX)))]
    pub engines: Option<u16>,

    /// Pages of 4 KiB of processes whose translation the device remembers
    #[arg(long, value_name = "NUM", default_value_t = Capacity::default().small,
          value_parser = pages(Capacity::SMALL_MIN))]
    pub translations_small: usize,

    /// The same for pages of 2 MiB; 0 remembers them as small ones
    #[arg(long, value_name = "NUM", default_value_t = Capacity::default().large,
          value_parser = pages(0))]
    pub translations_large: usize,

    /// Gigatransfers per second of each lane
    #[arg(long, value_name = "GT", default_value = "16")]
    pub link_speed: SpeedArgument,

    /// Lanes of the link
    #[arg(long, value_name = "LANES", default_value = "16",
          value_parser = PossibleValuesParser::new(["1", "2", "4", "8", "16"])
              .try_map(|lanes| lanes.parse::<u16>()))]
    pub link_width: u16,

    /// Whether accesses take simulated time: off, on, or such as on,link-ns=500,memory-ns=100
    #[arg(long, value_name = "MODEL", default_value = "off")]
    pub link_model: LinkModel,

    /// Whether atomics cross the link, or need pages of processes for the device alone
    #[arg(long, value_name = "HOW", default_value = "link")]
    pub atomics: AtomicsArgument,

    /// Answer questions and set faults at a Unix socket made at PATH
    #[arg(long, value_name = "PATH")]
    pub control: Option<PathBuf>,

    /// Serve the counters at http://ADDRESS/metrics; 127.0.0.1:0 takes any port
    #[arg(long, value_name = "ADDRESS", value_parser = metrics::parse_address)]
    pub metrics_listen: Option<SocketAddr>,

    /// Have a fault from the start, such as drop,queue=2,nth=5; may be given more than once
    #[arg(long = "fault", value_name = "SPEC")]
    pub faults: Vec<Fault>,

    /// Write a time line for Chrome or Perfetto to FILE
    #[arg(long, value_name = "FILE")]
    pub trace: Option<PathBuf>,

    /// What to give up before a guest connects; the log says what the host refused
    #[arg(long, value_name = "LEVEL", default_value = "full")]
    pub sandbox: Level,

    /// How log lines on stderr look
    #[arg(long, value_name = "FORMAT", default_value = "text")]
    pub log_format: LogFormat,
}

/// Values of `--link-speed`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum SpeedArgument {
    /// PCIe 4.0 rate
    #[value(name = "16")]
    Gt16,
    /// CCIX extended speed mode
    #[value(name = "25")]
    Gt25,
}

/// Values of `--link-model`.
#[derive(Clone, Copy, Debug)]
pub struct LinkModel(Option<Timing>);

impl FromStr for LinkModel {
    type Err = TimingError;

    fn from_str(text: &str) -> Result<Self, TimingError> {
        match text {
            "off" => Ok(Self(None)),
            _ => text.parse().map(|timing| Self(Some(timing))),
        }
    }
}

/// Values of `--atomics`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum AtomicsArgument {
    /// The link carries them
    Link,
    /// It does not: the driver has to keep the CPUs away from a page meanwhile
    Exclusive,
}

/// Values of `--log-format`.
#[derive(Clone, Copy, Debug, ValueEnum)]
pub enum LogFormat {
    /// For people
    Text,
    /// One JSON object a line, for programs
    Json,
}

impl Arguments {
    /// The device asked for.
    pub fn shape(&self) -> Shape {
        Shape {
            memory: self.memory_size,
            command_queues: self.command_queues,
            engines: self.engines.unwrap_or_else(engines_of_machine),
            translations: Capacity {
                small: self.translations_small,
                large: self.translations_large,
            },
            atomics: match self.atomics {
                AtomicsArgument::Link => Atomics::Link,
                AtomicsArgument::Exclusive => Atomics::Exclusive,
            },
            link: Link {
                speed: match self.link_speed {
                    SpeedArgument::Gt16 => LinkSpeed::Gt16,
                    SpeedArgument::Gt25 => LinkSpeed::Gt25,
                },
                width_lanes: self.link_width,
                timing: self.link_model.0,
            },
        }
    }
}

/// A number of pages that can be remembered.
fn pages(min: usize) -> impl TypedValueParser<Value = usize> {
    clap::value_parser!(u64)
        .range(min as u64..=Capacity::MAX as u64)
        // No more than the maximum, so it fits.
        .map(|pages| pages as usize)
}

/// One engine for each CPU that this process may run on.
fn engines_of_machine() -> u16 {
    let cpus = thread::available_parallelism().map_or(1, NonZero::get);
    u16::try_from(cpus).map_or(ENGINES_MAX, |cpus| cpus.min(ENGINES_MAX))
}

#[cfg(test)]
mod tests {
    use super::*;
    use clap::CommandFactory;

    #[test]
    fn the_command_line_is_consistent() {
        Arguments::command().debug_assert();
    }

    #[test]
    fn short_help_fits_a_screen() {
        let help = Arguments::command().render_help().to_string();
        assert!(help.lines().count() <= 40, "{help}");
    }
}
