// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What in a guest's kernel log is a failure, whatever the test in it says.

use std::fmt;

/// One line of a log.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Line {
    /// Counted from 1.
    pub number: usize,
    /// The line as it stands there.
    pub text: String,
}

impl fmt::Display for Line {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "line {}: {}", self.number, self.text)
    }
}

/// How a report of the kernel about itself begins, behind the time stamp.
const BEGINNINGS: [&str; 13] = [
    "WARNING:",
    "BUG:",
    "BUG ",
    "kernel BUG ",
    "Oops",
    "Bad ",
    "INFO: task ",
    "INFO: possible ",
    "INFO: trying to register non-static key",
    "INFO: lockdep",
    "UBSAN:",
    "kmemleak:",
    "refcount_t:",
];

/// What such reports hold somewhere in a line.
const ANYWHERE: [&str; 22] = [
    "------------[ cut here ]------------",
    "Call Trace:",
    "Oops:",
    "Kernel panic - not syncing",
    "general protection fault",
    "unable to handle",
    "Bad page",
    "Bad rss-counter",
    "page dumped because",
    "Possible unsafe locking scenario",
    "DEBUG_LOCKS_WARN_ON",
    "circular locking dependency",
    "detected stalls",
    "self-detected stall",
    "soft lockup",
    "hard LOCKUP",
    "list_add corruption",
    "list_del corruption",
    "page allocation failure",
    "workqueue lockup",
    "segfault at",
    "cdm-init: bug",
];

/// What a checker says of itself in the words of a report.
const HARMLESS: &str = "kmemleak: Kernel memory leak detector initialized";

/// Finds every line that reports a fault of the kernel or the driver.
pub fn breaches(log: &str) -> Vec<Line> {
    log.lines()
        .enumerate()
        .filter(|(_, text)| is_breach(text))
        .map(|(index, text)| Line {
            number: index + 1,
            text: text.trim_end().to_owned(),
        })
        .collect()
}

/// How the kernel marks the first line of a report about itself, and its last one.
const CUT: &str = "------------[ cut here ]------------";
const END: &str = "---[ end trace";

/// Reports of the kernel about itself, each by the line that tells what it is: breaches that
/// belong together count once.
pub fn reports(log: &str) -> Vec<Line> {
    let mut reports: Vec<Line> = Vec::new();
    // A report has begun, and may still lack the line that tells what it is.
    let (mut open, mut titled) = (false, true);
    for (index, line) in log.lines().enumerate() {
        let text = message(line).trim_end();
        let this = || Line {
            number: index + 1,
            text: text.to_owned(),
        };
        if text.contains(END) {
            (open, titled) = (false, true);
        } else if text.contains(CUT) {
            reports.push(this());
            (open, titled) = (true, false);
        } else if is_breach(line) {
            let begins = ["WARNING:", "BUG:", "BUG ", "Bad "]
                .iter()
                .any(|start| text.starts_with(start));
            match reports.last_mut() {
                Some(last) if !titled => *last = this(),
                _ if begins || !open => reports.push(this()),
                _ => {}
            }
            (open, titled) = (true, true);
        }
    }
    reports
}

fn is_breach(line: &str) -> bool {
    let message = message(line);
    !message.starts_with(HARMLESS)
        && (BEGINNINGS.iter().any(|start| message.starts_with(start))
            || ANYWHERE.iter().any(|part| message.contains(part)))
}

/// The line without the stamps that printk puts before it: `[    1.234567]`, and a
/// caller `[    T1]` or `[      C0]` where the kernel has them.
fn message(line: &str) -> &str {
    let mut rest = line.trim_start();
    while let Some(stamp) = rest.strip_prefix('[') {
        let Some((inside, after)) = stamp.split_once(']') else {
            break;
        };
        let is_stamp = !inside.is_empty()
            && inside
                .chars()
                .all(|c| c.is_ascii_digit() || matches!(c, ' ' | '.' | 'T' | 'C'));
        if !is_stamp {
            break;
        }
        rest = after.trim_start();
    }
    rest
}

