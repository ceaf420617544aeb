// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Threads that work on commands beside the queues' own.
//!
//! They take jobs from one bounded list. Nobody ever waits for a place in it: who finds
//! none does the job himself. An engine holds no lock while it works.

use super::poll::{LONGEST, Poll};
use std::collections::VecDeque;
use std::hint;
use std::panic::{AssertUnwindSafe, catch_unwind};
use std::sync::atomic::{AtomicUsize, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Instant;
use tracing::{error, warn};

/// Jobs that may wait for each engine: more would only make the last one wait longer.
const WAITING_PER_ENGINE: usize = 4;

/// What an engine does.
pub type Job = Box<dyn FnOnce() + Send>;

/// A pool of threads. They end with [`Self::stop`], when all jobs are done.
pub struct Engines {
    list: Arc<List>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    count: usize,
}

#[derive(Default)]
struct List {
    jobs: Mutex<Jobs>,
    /// Jobs that wait, for who looks without the lock.
    count: AtomicUsize,
    changed: Condvar,
}

#[derive(Default)]
struct Jobs {
    waiting: VecDeque<Job>,
    /// Engines that look for a job, and look once more under the lock before they sleep.
    looking: usize,
    is_closed: bool,
}

impl Engines {
    /// Starts so many threads, which call `prepare` first; fewer, with a warning, if the host has
    /// not that many.
    pub fn start(count: u16, prepare: impl Fn() + Clone + Send + 'static) -> Self {
        let list = Arc::<List>::default();
        let mut threads = Vec::new();
        for index in 0..count {
            let list = list.clone();
            let prepare = prepare.clone();
            let thread = thread::Builder::new().name(format!("engine {index}"));
            let serve = move || {
                prepare();
                list.serve();
            };
            match thread.spawn(serve) {
                Ok(thread) => threads.push(thread),
                Err(error) => {
                    warn!(%error, index, "cannot start an engine; going on with those before it");
                    break;
                }
            }
        }
        Self {
            list,
            count: threads.len(),
            threads: Mutex::new(threads),
        }
    }

    /// How many there are.
    pub fn count(&self) -> usize {
        self.count
    }

    /// Gives a job away; back to the caller if there is no place for it.
    pub fn hand_over(&self, job: Job) -> Result<(), Job> {
        let mut jobs = self.list.jobs();
        if jobs.is_closed || jobs.waiting.len() >= self.count * WAITING_PER_ENGINE {
            return Err(job);
        }
        jobs.waiting.push_back(job);
        self.list.count.store(jobs.waiting.len(), Ordering::Relaxed);
        let is_met = jobs.waiting.len() <= jobs.looking;
        drop(jobs);
        if !is_met {
            self.list.changed.notify_one();
        }
        Ok(())
    }

    /// Takes no job any more and waits until all are done.
    pub fn stop(&self) {
        self.list.close();
        let mut threads = self.threads.lock().unwrap_or_else(PoisonError::into_inner);
        for thread in threads.drain(..) {
            // Panics of jobs are caught, so there is nothing to hear.
            let _ = thread.join();
        }
    }
}

impl Drop for Engines {
    fn drop(&mut self) {
        // Not joined: the last to hold it may be an engine.
        self.list.close();
    }
}

impl List {
    fn jobs(&self) -> MutexGuard<'_, Jobs> {
        // Nothing panics while the list is locked.
        self.jobs.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn close(&self) {
        self.jobs().is_closed = true;
        self.changed.notify_all();
    }

    fn next(&self, poll: &mut Poll) -> Option<Job> {
        let mut jobs = self.jobs();
        loop {
            if let Some(job) = jobs.waiting.pop_front() {
                self.count.store(jobs.waiting.len(), Ordering::Relaxed);
                return Some(job);
            }
            if jobs.is_closed {
                return None;
            }
            jobs.looking += 1;
            drop(jobs);
            poll.look(|| self.count.load(Ordering::Relaxed) > 0);
            jobs = self.jobs();
            jobs.looking -= 1;
            while jobs.waiting.is_empty() && !jobs.is_closed {
                jobs = self
                    .changed
                    .wait(jobs)
                    .unwrap_or_else(PoisonError::into_inner);
            }
            poll.woken();
        }
    }

    fn serve(&self) {
        let mut poll = Poll::default();
        while let Some(job) = self.next(&mut poll) {
            if catch_unwind(AssertUnwindSafe(job)).is_err() {
                error!("a command panicked; this is a bug in cdm-backend");
            }
        }
    }
}

/// Helpers with one piece of work, who may come late or not at all.
#[derive(Default)]
pub struct Crew {
    members: Mutex<Members>,
    /// Members who are inside, for who looks without the lock.
    inside: AtomicUsize,
    left: Condvar,
}

#[derive(Default)]
struct Members {
    inside: usize,
    is_closed: bool,
}

/// Being at work; ends when it is dropped.
pub struct Member<'a>(&'a Crew);

