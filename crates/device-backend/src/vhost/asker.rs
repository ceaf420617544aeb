// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The way of page requests and access reports to the driver: over the event queue, unless a
//! fault is in it.

use super::adapter::Shared;
use super::events::{Delivery, request_pages};
use super::vring::Vring;
use crate::model::{Asking, PageAsker};
use cdm_control_protocol::FaultKind;
use cdm_protocol::{AccessReport, PAGE_REQUEST_ATOMIC, PageRequest, QUEUE_EVENT};
use std::sync::Arc;
use std::time::Instant;

/// Asks on behalf of the commands of one queue.
pub struct Asker {
    /// The device.
    pub shared: Arc<Shared>,
    /// The event queue.
    pub event: Vring,
    /// Number of the commands' queue.
    pub queue: u16,
}

impl PageAsker for Asker {
    fn ask(&self, request: PageRequest) -> Asking {
        let Shared {
            faults,
            telemetry,
            turns,
            ..
        } = &*self.shared;
        if let Some(status) = faults.refuse_page(self.queue) {
            telemetry.counters.hit(FaultKind::RefusePage);
            return Asking::Refused(status);
        }
        let request = PageRequest {
            queue: self.queue.into(),
            ..request
        };
        let _turn = turns[usize::from(QUEUE_EVENT)].take();
        match request_pages(&request, &self.event, &self.shared.guest()) {
            Delivery::Told => {
                let is_atomic = request.flags.get() & PAGE_REQUEST_ATOMIC != 0;
                let name = match is_atomic {
                    true => "PAGE_REQUEST for atomics",
                    false => "PAGE_REQUEST",
                };
                telemetry.happened(name, self.queue);
                Asking::Sent
            }
            Delivery::NoBuffer => Asking::NoBuffer,
            Delivery::Stopped => Asking::Stopped,
        }
    }

    fn before_access(&self, given_up: &dyn Fn() -> bool) {
        let Shared {
            faults, telemetry, ..
        } = &*self.shared;
        let Some(late) = faults.delay_access(self.queue) else {
            return;
        };
        telemetry.counters.hit(FaultKind::LateAccess);
        let end = Instant::now() + late;
        while Instant::now() < end && faults.are_any() && !given_up() {
            faults.wait();
        }
    }

    fn report(&self, report: AccessReport) {
        let Shared {
            events,
            telemetry,
            turns,
            ..
        } = &*self.shared;
        let report = AccessReport {
            queue: self.queue.into(),
            ..report
        };
        let _turn = turns[usize::from(QUEUE_EVENT)].take();
        if events.report_accesses(report, &self.event, &self.shared.guest()) {
            telemetry.happened("ACCESS_REPORT", self.queue);
        } else {
            telemetry.counters.access_reports_lost.inc();
        }
    }
}