/// The last `count` lines of a log, for an error message.
pub fn tail(log: &str, count: usize) -> String {
    let lines: Vec<&str> = log.lines().map(str::trim_end).collect();
    lines[lines.len().saturating_sub(count)..].join("\n")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_kind_of_report_is_found() {
        for line in [
            "[    2.345678] WARNING: CPU: 1 PID: 77 at mm/memory.c:123 foo+0x12/0x34 [cdm]",
            "[    2.345678][   T77] WARNING: mm/memremap.c:99 at free_zone_device_folio, CPU#1: x/77",
            "WARNING: possible circular locking dependency detected",
            "[   12.000000] WARNING: suspicious RCU usage",
            "[    2.0] BUG: kernel NULL pointer dereference, address: 0000000000000008",
            "[    2.0] BUG: Bad page state in process cdmctl  pfn:180000",
            "[    2.0] BUG: Bad rss-counter state mm:0 type:MM_ANONPAGES val:1",
            "[    2.0] BUG: KASAN: slab-use-after-free in foo",
            "[    2.0] BUG kmalloc-64 (Tainted: G O): Poison overwritten",
            "[    2.0] kernel BUG at mm/rmap.c:1!",
            "[    2.0] Oops: invalid opcode: 0000 [#1] SMP",
            "[    2.0] page dumped because: VM_BUG_ON_PAGE(1)",
            "[    2.0] INFO: task cdm-guest:12 blocked for more than 120 seconds.",
            "[    2.0] rcu: INFO: rcu_preempt self-detected stall on CPU",
            "[    2.0] rcu: INFO: rcu_preempt detected stalls on CPUs/tasks:",
            "[    2.0] watchdog: BUG: soft lockup - CPU#0 stuck for 22s! [x:1]",
            "[    2.0]  Possible unsafe locking scenario:",
            "[    2.0] Call Trace:",
            "[    2.0] ------------[ cut here ]------------",
            "[    2.0] Kernel panic - not syncing: Attempted to kill init!",
            "[    2.0] general protection fault, probably for non-canonical address",
            "[    2.0] list_del corruption. prev->next should be x",
            "[    2.0] UBSAN: array-index-out-of-bounds in x.c:1:2",
            "[    2.0] refcount_t: underflow; use-after-free.",
            "[    2.0] kmemleak: 2 new suspected memory leaks (see /sys/kernel/debug/kmemleak)",
            "[    2.0] kmemleak: Kernel memory leak detector disabled",
            "[    2.0] cdmctl[70]: segfault at 8 ip 0000000000401000",
        ] {
            assert_eq!(breaches(line).len(), 1, "{line}");
        }
    }

    #[test]
    fn ordinary_lines_are_not_breaches() {
        let log = "\
[    0.000000] Linux version 7.3.4 (cdm@cdm) #1 SMP PREEMPT
[    0.000000] Command line: console=ttyS0 loglevel=8 panic=-1
[    0.012345] x86/mm: Checked W+X mappings: passed, no W+X pages found.
[    0.100000] rcu: Hierarchical SRCU implementation.
[    0.200000] debug: unmapping init [mem 0xffffffff82c00000-0xffffffff82ffffff]
[    1.000000] cdm: loading out-of-tree module taints kernel.
[    1.100000] cdm cdm0: 1024 MiB of device memory, type public
[    1.200000] Warning: unable to open an initial console.
[    1.300000] cdm-init: cannot mount cgroup2 at /sys/fs/cgroup: No such device
[    1.400000] kmemleak: Kernel memory leak detector initialized (mem pool available: 14943)
[    1.536803] reboot: Power down
";
        assert_eq!(breaches(log), []);
    }

    #[test]
    fn a_breach_comes_with_its_place() {
        let found = breaches("one\r\ntwo\r\n[    1.0] WARNING: x\r\n");
        assert_eq!(
            found,
            [Line {
                number: 3,
                text: "[    1.0] WARNING: x".into()
            }]
        );
        assert_eq!(found[0].to_string(), "line 3: [    1.0] WARNING: x");
    }

    #[test]
    fn lines_of_one_report_count_once_by_what_it_is() {
        let log = "\
[    1.0] hmm: fine
[    2.0] ------------[ cut here ]------------
[    2.0] WARNING: mm/memremap.c:158 at memremap_pages+0x1/0x2, CPU#0: insmod/70
[    2.0] Call Trace:
[    2.0] ---[ end trace 0000000000000000 ]---
[    3.0] BUG: kernel NULL pointer dereference, address: 0000000000000008
[    3.0] Oops: Oops: 0000 [#1] SMP
[    3.0] Call Trace:
[    3.0] ---[ end trace 0000000000000000 ]---
[    4.0] BUG: Bad page state in process hmm-tests  pfn:180000
[    4.0] page dumped because: nonzero mapcount
[    4.0] Call Trace:
[    4.1] BUG: Bad page state in process hmm-tests  pfn:180001
[    5.0] Kernel panic - not syncing: Fatal exception
";
        let titles: Vec<(usize, String)> = reports(log)
            .into_iter()
            .map(|line| (line.number, line.text.chars().take(26).collect()))
            .collect();
        let expected = [
            (3, "WARNING: mm/memremap.c:158"),
            (6, "BUG: kernel NULL pointer d"),
            (10, "BUG: Bad page state in pro"),
            (13, "BUG: Bad page state in pro"),
        ];
        assert_eq!(titles, expected.map(|(line, text)| (line, text.to_owned())));
        assert_eq!(reports("[ 1.0] reboot: Power down\n"), []);
    }

    #[test]
    fn the_tail_is_the_last_lines_or_all_there_are() {
        assert_eq!(tail("a\r\nb\nc\n", 2), "b\nc");
        assert_eq!(tail("a", 2), "a");
        assert_eq!(tail("", 2), "");
    }
}
