// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counters, in Prometheus' terms.

use super::translations::Translations;
use super::{Ended, status_name};
use crate::model::{Access, Accesses, Device, Flow, Side, Traffic};
use cdm_control_protocol::FaultKind;
use cdm_protocol::Status;
use prometheus_client::encoding::EncodeLabelSet;
use prometheus_client::encoding::text::encode;
use prometheus_client::metrics::counter::Counter;
use prometheus_client::metrics::family::Family;
use prometheus_client::metrics::gauge::Gauge;
use prometheus_client::metrics::histogram::{Histogram, exponential_buckets};
use prometheus_client::registry::{Registry, Unit};
use std::sync::Arc;

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
struct AccessLabels {
    queue: u32,
    memory: &'static str,
    access: &'static str,
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
    /// Access reports that found no buffer that they may take.
    pub access_reports_lost: Counter,
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
    /// How long commands take on a link that takes time, in all.
    pub simulated_picoseconds: Counter,
    own: AccessCounters,
    link: AccessCounters,
    seconds: Histogram,
}

/// Accesses to one side.
#[derive(Clone, Debug)]
struct AccessCounters {
    reads: FlowCounters,
    writes: FlowCounters,
    atomics: FlowCounters,
}

/// Accesses of one kind.
#[derive(Clone, Debug)]
struct FlowCounters {
    accesses: Counter,
    bytes: Counter,
}

impl FlowCounters {
    fn add(&self, flow: Flow) {
        // Most commands make accesses of few kinds.
        if flow.accesses > 0 {
            self.accesses.inc_by(flow.accesses);
            self.bytes.inc_by(flow.bytes);
        }
    }

    fn get(&self) -> Flow {
        Flow {
            accesses: self.accesses.get(),
            bytes: self.bytes.get(),
        }
    }
}

impl AccessCounters {
    fn new(of: impl Fn(Access) -> FlowCounters) -> Self {
        Self {
            reads: of(Access::Read),
            writes: of(Access::Write),
            atomics: of(Access::Atomic),
        }
    }

    fn add(&self, accesses: &Accesses) {
        self.reads.add(accesses.reads);
        self.writes.add(accesses.writes);
        self.atomics.add(accesses.atomics);
    }
}

impl QueueCounters {
    /// Accesses to one side so far.
    pub fn accesses(&self, side: Side) -> Accesses {
        let counters = match side {
            Side::Own => &self.own,
            Side::Link => &self.link,
        };
        Accesses {
            reads: counters.reads.get(),
            writes: counters.writes.get(),
            atomics: counters.atomics.get(),
        }
    }

    fn add(&self, traffic: &Traffic) {
        self.own.add(traffic.of(Side::Own));
        self.link.add(traffic.of(Side::Link));
    }
}

fn side_name(side: Side) -> &'static str {
    match side {
        Side::Own => "own",
        Side::Link => "link",
    }
}

fn access_name(access: Access) -> &'static str {
    match access {
        Access::Read => "read",
        Access::Write => "write",
        Access::Atomic => "atomic",
    }
}

impl Counters {
    /// All zero, for so many virtqueues; and what the device counts itself.
    pub fn new(num_queues: u16, device: Arc<Device>) -> Self {
        let mut registry = Registry::with_prefix("cdm");
        registry.register_collector(Box::new(Translations(device)));
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
        let simulated = Family::<QueueLabel, Counter>::default();
        let accesses = Family::<AccessLabels, Counter>::default();
        let access_bytes = Family::<AccessLabels, Counter>::default();
        registry.register(
            "simulated_picoseconds",
            "How long commands take on the simulated link and memory",
            simulated.clone(),
        );
        registry.register(
            "accesses",
            "Accesses of commands to the device's own memory and across the link",
            accesses.clone(),
        );
        registry.register_with_unit(
            "access",
            "Bytes of those accesses",
            Unit::Bytes,
            access_bytes.clone(),
        );
        let queues = (0..u32::from(num_queues)).map(|queue| {
            let label = QueueLabel { queue };
            let side = |side| {
                AccessCounters::new(|access| {
                    let labels = AccessLabels {
                        queue,
                        memory: side_name(side),
                        access: access_name(access),
                    };
                    FlowCounters {
                        accesses: accesses.get_or_create(&labels).clone(),
                        bytes: access_bytes.get_or_create(&labels).clone(),
                    }
                })
            };
            QueueCounters {
                requests: requests.get_or_create(&label).clone(),
                errors: errors.get_or_create(&label).clone(),
                bytes: bytes.get_or_create(&label).clone(),
                queue_errors: queue_errors.get_or_create(&label).clone(),
                simulated_picoseconds: simulated.get_or_create(&label).clone(),
                own: side(Side::Own),
                link: side(Side::Link),
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
            access_reports_lost: Counter::default(),
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
            "access_reports_lost",
            "Access reports that found no buffer on the event queue that they may take",
            counters.access_reports_lost.clone(),
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
        queue.add(ended.traffic);
        // The sum of so many days that it does not fit ends where the counter ends.
        let simulated = ended.simulated.unwrap_or_default();
        let simulated = u64::try_from(simulated).unwrap_or(u64::MAX);
        queue.simulated_picoseconds.inc_by(simulated);
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

    /// Counts something that a fault has hit.
    pub fn hit(&self, kind: FaultKind) {
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
    use crate::model::{Atomics, Capacity, Link, LinkSpeed, Shape};
    use cdm_protocol::Completion;
    use std::time::Instant;
    use zerocopy::FromZeros;

    #[test]
    fn requests_are_counted_by_queue_operation_and_status() {
        let device = Device::new(&Shape {
            memory: "256M".parse().unwrap(),
            command_queues: 1,
            engines: 0,
            translations: Capacity::default(),
            atomics: Atomics::Link,
            link: Link {
                speed: LinkSpeed::Gt16,
                width_lanes: 16,
                timing: None,
            },
        });
        let counters = Counters::new(3, Arc::new(device.unwrap()));
        let mut traffic = Traffic::default();
        traffic.add_stream(Side::Link, Access::Read, Flow::lines(0, 100));
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
                traffic: &traffic,
                simulated: Some(1_500),
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
            "cdm_accesses_total{queue=\"2\",memory=\"link\",access=\"read\"} 6",
            "cdm_access_bytes_total{queue=\"2\",memory=\"link\",access=\"read\"} 300",
            "cdm_access_bytes_total{queue=\"2\",memory=\"own\",access=\"read\"} 0",
            "cdm_simulated_picoseconds_total{queue=\"2\"} 4500",
            "cdm_translation_hits_total 0",
            "cdm_page_requests_total 0",
            "cdm_page_requests_exclusive_total 0",
            "# EOF",
        ] {
            assert!(text.lines().any(|found| found == line), "{line}: {text}");
        }
    }
}
