// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Machines: from a [`VmSpec`] to a guest that runs commands.
//!
//! [`Vm::boot`] starts one backend for each device and a QEMU whose command line
//! comes from `qemu/machine.toml`, and waits until the agent in the guest answers.
//! Whatever happens then, nothing of it outlives this process: children die with
//! it, and `cleanup` puts the rest in order when a signal ends it.
//!
//! [`visit::Visit`] is a guest that another process booted, which `door` lets in.

pub mod accel;
pub mod agent;
pub mod backend;
pub mod boot;
mod boot_time;
mod cleanup;
mod control;
pub mod decode;
mod disk;
mod door;
mod dump;
mod end;
mod files;
pub mod footprint;
mod history;
pub mod kernel_log;
pub mod limits;
pub mod process;
pub mod qemu;
pub mod qmp;
mod run;
pub mod rundir;
pub mod shell;
pub mod spec;
pub mod terminal;
#[cfg(test)]
pub mod testing;
pub mod timeline;
mod tsc;
pub mod visit;

pub use agent::{Event, Input, Lost, Running};
pub use backend::Backend;
pub use boot::{Output, Parts, Stream, Vm};
pub use boot_time::{BootTime, BootTimeArgs, boot_time};
pub use cleanup::run as put_in_order;
pub use control::Control;
pub use disk::Disk;
pub use dump::FILE as MEMORY_DUMP;
pub use kernel_log::{Line, breaches, reports};
pub use limits::Limits;
pub use run::{RunVmArgs, run_vm};
pub use rundir::RunDir;
pub use spec::{ByteSize, FileCopy, Gdb, MemoryType, Rootfs, VmSpec};
