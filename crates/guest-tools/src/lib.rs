// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the programs inside the guest share: the driver's interface, memory
//! that a device may change, and what the kernel tells about pages.

pub mod accelerator;
pub mod agent;
pub mod batch;
pub mod bus_error;
pub mod cgroup;
pub mod console;
pub mod device;
pub mod disks;
pub mod fail_nth;
pub mod gup_test;
pub mod hugetlb;
pub mod init;
pub mod invariants;
pub mod iomem;
pub mod isolate;
pub mod kmemleak;
pub mod ktap;
pub mod memory;
pub mod module;
pub mod pagemap;
pub mod process;
pub mod random;
pub mod range;
pub mod registered;
pub mod size;
pub mod skip;
pub mod stores;
pub mod swap;
pub mod testing;
pub mod uapi;
pub mod udmabuf;
pub mod userfault;
pub mod vmstat;
pub mod wait;
