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
}

impl Mapper {
    /// Takes the channel that the frontend has opened.
    pub fn set_channel(&self, channel: Backend) {
        *self.channel.lock().unwrap_or_else(PoisonError::into_inner) = Some(channel);
    }

    /// Whether a request is on its way. Whoever handles a frontend's message must not wait for
    /// the answer: the frontend gives it only after ours.
    pub fn is_waiting(&self) -> bool {
        self.is_waiting.load(Ordering::Acquire)
    }

    /// Maps all of the pool into its shared memory region and waits for the answer.
    ///
    /// No lock is held meanwhile: before it answers, the frontend sends a new memory table.
    pub fn map(&self, pool: &Pool) -> io::Result<()> {
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
        self.is_waiting.store(true, Ordering::Release);
        let result = channel.shmem_map(&request, pool.file());
        self.is_waiting.store(false, Ordering::Release);
        result.map(|_| ())
    }
}
