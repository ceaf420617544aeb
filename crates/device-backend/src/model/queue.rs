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
//!
//! Unordered commands run beside each other and finish in any order, so a line is
//! reached when no number below it runs. A CANCEL names one command by its tag; a tag
//! that no running command has is remembered until its line is reached, since the
//! command may still wait in the ring.

use super::alarm::Alarm;
use cdm_protocol::{Completion, QUEUE_SIZE, Status};
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};

/// One command of a queue, from taking it to giving it back.
#[derive(Debug)]
pub struct Ticket {
    number: u64,
    /// Set if a CANCEL names it.
    is_doomed: Arc<AtomicBool>,
}

/// The bookkeeping of one command queue.
///
/// One worker at a time takes commands; anybody may finish them and draw a line
/// meanwhile.
#[derive(Debug, Default)]
pub struct CommandQueue {
    /// Commands numbered below this are cancelled.
    line: AtomicU64,
    /// The guest waits for what runs, and does nothing else meanwhile.
    is_stopping: AtomicBool,
    book: Mutex<Book>,
    /// A command has finished.
    finished: Condvar,
    /// Rung after a command was told to stop: it may wait for pages.
    alarm: Arc<Alarm>,
}

#[derive(Debug, Default)]
struct Book {
    /// Commands taken so far.
    taken: u64,
    /// Commands below a line that finished with [`Status::CANCELLED`] so far.
    cancelled: u64,
    /// Those that are taken and not finished.
    running: BTreeMap<u64, Running>,
    /// Tags that a CANCEL named and no running command had.
    doomed: Vec<Doomed>,
    /// Threads that wait for commands to finish.
    waiting: usize,
}

#[derive(Debug)]
struct Running {
    tag: Option<u64>,
    is_doomed: Arc<AtomicBool>,
}

#[derive(Debug)]
struct Doomed {
    tag: u64,
    /// Commands from this number on may have the tag again.
    line: u64,
}

/// What a CANCEL came to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Cancellation {
    /// The command had begun, and is being stopped.
    Stopping,
    /// If the command is outstanding at all, it has not begun, and will not.
    Remembered,
    /// More tags are remembered than a queue has commands.
    Refused,
}

impl Book {
    /// The first number that is not finished.
    fn first_unfinished(&self) -> u64 {
        self.running.keys().next().copied().unwrap_or(self.taken)
    }

    /// Forgets tags of commands that would have been met by now.
    fn prune(&mut self) {
        let first = self.first_unfinished();
        self.doomed.retain(|doomed| doomed.line > first);
    }
}

impl CommandQueue {
    /// A queue without commands, which rings when it tells one to stop.
    pub fn new(alarm: Arc<Alarm>) -> Self {
        Self {
            alarm,
            ..Self::default()
        }
    }

    /// Numbers the next command.
    ///
    /// The caller takes the command off the ring in the same critical section, so that
    /// [`Self::cancel_posted`] never counts a command twice or not at all.
    pub fn take(&self) -> Ticket {
        let mut book = self.book();
        let ticket = Ticket {
            number: book.taken,
            is_doomed: Arc::default(),
        };
        book.taken += 1;
        let running = Running {
            tag: None,
            is_doomed: ticket.is_doomed.clone(),
        };
        book.running.insert(ticket.number, running);
        ticket
    }

    /// Notes by what tag a CANCEL may name the command.
    pub fn name(&self, ticket: &Ticket, tag: u64) {
        let mut book = self.book();
        let is_meant = |doomed: &Doomed| doomed.tag == tag && ticket.number < doomed.line;
        if book.doomed.iter().any(is_meant) {
            ticket.is_doomed.store(true, Ordering::Relaxed);
        }
        if let Some(running) = book.running.get_mut(&ticket.number) {
            running.tag = Some(tag);
        }
    }

    /// Forgets the command's tag, before its completion is where the driver sees it: from then
    /// on the tag may be another command's.
    pub fn forget_name(&self, ticket: &Ticket) {
        if let Some(running) = self.book().running.get_mut(&ticket.number) {
            running.tag = None;
        }
    }

    /// Whether the command is to stop. Cheap; a running command asks after every chunk.
    pub fn is_cancelled(&self, ticket: &Ticket) -> bool {
        self.is_below_line(ticket) || ticket.is_doomed.load(Ordering::Relaxed)
    }

    fn is_below_line(&self, ticket: &Ticket) -> bool {
        ticket.number < self.line.load(Ordering::Relaxed)
    }

    /// Whether the command that is taken next is to stop at once.
    pub fn is_next_cancelled(&self) -> bool {
        self.book().taken < self.line.load(Ordering::Relaxed)
    }

    /// Notes that the command's completion is where the driver sees it.
    pub fn finish(&self, ticket: &Ticket, completion: &Completion) {
        let mut book = self.book();
        if completion.status == Status::CANCELLED && self.is_below_line(ticket) {
            book.cancelled += 1;
        }
        book.running.remove(&ticket.number);
        book.prune();
        let is_awaited = book.waiting > 0;
        drop(book);
        if is_awaited {
            self.finished.notify_all();
        }
    }

