// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Memory that a command can name: the device's, as far as it may, and the guest's.

use super::link::Side;
use super::operand::Operand;
use super::state::{DriverState, Mapping};
use super::translation::Frame;
use super::{FailedMemory, GuestMemory, Pool};
use cdm_protocol::Status;
use vm_memory::VolatileSlice;

/// Memory as it was when a command began.
#[derive(Clone, Copy)]
pub struct Memory<'m> {
    /// The device's.
    pub pool: &'m Pool,
    /// What the driver keeps for itself of that, and whether it is there.
    pub state: &'m DriverState,
    /// What of it has failed: not as it was, but as it is.
    pub failed: &'m FailedMemory,
    /// The guest's.
    pub guest: &'m dyn GuestMemory,
}

impl<'m> Memory<'m> {
    /// Appends `bytes` from `frame` on; all of them, or the reason why not.
    pub fn resolve(
        self,
        frame: Frame,
        bytes: u64,
        operand: &mut Operand<'m>,
    ) -> Result<(), Status> {
        match frame {
            Frame::Device(address) => operand.push(self.device(address, bytes)?, frame.side()),
            Frame::Guest(address) => self.resolve_guest(address, bytes, operand)?,
        }
        Ok(())
    }

    /// Bytes that do not run across the border of two regions, such as an aligned word's.
    pub fn slice(self, frame: Frame, bytes: u64) -> Result<VolatileSlice<'m>, Status> {
        match frame {
            Frame::Device(address) => self.device(address, bytes),
            Frame::Guest(address) => {
                let slice = self.guest.stretch(address, bytes);
                let slice = slice.filter(|slice| slice.len() as u64 == bytes);
                slice.ok_or(Status::BAD_ADDRESS)
            }
        }
    }

    /// How many of the `bytes` from `frame` on, which are memory, have not failed: those before
    /// the first one that has.
    pub fn good_bytes(self, frame: Frame, bytes: u64) -> u64 {
        match frame {
            Frame::Device(address) => self.failed.good_bytes(address, bytes),
            Frame::Guest(_) => bytes,
        }
    }

    fn device(self, address: u64, bytes: u64) -> Result<VolatileSlice<'m>, Status> {
        if self.state.mapping != Mapping::Mapped {
            return Err(Status::NOT_MAPPED);
        }
        let slice = self.pool.slice(address, bytes).ok_or(Status::BAD_ADDRESS)?;
        if self.state.is_protected(address, bytes) {
            return Err(Status::PROTECTED);
        }
        Ok(slice)
    }

    /// A guest-physical range may span several regions of guest memory.
    fn resolve_guest(
        self,
        mut address: u64,
        mut bytes: u64,
        operand: &mut Operand<'m>,
    ) -> Result<(), Status> {
        while bytes > 0 {
            let slice = self.guest.stretch(address, bytes);
            let slice = slice.ok_or(Status::BAD_ADDRESS)?;
            let found = slice.len() as u64;
            debug_assert!((1..=bytes).contains(&found));
            operand.push(slice, Side::Link);
            bytes -= found;
            // Wraps only with nothing left to find, or to an address that is refused there.
            address = address.wrapping_add(found);
        }
        Ok(())
    }
}
