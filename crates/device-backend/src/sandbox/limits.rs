// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Limits on what the process takes from the host.

use nix::errno::Errno;
use nix::sys::resource::{Resource, getrlimit, setrlimit};

/// Descriptors. A guest takes eight memory regions, three eventfds for each of ten queues and
/// some of the workers' own; one message can bring 253 that are closed at once
/// (SCM_MAX_FD); the control socket and the metrics have their clients.
const DESCRIPTORS: u64 = 512;

/// Private writable memory: heap, stacks, bounce buffers. Device memory and guest memory
/// are shared mappings and do not count, nor do the stacks' guards. A device with eight queues
/// that all work takes some tens of MiB.
const DATA_BYTES: u64 = 1 << 30;

/// A core file would hold guest memory.
const CORE_BYTES: u64 = 0;

/// Sets the limits, for good.
pub fn set() -> Result<(), Errno> {
    for (resource, limit) in [
        (Resource::RLIMIT_NOFILE, DESCRIPTORS),
        (Resource::RLIMIT_DATA, DATA_BYTES),
        (Resource::RLIMIT_CORE, CORE_BYTES),
    ] {
        let (soft, hard) = getrlimit(resource)?;
        setrlimit(resource, limit.min(soft), limit.min(hard))?;
    }
    Ok(())
}
