// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What can be seen of the device from outside: counters, and a trace.

mod counters;
mod trace;
mod translations;

pub use counters::{Counters, QueueCounters};
pub use trace::{Trace, TraceFile};

use crate::model::{Device, Picoseconds, Traffic};
use cdm_control_protocol::FaultKind;
use cdm_protocol::Completion;
use std::sync::Arc;
use std::time::Instant;

/// Counters and trace of a device.
#[derive(Debug)]
pub struct Telemetry {
    /// The counters.
    pub counters: Counters,
    trace: Option<Trace>,
}

/// A request that has come to its end.
#[derive(Debug)]
pub struct Ended<'a> {
    /// Number of the virtqueue.
    pub queue: u16,
    /// Name of the operation.
    pub opcode: &'static str,
    /// When it was taken.
    pub began: Instant,
    /// How it ended, whatever the driver was told.
    pub completion: &'a Completion,
    /// Faults that hit it.
    pub hits: &'a [FaultKind],
    /// What it did to memory.
    pub traffic: &'a Traffic,
    /// How long that takes, on a link that takes time.
    pub simulated: Option<Picoseconds>,
}

/// The operation of a request that nobody could read, or that has no name.
pub const UNKNOWN: &str = "unknown";

impl Telemetry {
    /// Counters for a device with so many queues, and a trace if there is one.
    pub fn new(num_queues: u16, device: Arc<Device>, trace: Option<Trace>) -> Self {
        let counters = Counters::new(num_queues, device);
        Self { counters, trace }
    }

    /// Notes a request that has ended.
    pub fn ended(&self, ended: &Ended<'_>) {
        self.counters.ended(ended);
        if let Some(trace) = &self.trace
            && !trace.request(ended)
        {
            self.counters.trace_lost.inc();
        }
    }

    /// Notes something that happened at one moment.
    pub fn happened(&self, what: &'static str, queue: u16) {
        if let Some(trace) = &self.trace
            && !trace.moment(what, queue)
        {
            self.counters.trace_lost.inc();
        }
    }

    /// Writes what is left of the trace, and its end.
    pub fn finish(&self) {
        if let Some(trace) = &self.trace {
            trace.finish();
        }
    }
}

/// The name of a status; bounded, whatever the number.
fn status_name(completion: &Completion) -> &'static str {
    completion.status.name().unwrap_or(UNKNOWN)
}
