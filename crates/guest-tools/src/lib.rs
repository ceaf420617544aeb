// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the programs inside the guest share: the driver's interface, memory
//! that a device may change, and what the kernel tells about pages.

pub mod accelerator;
pub mod agent;
pub mod batch;
pub mod bus_error;
pub mod device;
pub mod fail_nth;
pub mod init;
pub mod invariants;
pub mod iomem;
pub mod kmemleak;
pub mod ktap;
pub mod memory;
pub mod pagemap;
pub mod process;
pub mod random;
pub mod range;
pub mod size;
pub mod uapi;
pub mod userfault;
pub mod vmstat;
