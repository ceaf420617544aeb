// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counters, in Prometheus' terms.

use super::{Ended, status_name};
use cdm_control_protocol::FaultKind;
use cdm_protocol::Status;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};

/// Least time that is told apart, in seconds; each of the buckets is four times the one before.
const SHORTEST: f64 = 1e-6;

/// Buckets: the last ends at some four seconds.
const BUCKETS: u16 = 12;

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct QueueLabel {
    queue: u32,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct EndLabels {
    queue: u32,
    opcode: &'static str,
    status: &'static str,
}

#[derive(Clone, Debug, Hash, PartialEq, Eq, EncodeLabelSet)]
struct FaultLabel {
    kind: &'static str,
}

/// All of them.
#[derive(Debug)]
pub struct Counters {
    registry: Registry,
    queues: Vec<QueueCounters>,
    ends: Family<EndLabels, Counter>,
    faults: Family<FaultLabel, Counter>,
    /// Guests that came.
    pub guests: Counter,
    /// Whether one is there.
    pub connected: Gauge,
    /// Events that found no buffer.
    pub events_lost: Counter,
    /// Records of the trace that its file was too slow for.
    pub trace_lost: Counter,
}

/// Those of one virtqueue.
#[derive(Clone, Debug)]
pub struct QueueCounters {
    /// Requests that have ended.
    pub requests: Counter,
    /// Those with another status than `OK`.
    pub errors: Counter,
    /// Sum of `bytes_done`.
    pub bytes: Counter,
    /// Chains without room for a completion, and rings that made no sense.
    pub queue_errors: Counter,
    seconds: Histogram,
}

impl Counters {
    /// All zero, for so many virtqueues.
    pub fn new(num_queues: u16) -> Self {
        let mut registry = Registry::with_prefix("cdm");
        let requests = Family::<QueueLabel, Counter>::default();
        let errors = Family::<QueueLabel, Counter>::default();
        let bytes = Family::<QueueLabel, Counter>::default();
        let queue_errors = Family::<QueueLabel, Counter>::default();
        let seconds = Family::<QueueLabel, Histogram>::new_with_constructor(|| {
            Histogram::new(exponential_buckets(SHORTEST, 4.0, BUCKETS))
        });
        registry.register("requests", "Requests that have ended", requests.clone());
        registry.register(
            "request_errors",
            "Requests that ended with another status than OK",
            errors.clone(),
        );
        registry.register_with_unit(
            "request",
            "What requests went over, by their bytes_done",
            Unit::Bytes,
            bytes.clone(),
        );
        registry.register(
            "queue_errors",
            "Chains without room for a completion, and inconsistent rings",
            queue_errors.clone(),
        );
        registry.register_with_unit(
            "request_duration",
            "From taking a request to giving it back",
            Unit::Seconds,
            seconds.clone(),
        );
        let queues = (0..u32::from(num_queues)).map(|queue| {
            let label = QueueLabel { queue };
            QueueCounters {
                requests: requests.get_or_create(&label).clone(),
                errors: errors.get_or_create(&label).clone(),
                bytes: bytes.get_or_create(&label).clone(),
                queue_errors: queue_errors.get_or_create(&label).clone(),
                seconds: seconds.get_or_create(&label).clone(),
            }
        });
        let counters = Self {
            queues: queues.collect(),
            ends: Family::default(),
            faults: Family::default(),
            guests: Counter::default(),
            connected: Gauge::default(),
            events_lost: Counter::default(),
            trace_lost: Counter::default(),
            registry: Registry::default(),
        };
        registry.register(
            "completions",
            "Requests that have ended, by operation and status",
            counters.ends.clone(),
        );
        registry.register(
            "faults_injected",
            "Requests that a fault has hit",
            counters.faults.clone(),
        );
        registry.register("guests", "Guests that came", counters.guests.clone());
        registry.register(
            "guest_connected",
            "Whether a guest is connected",
            counters.connected.clone(),
        );
        registry.register(
            "events_lost",
            "Events that found no buffer on the event queue",
            counters.events_lost.clone(),
        );
        registry.register(
            "trace_records_lost",
            "Records that the trace's file was too slow for",
            counters.trace_lost.clone(),
        );
        Self {
            registry,
            ..counters
        }
    }

    /// Those of one virtqueue.
    pub fn queue(&self, queue: u16) -> &QueueCounters {
        &self.queues[usize::from(queue)]
    }

    /// Counts a request that has ended.
    pub fn ended(&self, ended: &Ended<'_>) {
        let queue = self.queue(ended.queue);
        queue.requests.inc();
        queue.bytes.inc_by(ended.completion.bytes_done.get());
        if ended.completion.status != Status::OK {
            queue.errors.inc();
        }
        queue.seconds.observe(ended.began.elapsed().as_secs_f64());
        let labels = EndLabels {
            queue: ended.queue.into(),
            opcode: ended.opcode,
            status: status_name(ended.completion),
        };
        self.ends.get_or_create(&labels).inc();
        for &kind in ended.hits {
            self.hit(kind);
        }
    }

    fn hit(&self, kind: FaultKind) {
        let kind = kind.name();
        self.faults.get_or_create(&FaultLabel { kind }).inc();
    }

    /// All of them, in Prometheus' text format.
    pub fn to_text(&self) -> String {
        let mut text = String::new();
        // Writing into a string does not fail.
        let _ = encode(&mut text, &self.registry);
        text
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdm_protocol::Completion;
    use std::time::Instant;
    use zerocopy::FromZeros;

    #[test]
    fn requests_are_counted_by_queue_operation_and_status() {
        let counters = Counters::new(3);
        for (status, bytes) in [
            (Status::OK, 100u64),
            (Status::OK, 11),
            (Status::BAD_ADDRESS, 0),
        ] {
            counters.ended(&Ended {
                queue: 2,
                opcode: "COPY",
                began: Instant::now(),
                completion: &Completion {
                    status,
                    bytes_done: bytes.into(),
                    ..Completion::new_zeroed()
                },
                hits: &[FaultKind::Delay],
            });
        }
        let text = counters.to_text();
        for line in [
            "cdm_requests_total{queue=\"2\"} 3",
            "cdm_requests_total{queue=\"0\"} 0",
            "cdm_request_errors_total{queue=\"2\"} 1",
            "cdm_request_bytes_total{queue=\"2\"} 111",
            "cdm_request_duration_seconds_count{queue=\"2\"} 3",
            "cdm_completions_total{queue=\"2\",opcode=\"COPY\",status=\"OK\"} 2",
            "cdm_completions_total{queue=\"2\",opcode=\"COPY\",status=\"BAD_ADDRESS\"} 1",
            "cdm_faults_injected_total{kind=\"delay\"} 3",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
