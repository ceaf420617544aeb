// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Mapping device memory into the guest: the SHMEM_MAP request to the frontend.

use crate::model::Pool;
use cdm_protocol::SHMEM_REGION_ID;
use std::io;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Mutex, PoisonError};
use vhost::vhost_user::message::{VhostUserMMap, VhostUserMMapFlags};
use vhost::vhost_user::{Backend, VhostUserFrontendReqHandler};

/// The channel on which the backend asks and the frontend answers.
#[derive(Default)]
pub struct Mapper {
    channel: Mutex<Option<Backend>>,
    is_waiting: AtomicBool,
    is_stopping: AtomicBool,
}

/// Why the memory is not mapped.
#[derive(Debug, thiserror::Error)]
pub enum MapError {
    /// The guest has stopped the control queue meanwhile; nobody waits for an answer.
    #[error("the guest stopped the control queue")]
    Stopped,
    /// The frontend did not do it.
    #[error("the frontend did not map the device memory: {0}")]
    Frontend(#[from] io::Error),
}

impl Mapper {
    /// Takes the channel that the frontend has opened.
    pub fn set_channel(&self, channel: Backend) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel);
    }

    /// Announces that the control queue is being stopped; true if a request is on its way.
    ///
    /// Then whoever handles the frontend's message must not wait for the control worker: the
    /// frontend answers the request only after it got its own answer. A request that is about
    /// to be sent sees the announcement and is not sent: each side writes its flag before it
    /// reads the other's.
    pub fn begin_stop(&self) -> bool {
        self.is_stopping.store(true, Ordering::SeqCst);
        self.is_waiting.load(Ordering::SeqCst)
    }

    /// The control queue may start again.
    pub fn end_stop(&self) {
        self.is_stopping.store(false, Ordering::SeqCst);
    }

    /// Maps all of the pool into its shared memory region and waits for the answer.
    ///
    /// No lock is held meanwhile: before it answers, the frontend sends a new memory table.
    pub fn map(&self, pool: &Pool) -> Result<(), MapError> {
        let channel = self
            .channel
            .lock()
            .unwrap_or_else(PoisonError::into_inner)
            .clone();
        let channel = channel.ok_or_else(|| {
            io::Error::other("the frontend opened no backend channel (needs BACKEND_REQ)")
        })?;
        let request = VhostUserMMap {
            shmid: SHMEM_REGION_ID,
            len: pool.size().bytes(),
            flags: VhostUserMMapFlags::WRITABLE.bits(),
            ..VhostUserMMap::default()
        };
        self.is_waiting.store(true, Ordering::SeqCst);
        let result = if self.is_stopping.load(Ordering::SeqCst) {
            Err(MapError::Stopped)
        } else {
            channel
                .shmem_map(&request, pool.file())
                .map(|_| ())
                .map_err(MapError::Frontend)
        };
        self.is_waiting.store(false, Ordering::SeqCst);
        if self.is_stopping.load(Ordering::SeqCst) {
            return Err(MapError::Stopped);
        }
        result
    }
}
