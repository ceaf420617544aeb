// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Taking clients in, as many at a time as there are places.

use std::io;
use std::sync::Arc;
use std::time::Duration;
use tokio::sync::Semaphore;
use tokio::task::spawn_local;
use tracing::warn;

/// Clients that are served at a time; more wait in the backlog.
const CLIENTS_MAX: usize = 8;

/// Pause after a connection that could not be taken, for want of descriptors mostly.
const RETRY_PAUSE: Duration = Duration::from_millis(200);

/// Takes clients of `what` in for ever, and talks to each that `accept` yields in a task of its
/// own. Runs inside a `LocalSet`.
pub async fn serve<C, S: Future<Output = ()> + 'static>(
    what: &str,
    accept: impl AsyncFn() -> io::Result<C>,
    talk: impl Fn(C) -> S,
) {
    let places = Arc::new(Semaphore::new(CLIENTS_MAX));
    // Nobody closes the semaphore.
    while let Ok(place) = places.clone().acquire_owned().await {
        match accept().await {
            Ok(client) => {
                let talk = talk(client);
                spawn_local(async move {
                    talk.await;
                    drop(place);
                });
            }
            Err(error) => {
                warn!(%error, "cannot take a client of {what} in");
                tokio::time::sleep(RETRY_PAUSE).await;
            }
        }
    }
}
