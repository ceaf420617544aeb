// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The serving thread: guest after guest, or the one guest of `--fd`.

use super::handed_socket::HandedSocket;
use super::stop::{Stop, Woken};
use crate::vhost::{Connection, ConnectionError, Parts};
use cdm_protocol::QUEUE_CONTROL;
use std::io;
use std::thread;
use std::time::Duration;
use tracing::{error, info, warn};
use vhost::vhost_user::Listener;

/// Pause after a connection that could not even be started: a lack of descriptors or
/// threads does not mend itself in a busy loop.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Where guests come from.
pub enum Source {
    /// `--socket-path`.
    Path(Listener),
    /// `--fd`.
    Handed(HandedSocket),
}

/// Why serving ended early.
#[derive(Debug, thiserror::Error)]
pub enum ServeError {
    /// The socket cannot be watched.
    #[error("cannot wait for a guest: {0}")]
    Wait(io::Error),
    /// The only guest was lost.
    #[error(transparent)]
    Connection(#[from] ConnectionError),
}

/// Serves until the end is asked for, or the guest of `--fd` hangs up.
pub fn serve(parts: &Parts, source: Source, stop: &Stop) -> Result<(), ServeError> {
    match source {
        Source::Path(mut listener) => serve_all(parts, &mut listener, stop),
        Source::Handed(mut socket) => {
            let result = match wait_for_guest(socket.listener(), stop)? {
                Woken::Readable => serve_one(parts, socket.listener(), stop),
                Woken::Stopped => Ok(()),
            };
            if !stop.is_requested() {
                socket.finish();
            }
            Ok(result?)
        }
    }
}

fn serve_all(parts: &Parts, listener: &mut Listener, stop: &Stop) -> Result<(), ServeError> {
    while wait_for_guest(listener, stop)? == Woken::Readable {
        match serve_one(parts, listener, stop) {
            Ok(()) => {}
            // The guest is lost, the memory is not: the next one finds it.
            Err(error @ ConnectionError::Protocol(_)) => warn!(%error, "lost the guest"),
            Err(error @ ConnectionError::Start(_)) => {
                error!(%error, "cannot take a guest in");
                thread::sleep(RETRY_PAUSE);
            }
        }
    }
    Ok(())
}

/// Waits here, not in the accept of vhost-user-backend: that one cannot be stopped.
fn wait_for_guest(listener: &Listener, stop: &Stop) -> Result<Woken, ServeError> {
    stop.wait_readable(listener).map_err(ServeError::Wait)
}

fn serve_one(parts: &Parts, listener: &mut Listener, stop: &Stop) -> Result<(), ConnectionError> {
    let connection = Connection::accept(parts, listener)?;
    let telemetry = &parts.telemetry;
    telemetry.counters.guests.inc();
    telemetry.counters.connected.set(1);
    telemetry.happened("guest connected", QUEUE_CONTROL);
    info!("a guest has connected");
    stop.attach(connection.shutdown_handle());
    let result = connection.serve();
    stop.attach(None);
    telemetry.counters.connected.set(0);
    telemetry.happened("guest gone", QUEUE_CONTROL);
    info!("the guest has gone");
    result
}
