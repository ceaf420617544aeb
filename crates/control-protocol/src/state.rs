// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the device tells of itself.

use crate::Fault;
use serde::{Deserialize, Serialize};

/// The device, as it is.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct State {
    /// Version of the program.
    pub backend: String,
    /// Bytes of device memory.
    pub memory_bytes: u64,
    /// Whether the guest sees the device memory.
    pub is_mapped: bool,
    /// Whether a frontend is connected.
    pub is_connected: bool,
    /// Guests that came so far.
    pub guests: u64,
    /// Events that found no buffer.
    pub events_lost: u64,
    /// Pages of device memory that have failed.
    #[serde(default)]
    pub bad_pages: u64,
    /// Which: the lowest 512 stretches of pages that follow each other.
    #[serde(default)]
    pub bad: Vec<PageStretch>,
    /// What the access counters have seen.
    #[serde(default)]
    pub access_counters: AccessCounterState,
    /// Each virtqueue but the event queue.
    pub queues: Vec<QueueState>,
}

/// Pages of 4096 bytes that follow each other in device memory.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct PageStretch {
    /// Number of the first, from 0.
    pub page: u64,
    /// How many there are.
    pub pages: u64,
}

/// The counters of accesses to memory of processes.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessCounterState {
    /// Address spaces whose accesses are counted.
    pub spaces: u64,
    /// Granules that have a count.
    pub granules: u64,
    /// Accesses that were counted.
    pub accesses: u64,
    /// Granules whose count reached the threshold.
    pub hot: u64,
    /// Of these, those that the driver was not told of for want of a buffer.
    pub lost: u64,
    /// Granules whose count was forgotten for want of room.
    pub forgotten: u64,
}

/// What a queue is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum QueueKind {
    /// The control queue.
    Control,
    /// A command queue.
    Command,
}

/// One queue, since the backend started.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct QueueState {
    /// Number of the virtqueue.
    pub queue: u16,
    /// What it is for.
    pub kind: QueueKind,
    /// Requests that were carried out or refused.
    pub requests: u64,
    /// Those that ended with another status than `OK`.
    pub errors: u64,
    /// Sum of their `bytes_done`.
    pub bytes: u64,
    /// Chains without room for a completion, and rings that made no sense.
    pub queue_errors: u64,
    /// Whether a fault keeps it from taking its next request.
    pub is_stalled: bool,
    /// What its commands did to the device's own memory.
    #[serde(default)]
    pub own: AccessState,
    /// What they did to the guest's memory, across the link.
    #[serde(default)]
    pub link: AccessState,
    /// How long its commands take on the simulated link and memory, in picoseconds; not there if
    /// nothing is simulated.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub simulated_ps: Option<u64>,
}

/// Accesses to memory.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, Serialize, Deserialize)]
pub struct AccessState {
    /// Accesses that read: data come to the device.
    pub reads: u64,
    /// Bytes of those.
    pub read_bytes: u64,
    /// Accesses that write: data go away from the device.
    pub writes: u64,
    /// Bytes of those.
    pub write_bytes: u64,
    /// Accesses that do both in one.
    pub atomics: u64,
    /// Bytes of those, each way.
    pub atomic_bytes: u64,
}

/// A fault that was set.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct FaultState {
    /// Its number.
    pub id: u64,
    /// What was set.
    pub fault: Fault,
    /// Requests that it hit, on all queues; `poison`: pages that it let fail.
    pub hits: u64,
}
