// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How long a piece of work takes, with one thread or several.

use std::sync::Barrier;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};

/// Has `threads` threads do `work`, each with its number. The time is from when the first one
/// begins to when the last one ends.
pub fn timed(threads: usize, work: impl Fn(usize) -> Result<()> + Sync) -> Result<Duration> {
    if threads == 1 {
        let start = Instant::now();
        work(0)?;
        return Ok(start.elapsed());
    }
    let barrier = Barrier::new(threads);
    let spans = thread::scope(|scope| {
        let handles: Vec<_> = (0..threads)
            .map(|number| {
                let (barrier, work) = (&barrier, &work);
                scope.spawn(move || {
                    barrier.wait();
                    let start = Instant::now();
                    work(number)?;
                    Ok((start, Instant::now()))
                })
            })
            .collect();
        let join = |handle: thread::ScopedJoinHandle<'_, Result<(Instant, Instant)>>| {
            handle.join().unwrap_or_else(|_| bail!("a thread panicked"))
        };
        handles.into_iter().map(join).collect::<Result<Vec<_>>>()
    })?;
    let first = spans.iter().map(|span| span.0).min();
    let last = spans.iter().map(|span| span.1).max();
    match (first, last) {
        (Some(first), Some(last)) => Ok(last - first),
        _ => bail!("no thread has measured anything"),
    }
}

/// Bytes in a time, as mebibytes in a second.
pub fn mebibytes_per_second(bytes: usize, time: Duration) -> f64 {
    bytes as f64 / f64::from(1 << 20) / time.as_secs_f64()
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::sync::atomic::{AtomicUsize, Ordering::Relaxed};

    #[test]
    fn each_thread_does_its_part_and_the_slowest_counts() {
        let done = AtomicUsize::new(0);
        let time = timed(3, |number| {
            done.fetch_add(1 << (8 * number), Relaxed);
            thread::sleep(Duration::from_millis(10 * number as u64));
            Ok(())
        })
        .unwrap();
        assert_eq!(done.into_inner(), 0x01_01_01);
        assert!(time >= Duration::from_millis(20), "{time:?}");
    }

    #[test]
    fn error_of_any_thread_is_no_time() {
        let failing = |number| match number {
            1 => bail!("the second"),
            _ => Ok(()),
        };
        assert_eq!(timed(2, failing).unwrap_err().to_string(), "the second");
        assert!(timed(1, |_| bail!("alone")).is_err());
    }

    #[test]
    fn throughput_is_in_mebibytes() {
        assert_eq!(
            mebibytes_per_second(3 << 20, Duration::from_millis(1500)),
            2.0
        );
    }
}
