// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The end of a process in which a thread made a system call that is none of its business.

use crate::process::ExitCode;
use nix::errno::Errno;
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, sigaction};
use std::cell::Cell;
use std::fmt::{self, Write};
use std::os::fd::BorrowedFd;
use syscalls::Sysno;

thread_local! {
    static THREAD: Cell<&'static str> = const { Cell::new("start") };
}

/// Longest line that is written.
const LINE_BYTES: usize = 160;

/// A line in memory of its own: a signal handler must not allocate.
struct Line {
    bytes: [u8; LINE_BYTES],
    length: usize,
}

/// Has every call that a filter traps end the process with a line in the log.
///
/// A filter's SIGSYS cannot be blocked or ignored: a thread that tried to would be killed
/// without the line.
pub fn report_from_now_on() -> Result<(), Errno> {
    let action = SigAction::new(
        SigHandler::SigAction(end),
        SaFlags::SA_SIGINFO,
        SigSet::all(),
    );
    // SAFETY: the handler does only what is safe in a signal handler: it formats numbers into
    // memory of its own, reads a thread-local without a destructor, writes and exits.
    unsafe { sigaction(Signal::SIGSYS, &action) }.map(drop)
}

/// What the line calls this thread.
pub fn name_thread(name: &'static str) {
    THREAD.set(name);
}

extern "C" fn end(_signal: libc::c_int, _info: *mut libc::siginfo_t, context: *mut libc::c_void) {
    // SAFETY: with SA_SIGINFO the kernel passes a ucontext_t that is ours until we return.
    let context = unsafe { &*context.cast::<libc::ucontext_t>() };
    // A trapped call was not made; its number is back where the caller had put it.
    let number = context.uc_mcontext.gregs[libc::REG_RAX as usize];
    let name = usize::try_from(number).ok().and_then(Sysno::new);
    let mut line = Line {
        bytes: [0; LINE_BYTES],
        length: 0,
    };
    // A line that is too long is cut.
    let _ = writeln!(
        line,
        "cdm-backend: sandbox: the thread '{}' made the forbidden system call {number} ({}); ending",
        THREAD.get(),
        name.map_or("unknown", |call| call.name()),
    );
    // SAFETY: if there is no standard error any more, the write fails.
    let stderr = unsafe { BorrowedFd::borrow_raw(libc::STDERR_FILENO) };
    let _ = nix::unistd::write(stderr, &line.bytes[..line.length]);
    // SAFETY: ends the process without running anything of it.
    unsafe { libc::_exit(ExitCode::Forbidden as libc::c_int) }
}

impl Write for Line {
    fn write_str(&mut self, text: &str) -> fmt::Result {
        let room = &mut self.bytes[self.length..];
        let count = room.len().min(text.len());
        room[..count].copy_from_slice(&text.as_bytes()[..count]);
        self.length += count;
        if count == text.len() {
            Ok(())
        } else {
            Err(fmt::Error)
        }
    }
}