    /// Whether a command taken before this one is not finished.
    pub fn has_earlier(&self, ticket: &Ticket) -> bool {
        self.book().first_unfinished() < ticket.number
    }

    /// Waits until every command taken before this one is finished.
    pub fn wait_for_earlier(&self, ticket: &Ticket) {
        self.wait_until(|book| book.first_unfinished() >= ticket.number);
    }

    /// Waits until every command taken so far is finished.
    pub fn wait_until_idle(&self) {
        self.wait_until(|book| book.running.is_empty());
    }

    fn wait_until(&self, condition: impl Fn(&Book) -> bool) {
        let mut book = self.book();
        book.waiting += 1;
        while !condition(&book) {
            book = self
                .finished
                .wait(book)
                .unwrap_or_else(PoisonError::into_inner);
        }
        book.waiting -= 1;
    }

    /// Draws the line behind the `waiting` commands that the ring holds and nobody has taken.
    pub fn cancel_posted(&self, waiting: u16) -> Line {
        let book = self.book();
        let line = book.taken + u64::from(waiting);
        self.line.fetch_max(line, Ordering::Relaxed);
        self.alarm.ring();
        Line {
            line,
            cancelled_before: book.cancelled,
        }
    }

    /// Cancels the command with that tag, wherever in the queue it is. `waiting` commands are
    /// in the ring.
    pub fn cancel_one(&self, tag: u64, waiting: u16) -> Cancellation {
        let mut book = self.book();
        let mut running = book.running.values();
        if let Some(running) = running.find(|running| running.tag == Some(tag)) {
            running.is_doomed.store(true, Ordering::Relaxed);
            self.alarm.ring();
            return Cancellation::Stopping;
        }
        book.prune();
        let line = book.taken + u64::from(waiting);
        if line == book.first_unfinished() {
            // Nothing is outstanding.
            return Cancellation::Remembered;
        }
        book.doomed.retain(|doomed| doomed.tag != tag);
        if book.doomed.len() >= usize::from(QUEUE_SIZE) {
            return Cancellation::Refused;
        }
        book.doomed.push(Doomed { tag, line });
        Cancellation::Remembered
    }

    /// Cancels whatever runs now and whatever is taken later, until [`Self::forget_line`].
    pub fn cancel_all(&self) {
        self.line.store(u64::MAX, Ordering::Relaxed);
        self.alarm.ring();
    }

    /// Lets commands run again that were posted before a line and never taken.
    ///
    /// A stopped ring forgets its waiting commands, so the numbers that the line counted
    /// on would fall on the next driver's commands.
    pub fn forget_line(&self) {
        self.line.store(0, Ordering::Relaxed);
        self.book().doomed.clear();
    }

    /// Says whether the guest waits for what runs, which must not wait for the guest then.
    pub fn set_stopping(&self, is_stopping: bool) {
        self.is_stopping.store(is_stopping, Ordering::Relaxed);
        self.alarm.ring();
    }

    /// What [`Self::set_stopping`] said.
    pub fn is_stopping(&self) -> bool {
        self.is_stopping.load(Ordering::Relaxed)
    }

    /// Whether everything below the line is taken.
    pub fn is_taken(&self, line: &Line) -> bool {
        self.book().taken >= line.line
    }

    /// Waits until everything below the line that was taken is finished.
    pub fn wait_for_line(&self, line: &Line) {
        self.wait_until(|book| {
            book.running
                .keys()
                .next()
                .is_none_or(|&first| first >= line.line)
        });
    }

    /// Commands that ended with [`Status::CANCELLED`] since the line was drawn, on its account.
    pub fn cancelled_since(&self, line: &Line) -> u64 {
        self.book().cancelled - line.cancelled_before
    }