impl Crew {
    /// Joins, unless the work is over.
    pub fn join(&self) -> Option<Member<'_>> {
        let mut members = self.members();
        if members.is_closed {
            return None;
        }
        members.inside += 1;
        self.inside.store(members.inside, Ordering::Relaxed);
        Some(Member(self))
    }

    /// Lets nobody in any more and waits until everybody is out.
    pub fn dismiss(&self) {
        self.members().is_closed = true;
        // They are at their last chunks.
        let begin = Instant::now();
        while self.inside.load(Ordering::Relaxed) > 0 && begin.elapsed() < LONGEST {
            hint::spin_loop();
        }
        let mut members = self.members();
        while members.inside > 0 {
            members = self
                .left
                .wait(members)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    fn members(&self) -> MutexGuard<'_, Members> {
        // Nothing panics while the members are locked.
        self.members.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Drop for Member<'_> {
    fn drop(&mut self) {
        let mut members = self.0.members();
        members.inside -= 1;
        self.0.inside.store(members.inside, Ordering::Relaxed);
        let is_awaited = members.is_closed && members.inside == 0;
        drop(members);
        if is_awaited {
            self.0.left.notify_all();
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::AtomicU32;
    use std::sync::mpsc;

    #[test]
    fn every_job_that_was_taken_is_done_before_the_engines_stop() {
        let engines = Engines::start(3, || {});
        let done = Arc::new(AtomicU32::new(0));
        let mut taken = 0;
        for _ in 0..100 {
            let done = done.clone();
            let job = Box::new(move || {
                done.fetch_add(1, Ordering::SeqCst);
            });
            taken += u32::from(engines.hand_over(job).is_ok());
        }
        engines.stop();
        assert_eq!(done.load(Ordering::SeqCst), taken);
        assert!(engines.hand_over(Box::new(|| {})).is_err());
    }

    #[test]
    fn a_job_that_finds_no_place_comes_back() {
        let engines = Engines::start(1, || {});
        let (release, wait) = mpsc::channel::<()>();
        let (begun, has_begun) = mpsc::channel();
        let block = Box::new(move || {
            begun.send(()).unwrap();
            let _ = wait.recv();
        });
        assert!(engines.hand_over(block).is_ok());
        has_begun.recv().unwrap();
        for _ in 0..WAITING_PER_ENGINE {
            assert!(engines.hand_over(Box::new(|| {})).is_ok());
        }
        assert!(engines.hand_over(Box::new(|| {})).is_err());
        drop(release);
        engines.stop();
    }

    #[test]
    fn without_engines_every_job_comes_back() {
        let engines = Engines::start(0, || {});
        assert!(engines.hand_over(Box::new(|| {})).is_err());
        engines.stop();
    }

    #[test]
    fn a_job_that_panics_ends_no_engine() {
        let engines = Engines::start(1, || {});
        let (done, is_done) = mpsc::channel();
        let panics = Box::new(|| panic!("a test's own panic"));
        assert!(engines.hand_over(panics).is_ok());
        assert!(
            engines
                .hand_over(Box::new(move || done.send(()).unwrap()))
                .is_ok()
        );
        is_done.recv().unwrap();
        engines.stop();
    }

    #[test]
    fn nobody_is_at_work_after_the_crew_was_dismissed() {
        for _ in 0..200 {
            let crew = Crew::default();
            let inside = AtomicU32::new(0);
            thread::scope(|scope| {
                for _ in 0..2 {
                    scope.spawn(|| {
                        if let Some(_member) = crew.join() {
                            inside.fetch_add(1, Ordering::SeqCst);
                            thread::yield_now();
                            inside.fetch_sub(1, Ordering::SeqCst);
                        }
                    });
                }
                crew.dismiss();
                assert_eq!(inside.load(Ordering::SeqCst), 0);
                assert!(crew.join().is_none());
            });
        }
    }
}
