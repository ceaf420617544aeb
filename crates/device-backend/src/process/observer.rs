// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the control socket and the metrics know of the device, and do to it.

use crate::model::{Accesses, Counted, Side};
use crate::vhost::Parts;
use cdm_control_protocol::{
    AccessCounterState, AccessState, Ask, PageStretch, QueueKind, QueueState, Response, State,
};
use cdm_protocol::{QUEUE_CONTROL, QUEUE_EVENT, QUEUE_FIRST_COMMAND};

/// Stretches of bad pages that the state shows: a line has an end.
const STRETCHES_MAX: usize = 512;

/// Everything that can be asked.
pub struct Observer {
    parts: Parts,
}

impl Observer {
    /// Looks at these.
    pub fn new(parts: Parts) -> Self {
        Self { parts }
    }

    /// All counters, in Prometheus' text format.
    pub fn metrics(&self) -> String {
        self.parts.telemetry.counters.to_text()
    }

    /// Does what is asked.
    pub fn answer(&self, ask: Ask) -> Response {
        let faults = &self.parts.faults;
        let empty = Response::default();
        match ask {
            Ask::State => Response {
                state: Some(self.state()),
                ..empty
            },
            Ask::Metrics => Response {
                metrics: Some(self.metrics()),
                ..empty
            },
            Ask::Faults => Response {
                faults: Some(faults.list()),
                ..empty
            },
            Ask::SetFault(fault) => match faults.set(fault) {
                Ok(id) => {
                    // It may have let memory fail.
                    self.parts.bell.ring();
                    Response {
                        fault: Some(id),
                        ..empty
                    }
                }
                Err(error) => Response::error(error),
            },
            Ask::ClearFault(id) => match faults.clear(Some(id)) {
                0 => Response::error(format!("there is no fault {id}")),
                cleared => Response {
                    cleared: Some(cleared),
                    ..empty
                },
            },
            Ask::ClearFaults => Response {
                cleared: Some(faults.clear(None)),
                ..empty
            },
        }
    }

    fn state(&self) -> State {
        let Parts {
            device, telemetry, ..
        } = &self.parts;
        let counters = &telemetry.counters;
        let num_queues = QUEUE_FIRST_COMMAND + device.queues().len() as u16;
        let queues = (0..num_queues).filter(|&queue| queue != QUEUE_EVENT);
        let bad = device.bad_pages();
        let stretches = bad.iter().take(STRETCHES_MAX).map(|stretch| PageStretch {
            page: stretch.start,
            pages: stretch.end - stretch.start,
        });
        State {
            backend: env!("CARGO_PKG_VERSION").to_owned(),
            memory_bytes: device.pool().size().bytes(),
            is_mapped: device.is_mapped(),
            is_connected: counters.connected.get() != 0,
            guests: counters.guests.get(),
            events_lost: counters.events_lost.get(),
            bad_pages: bad.pages(),
            bad: stretches.collect(),
            access_counters: self.access_counters(),
            queues: queues.map(|queue| self.queue(queue)).collect(),
        }
    }

    fn access_counters(&self) -> AccessCounterState {
        let Counted {
            spaces,
            granules,
            accesses,
            hot,
            forgotten,
        } = self.parts.device.counted();
        AccessCounterState {
            spaces,
            granules,
            accesses,
            hot,
            lost: self.parts.telemetry.counters.access_reports_lost.get(),
            forgotten,
        }
    }

    fn queue(&self, queue: u16) -> QueueState {
        let counters = self.parts.telemetry.counters.queue(queue);
        QueueState {
            queue,
            kind: match queue {
                QUEUE_CONTROL => QueueKind::Control,
                _ => QueueKind::Command,
            },
            requests: counters.requests.get(),
            errors: counters.errors.get(),
            bytes: counters.bytes.get(),
            queue_errors: counters.queue_errors.get(),
            is_stalled: self.parts.faults.is_stalled(queue),
            own: access_state(&counters.accesses(Side::Own)),
            link: access_state(&counters.accesses(Side::Link)),
            simulated_ps: (self.parts.device.is_timed())
                .then(|| counters.simulated_picoseconds.get()),
        }
    }
}

fn access_state(accesses: &Accesses) -> AccessState {
    let Accesses {
        reads,
        writes,
        atomics,
    } = accesses;
    AccessState {
        reads: reads.accesses,
        read_bytes: reads.bytes,
        writes: writes.accesses,
        write_bytes: writes.bytes,
        atomics: atomics.accesses,
        atomic_bytes: atomics.bytes,
    }
}
