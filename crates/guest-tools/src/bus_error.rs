// SPDX-License-Identifier: Apache-2.0 OR MIT

//! SIGBUS as the kernel raises it for memory that has failed.

use std::sync::atomic::{AtomicU64, Ordering::Relaxed};

use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};

use crate::memory::PAGE_BYTES;

/// The page that SIGBUS is to speak of.
static EXPECTED_PAGE: AtomicU64 = AtomicU64::new(0);

/// Exit status of a process that the expected signal ended.
pub const FAULTED: i32 = 77;
/// Exit status of one that SIGBUS told something else.
pub const OTHERWISE_FAULTED: i32 = 78;
/// From linux/signal.h: a hardware error that must be dealt with now.
const BUS_MCEERR_AR: i32 = 4;

/// `siginfo_t` of a SIGBUS as Linux fills it in on 64-bit machines.
#[repr(C)]
struct BusInfo {
    signal: i32,
    errno: i32,
    code: i32,
    padding: i32,
    address: u64,
    /// Number of low bits of `address` that mean nothing.
    address_lsb: i16,
}

extern "C" fn on_bus_error(
    _signal: libc::c_int,
    info: *mut libc::siginfo_t,
    _context: *mut libc::c_void,
) {
    // SAFETY: the kernel gives a valid siginfo_t, which for SIGBUS begins as `BusInfo` does.
    let info = unsafe { &*info.cast::<BusInfo>() };
    let is_as_expected = info.code == BUS_MCEERR_AR
        && info.address & !(PAGE_BYTES as u64 - 1) == EXPECTED_PAGE.load(Relaxed)
        && 1 << info.address_lsb == PAGE_BYTES;
    let status = match is_as_expected {
        true => FAULTED,
        false => OTHERWISE_FAULTED,
    };
    // SAFETY: `_exit` may be called in a signal handler and does not return.
    unsafe { libc::_exit(status) }
}

/// Ends this process with FAULTED when SIGBUS tells it of a failure of the page at `address`, and
/// with OTHERWISE_FAULTED when SIGBUS tells it something else.
pub fn expect(address: u64) -> nix::Result<()> {
    EXPECTED_PAGE.store(address, Relaxed);
    let action = SigAction::new(
        SigHandler::SigAction(on_bus_error),
        SaFlags::SA_SIGINFO,
        SigSet::empty(),
    );
    // SAFETY: the handler loads from atomics and ends the process, which is allowed in a handler.
    unsafe { sigaction(Signal::SIGBUS, &action) }?;
    Ok(())
}