    fn book(&self) -> MutexGuard<'_, Book> {
        // Nothing panics while the book is locked.
        self.book.lock().unwrap_or_else(PoisonError::into_inner)
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
    use std::thread;
    use std::time::Duration;
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
        queue.finish(&done, &ended(Status::OK));
        let running = queue.take();
        let line = queue.cancel_posted(2);
        assert!(queue.is_cancelled(&done) && queue.is_cancelled(&running));
        queue.finish(&running, &ended(Status::CANCELLED));
        for _ in 0..2 {
            assert!(!queue.is_taken(&line));
            let waiting = queue.take();
            assert!(queue.is_cancelled(&waiting));
            queue.finish(&waiting, &ended(Status::CANCELLED));
        }
        assert!(!queue.is_cancelled(&queue.take()));
        assert!(queue.is_taken(&line));
        queue.wait_for_line(&line);
        assert_eq!(queue.cancelled_since(&line), 3);
    }

    #[test]
    fn a_line_waits_for_an_earlier_command_though_later_ones_are_done() {
        let queue = CommandQueue::default();
        let [first, second] = [queue.take(), queue.take()];
        let line = queue.cancel_posted(0);
        let (later, _running) = (queue.take(), queue.take());
        queue.finish(&later, &ended(Status::OK));
        queue.finish(&second, &ended(Status::CANCELLED));
        thread::scope(|scope| {
            let waiting = scope.spawn(|| {
                queue.wait_for_line(&line);
                queue.cancelled_since(&line)
            });
            thread::sleep(Duration::from_millis(20));
            assert!(!waiting.is_finished());
            queue.finish(&first, &ended(Status::CANCELLED));
            assert_eq!(waiting.join().unwrap(), 2);
        });
    }

    #[test]
    fn a_command_waits_for_the_earlier_ones_and_not_for_the_later() {
        let queue = CommandQueue::default();
        let [first, second, _later] = [queue.take(), queue.take(), queue.take()];
        queue.wait_for_earlier(&first);
        thread::scope(|scope| {
            let waiting = scope.spawn(|| queue.wait_for_earlier(&second));
            queue.finish(&first, &ended(Status::OK));
            waiting.join().unwrap();
        });
    }

    #[test]
    fn a_command_that_was_done_before_it_saw_the_line_is_not_counted() {
        let queue = CommandQueue::default();
        let running = queue.take();
        let line = queue.cancel_posted(0);
        queue.finish(&running, &ended(Status::OK));
        queue.wait_for_line(&line);
        assert_eq!(queue.cancelled_since(&line), 0);
    }

    #[test]
    fn an_idle_queue_has_nothing_to_cancel() {
        let queue = CommandQueue::default();
        let line = queue.cancel_posted(0);
        queue.wait_for_line(&line);
        assert_eq!(queue.cancelled_since(&line), 0);
        assert!(!queue.is_cancelled(&queue.take()));
    }

    #[test]
    fn after_a_ring_was_stopped_an_old_line_cancels_nothing() {
        let queue = CommandQueue::default();
        let _line = queue.cancel_posted(5);
        assert_eq!(queue.cancel_one(1, 5), Cancellation::Remembered);
        queue.forget_line();
        let ticket = queue.take();
        queue.name(&ticket, 1);
        assert!(!queue.is_cancelled(&ticket));
    }

    #[test]
    fn a_tag_cancels_its_command_alone_and_a_reset_does_not_count_it() {
        let queue = CommandQueue::default();
        let [one, other] = [queue.take(), queue.take()];
        queue.name(&one, 1);
        queue.name(&other, 2);
        assert_eq!(queue.cancel_one(2, 0), Cancellation::Stopping);
        assert!(!queue.is_cancelled(&one) && queue.is_cancelled(&other));
        let line = queue.cancel_posted(0);
        queue.forget_line();
        queue.finish(&other, &ended(Status::CANCELLED));
        queue.finish(&one, &ended(Status::OK));
        assert_eq!(queue.cancelled_since(&line), 0);
    }

    #[test]
    fn a_tag_means_nothing_from_before_the_completion_is_seen() {
        let queue = CommandQueue::default();
        let ticket = queue.take();
        queue.name(&ticket, 1);
        queue.forget_name(&ticket);
        assert_eq!(queue.cancel_one(1, 0), Cancellation::Remembered);
        let next = queue.take();
        queue.name(&next, 1);
        assert!(!queue.is_cancelled(&next));
    }

    #[test]
    fn a_tag_that_waits_in_the_ring_is_met_and_one_that_comes_later_is_not() {
        let queue = CommandQueue::default();
        assert_eq!(queue.cancel_one(7, 2), Cancellation::Remembered);
        let tags = [5, 7, 7].map(|tag| {
            let ticket = queue.take();
            queue.name(&ticket, tag);
            let is_cancelled = queue.is_cancelled(&ticket);
            queue.finish(&ticket, &ended(Status::OK));
            is_cancelled
        });
        assert_eq!(tags, [false, true, false]);
    }

    #[test]
    fn a_command_that_has_no_name_yet_is_met_when_it_gets_one() {
        let queue = CommandQueue::default();
        let ticket = queue.take();
        assert_eq!(queue.cancel_one(7, 0), Cancellation::Remembered);
        queue.name(&ticket, 7);
        assert!(queue.is_cancelled(&ticket));
    }

    #[test]
    fn tags_are_remembered_as_long_as_they_can_be_met_and_no_more_than_a_queue_has_commands() {
        let queue = CommandQueue::default();
        // Nothing is outstanding.
        for tag in 0..1000 {
            assert_eq!(queue.cancel_one(tag, 0), Cancellation::Remembered);
        }
        let running = queue.take();
        for tag in 0..u64::from(QUEUE_SIZE) {
            assert_eq!(queue.cancel_one(tag, 1), Cancellation::Remembered);
        }
        assert_eq!(queue.cancel_one(1, 1), Cancellation::Remembered);
        assert_eq!(queue.cancel_one(1000, 1), Cancellation::Refused);
        for ticket in [running, queue.take()] {
            queue.finish(&ticket, &ended(Status::OK));
        }
        let _running = queue.take();
        assert_eq!(queue.cancel_one(1000, 1), Cancellation::Remembered);
    }
}
