// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's own page counts, which must fit after every test.

use std::collections::BTreeMap;
use std::fs;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context, Result, bail};

/// How long the kernel may take to settle: io_uring drops pins from a worker.
const SETTLE_LIMIT: Duration = Duration::from_secs(5);

/// Counts of pages in a state that ends with the process, and by how many they may differ: the
/// agent and other programs of the guest go on meanwhile, and the kernel keeps some freed pages in
/// per-CPU lists.
const STEADY: &[(&str, i64)] = &[
    ("nr_anon_pages", 768),
    ("nr_anon_transparent_hugepages", 2),
    ("nr_file_pages", 512),
    ("nr_shmem", 64),
    ("nr_shmem_hugepages", 0),
    ("nr_mlock", 0),
    ("nr_isolated_anon", 0),
    ("nr_isolated_file", 0),
    ("nr_dirty", 64),
    ("nr_writeback", 0),
    ("nr_zone_write_pending", 64),
    // Not from vmstat: huge pages of this size by what became of them, and what the zone of device
    // memory has for the kernel's own allocator.
    ("thp_nr_anon", 2),
    ("thp_nr_anon_partially_mapped", 0),
    ("device_zone_free", 0),
];

const THP_STATS: &str = "/sys/kernel/mm/transparent_hugepage/hugepages-2048kB/stats";

/// Page counts at one time.
pub struct Snapshot(BTreeMap<String, i64>);

impl Snapshot {
    /// Reads the counts after the kernel has folded its per-CPU parts in.
    pub fn take() -> Result<Self> {
        // The write fails with EINVAL if a count is negative.
        fs::write("/proc/sys/vm/stat_refresh", "1")
            .context("the kernel finds a negative page count (stat_refresh, see the log)")?;
        let text = fs::read_to_string("/proc/vmstat").context("cannot read /proc/vmstat")?;
        let mut counts = parse(&text);
        for name in ["nr_anon", "nr_anon_partially_mapped"] {
            let path = format!("{THP_STATS}/{name}");
            let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
            counts.insert(format!("thp_{name}"), text.trim().parse()?);
        }
        let zones = fs::read_to_string("/proc/zoneinfo").context("cannot read /proc/zoneinfo")?;
        counts.insert("device_zone_free".into(), device_zone_free(&zones));
        Ok(Self(counts))
    }

    /// One count.
    pub fn get(&self, name: &str) -> i64 {
        self.0.get(name).copied().unwrap_or(0)
    }

    /// Waits until the counts are back to these, and fails if they do not come back.
    pub fn compare(&self) -> Result<()> {
        let deadline = Instant::now() + SETTLE_LIMIT;
        loop {
            let complaint = match self.difference(&Self::take()?) {
                None => return Ok(()),
                Some(complaint) => complaint,
            };
            if Instant::now() >= deadline {
                bail!("{complaint}");
            }
            // Makes every CPU hand in its batches of pages that are on their way to a list, such as
            // those that are unlocked.
            fs::write("/proc/sys/vm/compact_memory", "1").context("cannot compact memory")?;
            thread::sleep(Duration::from_millis(20));
        }
    }

    fn difference(&self, now: &Self) -> Option<String> {
        let pinned = now.get("nr_foll_pin_acquired") - now.get("nr_foll_pin_released");
        if pinned != 0 {
            return Some(format!("{pinned} pins were not released"));
        }
        if let Some((name, value)) = now
            .0
            .iter()
            .find(|(name, value)| name.starts_with("nr_") && **value < 0)
        {
            return Some(format!("{name} is {value}"));
        }
        STEADY.iter().find_map(|(name, noise)| {
            let (before, after) = (self.get(name), now.get(name));
            ((after - before).abs() > *noise)
                .then(|| format!("{name} went from {before} to {after}"))
        })
    }
}

