// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A virtqueue as `vhost-user-backend` has it, but for one thing.
//!
//! A frontend that stops a queue and starts it again brings a new eventfd for kicks. If a
//! worker of `vhost-user-backend` 0.24 sees a kick of the old one only then, it reads the new
//! one, finds nothing, takes that for an error, and ends; so the queue has no worker any more.
//! [`Vring::read_kick`] takes it for what it is: no kick.

use std::fs::File;
use std::io;
use std::ops::Deref;
use std::sync::MutexGuard;

use vhost_user_backend::{VringMutex, VringState, VringStateGuard, VringStateMutGuard, VringT};
use virtio_queue::Error;
use vm_memory::{GuestMemoryAtomic, GuestMemoryMmap};

type Memory = GuestMemoryAtomic<GuestMemoryMmap>;

/// See the module.
#[derive(Clone)]
pub struct Vring(VringMutex);

impl Deref for Vring {
    type Target = VringMutex;

    fn deref(&self) -> &VringMutex {
        &self.0
    }
}

impl<'a> VringStateGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl<'a> VringStateMutGuard<'a, Memory> for Vring {
    type G = MutexGuard<'a, VringState<Memory>>;
}

impl VringT<Memory> for Vring {
    fn new(memory: Memory, max_queue_size: u16) -> Result<Self, Error> {
        VringMutex::new(memory, max_queue_size).map(Self)
    }

    fn read_kick(&self) -> io::Result<bool> {
        match self.0.read_kick() {
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(false),
            read => read,
        }
    }

    // The rest is as it was.

    fn get_ref(&self) -> <Self as VringStateGuard<'_, Memory>>::G {
        self.0.get_ref()
    }

    fn get_mut(&self) -> <Self as VringStateMutGuard<'_, Memory>>::G {
        self.0.get_mut()
    }

    fn add_used(&self, desc_index: u16, len: u32) -> Result<(), Error> {
        self.0.add_used(desc_index, len)
    }

    fn signal_used_queue(&self) -> io::Result<()> {
        self.0.signal_used_queue()
    }

    fn enable_notification(&self) -> Result<bool, Error> {
        self.0.enable_notification()
    }

    fn disable_notification(&self) -> Result<(), Error> {
        self.0.disable_notification()
    }

    fn needs_notification(&self) -> Result<bool, Error> {
        self.0.needs_notification()
    }

    fn set_enabled(&self, enabled: bool) {
        self.0.set_enabled(enabled);
    }

    fn set_queue_info(
        &self,
        desc_table: u64,
        avail_ring: u64,
        used_ring: u64,
    ) -> Result<(), Error> {
        self.0.set_queue_info(desc_table, avail_ring, used_ring)
    }

    fn queue_next_avail(&self) -> u16 {
        self.0.queue_next_avail()
    }

    fn set_queue_next_avail(&self, base: u16) {
        self.0.set_queue_next_avail(base);
    }

    fn set_queue_next_used(&self, idx: u16) {
        self.0.set_queue_next_used(idx);
    }

    fn queue_used_idx(&self) -> Result<u16, Error> {
        self.0.queue_used_idx()
    }

    fn set_queue_size(&self, num: u16) {
        self.0.set_queue_size(num);
    }

    fn set_queue_event_idx(&self, enabled: bool) {
        self.0.set_queue_event_idx(enabled);
    }

    fn set_queue_ready(&self, ready: bool) {
        self.0.set_queue_ready(ready);
    }

    fn set_kick(&self, file: Option<File>) {
        self.0.set_kick(file);
    }

    fn set_call(&self, file: Option<File>) {
        self.0.set_call(file);
    }

    fn set_err(&self, file: Option<File>) {
        self.0.set_err(file);
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::OwnedFd;

    use nix::sys::eventfd::{EfdFlags, EventFd};
    use vm_memory::GuestAddress;

    fn kick(kicks: u64) -> Option<File> {
        let fd = EventFd::from_value_and_flags(0, EfdFlags::EFD_NONBLOCK).unwrap();
        if kicks > 0 {
            fd.write(kicks).unwrap();
        }
        Some(File::from(OwnedFd::from(fd)))
    }

    #[test]
    fn a_kick_of_an_eventfd_that_was_replaced_is_no_kick_and_no_error() {
        let memory = GuestMemoryMmap::from_ranges(&[(GuestAddress(0), 0x1000)]).unwrap();
        let vring = Vring::new(GuestMemoryAtomic::new(memory), 256).unwrap();
        vring.set_enabled(true);
        vring.set_kick(kick(1));
        assert!(vring.read_kick().unwrap());
        vring.set_kick(kick(0));
        assert!(!vring.read_kick().unwrap());
        vring.set_kick(kick(1));
        assert!(vring.read_kick().unwrap());
    }
}
