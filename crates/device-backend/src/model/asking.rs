// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the model needs to ask the driver for pages, to tell it which ones it uses much, and to be
//! slow at it.

use cdm_protocol::{AccessReport, PageRequest, Status};

/// The way of a page request to the driver.
pub trait PageAsker {
    /// Sends a page request, whose queue is filled in here. The answer comes as a request of the
    /// control queue.
    fn ask(&self, request: PageRequest) -> Asking;

    /// A command is about to access memory of a process, whose translation it uses from here until
    /// the access is done. May take its time, as an access across a link may, but not after
    /// `given_up`.
    fn before_access(&self, _given_up: &dyn Fn() -> bool) {}

    /// Tells the driver of a granule that is used much; queue and lost reports are filled in
    /// here. Nobody waits for it, and it is lost where there is no room for it.
    fn report(&self, _report: AccessReport) {}
}

/// What became of a page request.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Asking {
    /// The driver has it.
    Sent,
    /// The driver has no buffer for it on the event queue.
    NoBuffer,
    /// It is refused without asking the driver.
    Refused(Status),
    /// The event queue is at rest, and the driver with it.
    Stopped,
}