/// Free pages of all zones, and those that each CPU keeps for itself, which MemFree does not count.
/// Unlike it, the sum does not change when a CPU takes pages for later or gives some back.
pub fn free_pages() -> Result<u64> {
    let zones = fs::read_to_string("/proc/zoneinfo").context("cannot read /proc/zoneinfo")?;
    free_pages_in(&zones).context("/proc/zoneinfo tells no free pages")
}

fn free_pages_in(zones: &str) -> Option<u64> {
    let counts = zones.lines().filter_map(|line| {
        let mut words = line.split_whitespace();
        let is_wanted = matches!(words.next()?, "nr_free_pages" | "count:");
        is_wanted.then(|| words.next()?.parse::<u64>().ok())?
    });
    Some(counts.sum()).filter(|pages| *pages > 0)
}

/// Free pages of all zones called Device in /proc/zoneinfo. The kernel's own allocator must never
/// get a page of device memory.
fn device_zone_free(text: &str) -> i64 {
    let mut is_device = false;
    let mut sum = 0;
    for line in text.lines() {
        if line.starts_with("Node ") {
            is_device = line.ends_with(" Device");
        } else if is_device && let Some(free) = line.trim().strip_prefix("pages free ") {
            sum += free.trim().parse().unwrap_or(0);
        }
    }
    sum
}

fn parse(text: &str) -> BTreeMap<String, i64> {
    text.lines()
        .filter_map(|line| {
            let (name, value) = line.split_once(' ')?;
            // Counts that run over i64 on their way to "negative" are read as that.
            let value = value
                .parse::<i64>()
                .or_else(|_| value.parse().map(u64::cast_signed));
            Some((name.to_owned(), value.ok()?))
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn snapshot(text: &str) -> Snapshot {
        Snapshot(parse(text))
    }

    #[test]
    fn equal_counts_are_fine_and_noise_is_allowed() {
        let before = snapshot("nr_anon_pages 1000\nnr_mlock 1\n");
        let now = snapshot("nr_anon_pages 1100\nnr_mlock 1\n");
        assert_eq!(before.difference(&now), None);
    }

    #[test]
    fn free_pages_of_the_device_zone_are_found() {
        let text = "Node 0, zone    DMA32\n  pages free     7\n        boost    0\n\
                    Node 0, zone   Device\n  pages free     3\n        boost    0\n\
                    Node 1, zone   Device\n  pages free     2\n";
        assert_eq!(device_zone_free(text), 5);
        let before = snapshot("device_zone_free 0\n");
        let complaint = before.difference(&snapshot("device_zone_free 1\n"));
        assert!(complaint.is_some_and(|text| text.contains("device_zone_free")));
    }

    #[test]
    fn free_pages_are_those_of_zones_and_of_cpus() {
        let text = "Node 0, zone    DMA32\n  pages free     7\n        high     9\n      nr_free_pages 7\n  \
                    pagesets\n    cpu: 0\n              count:    3\n              high:     5\n    \
                    cpu: 1\n              count:    2\nNode 0, zone   Normal\n      nr_free_pages 100\n";
        assert_eq!(free_pages_in(text), Some(112));
        assert_eq!(free_pages_in("Node 0, zone    DMA32\n"), None);
        assert!(free_pages().unwrap() > 0);
    }

    #[test]
    fn leaked_pins_negative_counts_and_lost_pages_are_named() {
        let before = snapshot("nr_anon_pages 1000\n");
        let cases = [
            (
                "nr_foll_pin_acquired 5\nnr_foll_pin_released 4\nnr_anon_pages 1000\n",
                "pins",
            ),
            (
                "nr_anon_pages 1000\nnr_dirty 18446744073709551615\n",
                "nr_dirty is -1",
            ),
            (
                "nr_anon_pages 9000\n",
                "nr_anon_pages went from 1000 to 9000",
            ),
            ("nr_anon_pages 1000\nnr_mlock 1\n", "nr_mlock"),
        ];
        for (text, expected) in cases {
            let complaint = before.difference(&snapshot(text)).expect(text);
            assert!(complaint.contains(expected), "{complaint}");
        }
    }
}
