// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Order and cancellation of the commands of one queue.
//!
//! Commands are numbered in the order in which the queue's worker takes them. A
//! RESET draws a line: every number below it that has no completion yet is
//! outstanding and ends with CANCELLED, every number from it on is new. A command
//! that the driver made available but that no worker has taken is below the line
//! too, because the line is drawn `waiting` numbers past the last one taken.
//!
//! ```text
//!            finished      running   waiting in the ring      posted later
//! numbers  0 .......... n-1    n     n+1 ........ n+waiting | n+waiting+1 ...
//!                              ^ taken                      ^ line of a RESET
//! ```

use cdm_protocol::{Completion, Status};
use std::sync::atomic::{AtomicU64, Ordering};

/// Number of one command in its queue.
#[derive(Clone, Copy, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Ticket(u64);

/// The bookkeeping of one command queue.
///
/// One worker at a time takes, runs and finishes commands; anybody may draw a line
/// meanwhile.
#[derive(Debug, Default)]
pub struct CommandQueue {
    /// Commands taken so far.
    taken: AtomicU64,
    /// Commands finished so far.
    finished: AtomicU64,
    /// Commands finished with [`Status::CANCELLED`] so far.
    cancelled: AtomicU64,
    /// Commands numbered below this are cancelled.
    line: AtomicU64,
}

impl CommandQueue {
    /// Numbers the next command.
    ///
    /// The caller takes the command off the ring in the same critical section, so that
    /// [`Self::cancel_posted`] never counts a command twice or not at all.
    pub fn take(&self) -> Ticket {
        Ticket(self.taken.fetch_add(1, Ordering::Relaxed))
    }

    /// Whether the command is to stop. Cheap; a running command asks after every chunk.
    pub fn is_cancelled(&self, ticket: Ticket) -> bool {
        ticket.0 < self.line.load(Ordering::Relaxed)
    }

    /// Notes that the command's completion is where the driver sees it.
    pub fn finish(&self, completion: &Completion) {
        if completion.status == Status::CANCELLED {
            self.cancelled.fetch_add(1, Ordering::Relaxed);
        }
        // Release: who sees the number also sees the count of cancelled commands.
        self.finished.fetch_add(1, Ordering::Release);
    }

    /// Draws the line behind the `waiting` commands that the ring holds and nobody has taken.
    pub fn cancel_posted(&self, waiting: u16) -> Line {
        let cancelled_before = self.cancelled.load(Ordering::Relaxed);
        let line = self.taken.load(Ordering::Relaxed) + u64::from(waiting);
        self.line.fetch_max(line, Ordering::Relaxed);
        Line {
            line,
            cancelled_before,
        }
    }

    /// Cancels whatever runs now and whatever is taken later, until [`Self::forget_line`].
    pub fn cancel_all(&self) {
        self.line.store(u64::MAX, Ordering::Relaxed);
    }

    /// Lets commands run again that were posted before a line and never taken.
    ///
    /// A stopped ring forgets its waiting commands, so the numbers that the line counted
    /// on would fall on the next driver's commands.
    pub fn forget_line(&self) {
        self.line.store(0, Ordering::Relaxed);
    }

    /// Whether everything below the line is finished.
    pub fn is_reached(&self, line: &Line) -> bool {
        self.finished.load(Ordering::Acquire) >= line.line
    }

    /// Commands that ended with [`Status::CANCELLED`] since the line was drawn.
    pub fn cancelled_since(&self, line: &Line) -> u64 {
        self.cancelled.load(Ordering::Relaxed) - line.cancelled_before
    }
}

/// What [`CommandQueue::cancel_posted`] drew.
#[derive(Debug)]
#[must_use = "a RESET is complete only when everything below the line is finished"]
pub struct Line {
    line: u64,
    cancelled_before: u64,
}

#[cfg(test)]
mod tests {
    use super::*;
    use zerocopy::FromZeros;

    fn ended(status: Status) -> Completion {
        Completion {
            status,
            ..Completion::new_zeroed()
        }
    }

    #[test]
    fn a_line_cancels_the_running_and_the_waiting_and_spares_the_later() {
        let queue = CommandQueue::default();
        let done = queue.take();
        queue.finish(&ended(Status::OK));
        let running = queue.take();
        let line = queue.cancel_posted(2);
        assert!(queue.is_cancelled(done) && queue.is_cancelled(running));
        queue.finish(&ended(Status::CANCELLED));
        for _ in 0..2 {
            assert!(!queue.is_reached(&line));
            assert!(queue.is_cancelled(queue.take()));
            queue.finish(&ended(Status::CANCELLED));
        }
        assert!(!queue.is_cancelled(queue.take()));
        assert!(queue.is_reached(&line));
        assert_eq!(queue.cancelled_since(&line), 3);
    }

    #[test]
    fn a_command_that_was_done_before_it_saw_the_line_is_not_counted() {
        let queue = CommandQueue::default();
        let _running = queue.take();
        let line = queue.cancel_posted(0);
        queue.finish(&ended(Status::OK));
        assert!(queue.is_reached(&line));
        assert_eq!(queue.cancelled_since(&line), 0);
    }

    #[test]
    fn an_idle_queue_has_nothing_to_cancel() {
        let queue = CommandQueue::default();
        let line = queue.cancel_posted(0);
        assert!(queue.is_reached(&line));
        assert_eq!(queue.cancelled_since(&line), 0);
        assert!(!queue.is_cancelled(queue.take()));
    }

    #[test]
    fn after_a_ring_was_stopped_an_old_line_cancels_nothing() {
        let queue = CommandQueue::default();
        let _line = queue.cancel_posted(5);
        queue.forget_line();
        assert!(!queue.is_cancelled(queue.take()));
    }
}
