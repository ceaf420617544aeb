// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Serving one guest, from connection to hang-up.

use super::adapter::{Adapter, Parts};
use std::os::fd::{FromRawFd, OwnedFd};
use std::sync::Arc;
use vhost::vhost_user::{Error as VhostUserError, Listener};
use vhost_user_backend::{Error as DaemonError, ShutdownHandle, VhostUserDaemon};
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

/// One frontend that is being served by workers of its own.
pub struct Connection {
    adapter: Arc<Adapter>,
    daemon: VhostUserDaemon<Arc<Adapter>>,
}

/// Why a connection could not be served to its end.
#[derive(Debug, thiserror::Error)]
pub enum ConnectionError {
    /// Nothing could be set up for it.
    #[error("cannot start serving a guest: {0}")]
    Start(DaemonError),
    /// The frontend said something that we do not understand.
    #[error("the frontend broke the vhost-user protocol: {0}")]
    Protocol(DaemonError),
}

impl Connection {
    /// Accepts the connection that waits at `listener` and starts serving it.
    ///
    /// Blocks until there is one.
    pub fn accept(parts: &Parts, listener: &mut Listener) -> Result<Self, ConnectionError> {
        let adapter = Arc::new(Adapter::new(parts));
        let memory = GuestMemoryAtomic::new(GuestMemoryMmap::new());
        let mut daemon = VhostUserDaemon::new("vhost-user".to_owned(), adapter.clone(), memory)
            .map_err(ConnectionError::Start)?;
        daemon.start(listener).map_err(ConnectionError::Start)?;
        Ok(Self { adapter, daemon })
    }

    /// A handle that ends the connection from another thread.
    pub fn shutdown_handle(&self) -> Option<ShutdownHandle> {
        self.daemon.shutdown_handle()
    }

    /// Serves until the frontend hangs up or the connection is shut down.
    ///
    /// Commands that still run are cancelled then. Device memory stays as it is; what the
    /// driver had set up is forgotten.
    pub fn serve(mut self) -> Result<(), ConnectionError> {
        let result = match self.daemon.wait() {
            Ok(()) => Ok(()),
            // The frontend's way to hang up, at a message's border or (killed) within one.
            Err(DaemonError::HandleRequest(
                VhostUserError::Disconnected | VhostUserError::PartialMessage,
            )) => Ok(()),
            Err(error) => Err(ConnectionError::Protocol(error)),
        };
        let device = self.adapter.device().clone();
        self.adapter.hang_up();
        // Waits for the workers.
        drop(self.daemon);
        self.adapter.stop_engines();
        for fd in self.adapter.take_exit_fds() {
            // SAFETY: the descriptor came from an eventfd whose owner let go of it with
            // into_raw_fd; the epoll set that watched it is gone with the worker's thread, so
            // nobody else owns or uses it.
            drop(unsafe { OwnedFd::from_raw_fd(fd) });
        }
        for queue in device.queues() {
            queue.forget_line();
        }
        device.unplug();
        result
    }
}
