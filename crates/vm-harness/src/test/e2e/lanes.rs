// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Machines that run beside each other: most tests keep one processor busy, and hosts have more.

use std::sync::{Mutex, PoisonError};
use std::thread;

use crate::doctor;

/// What one machine takes of the host's memory, with its devices.
const MACHINE_MIB: u64 = 4 << 10;
/// More would wait for each other's builds and disks.
const MAX: usize = 4;

/// How many machines this host can run at a time.
pub fn of_this_host() -> usize {
    let processors = thread::available_parallelism().map_or(1, usize::from);
    fitting(processors, doctor::available_mib().unwrap_or(0))
}

fn fitting(processors: usize, mib: u64) -> usize {
    let machines = usize::try_from(mib / MACHINE_MIB).unwrap_or(MAX);
    processors.min(machines).clamp(1, MAX)
}

/// Does all jobs, each of `lanes` threads the next one when it is through with its last.
pub fn run<J: Send>(lanes: usize, jobs: Vec<J>, work: impl Fn(J) + Sync) {
    let jobs = Mutex::new(jobs.into_iter());
    let next = || jobs.lock().unwrap_or_else(PoisonError::into_inner).next();
    thread::scope(|scope| {
        for _ in 0..lanes {
            scope.spawn(|| {
                while let Some(job) = next() {
                    work(job);
                }
            });
        }
    });
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;
    use std::sync::Barrier;

    #[test]
    fn each_job_is_done_once_and_lanes_work_at_the_same_time() {
        let done = Mutex::new(Vec::new());
        let both = Barrier::new(2);
        run(2, vec![1, 2, 3, 4], |job| {
            // Nobody gets past this alone.
            both.wait();
            done.lock().expect("whole").push(job);
        });
        let done = done.into_inner().expect("whole");
        assert_eq!(done.len(), 4);
        assert_eq!(done.into_iter().collect::<BTreeSet<_>>(), (1..=4).collect());
    }

    #[test]
    fn host_has_one_lane_at_least_and_as_many_as_it_has_processors_and_memory_for() {
        assert_eq!(fitting(1, 64 << 10), 1);
        assert_eq!(fitting(2, 24 << 10), 2);
        assert_eq!(fitting(2, 7 << 10), 1);
        assert_eq!(fitting(8, 0), 1);
        assert_eq!(fitting(64, 256 << 10), MAX);
    }
}
