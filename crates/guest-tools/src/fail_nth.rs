// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Has one allocation of a call fail in the kernel, the first, the second, the third …
//! (Documentation/fault-injection/fault-injection.rst): what fails is chosen for this thread alone.

use std::fs::{self, File};
use std::io;
use std::os::unix::fs::FileExt;

use anyhow::{Context, Result, ensure};

/// Number of the allocation of this thread that fails next; 0 when none will.
const NTH: &str = "/proc/thread-self/fail-nth";
const DEBUGFS: &str = "/sys/kernel/debug";

/// Which allocations may fail: all of the slab allocator and of the page allocator, also where the
/// kernel could wait for memory, and without a word in the log. What the kernel has else is left
/// as it is: nothing of it fails unless it is asked to.
const SETTINGS: [(&str, &str); 7] = [
    ("failslab/ignore-gfp-wait", "N"),
    ("failslab/verbose", "0"),
    ("fail_page_alloc/ignore-gfp-wait", "N"),
    ("fail_page_alloc/ignore-gfp-highmem", "N"),
    ("fail_page_alloc/min-order", "0"),
    ("fail_page_alloc/verbose", "0"),
    // One of them may have been set to spare something.
    ("failslab/cache-filter", "N"),
];

/// An order that no allocation of pages has.
const NO_ORDER: &str = "64";

/// Whether this kernel can have allocations fail.
pub fn is_possible() -> bool {
    fs::metadata(NTH).is_ok()
        && ["failslab", "fail_page_alloc"]
            .iter()
            .all(|name| fs::metadata(format!("{DEBUGFS}/{name}")).is_ok())
}

/// Failures on request, until it is dropped.
pub struct Failures {
    nth: File,
    /// What was there before.
    before: Vec<(String, String)>,
}

impl Failures {
    /// Makes ready; nothing fails yet.
    pub fn prepare() -> Result<Self> {
        let nth = File::options()
            .read(true)
            .write(true)
            .open(NTH)
            .with_context(|| format!("cannot open {NTH}"))?;
        let mut failures = Self {
            nth,
            before: Vec::new(),
        };
        for (name, value) in SETTINGS {
            failures.set(name, value)?;
        }
        Ok(failures)
    }

    /// Has allocations of pages succeed, and only those of the slab allocator fail.
    pub fn spare_pages(&mut self) -> Result<()> {
        self.set("fail_page_alloc/min-order", NO_ORDER)
    }

    /// Has allocations of pages succeed that a function of the kernel makes, itself or by what it
    /// calls. False if this kernel cannot tell.
    pub fn spare_function(&mut self, name: &str) -> Result<bool> {
        if fs::metadata(format!("{DEBUGFS}/fail_page_alloc/reject-start")).is_err() {
            return Ok(false);
        }
        let symbols = fs::read_to_string("/proc/kallsyms").context("cannot read /proc/kallsyms")?;
        let (start, end) =
            bounds(&symbols, name).with_context(|| format!("the kernel has no {name}()"))?;
        self.set("fail_page_alloc/reject-start", &format!("{start:#x}"))?;
        self.set("fail_page_alloc/reject-end", &format!("{end:#x}"))?;
        Ok(true)
    }

    /// Makes a call whose `nth` allocation fails, counted from 1; the other value tells whether it
    /// came to that.
    pub fn inject<T>(&self, nth: u32, call: impl FnOnce() -> T) -> Result<(T, bool)> {
        ensure!(nth > 0, "allocations are counted from 1");
        self.arm(nth)?;
        let result = call();
        let mut left = [0; 16];
        let length = self.nth.read_at(&mut left, 0).context("cannot read back")?;
        self.arm(0)?;
        let left = String::from_utf8_lossy(&left[..length]);
        let left: u32 = left.trim().parse().with_context(|| format!("'{left}'"))?;
        Ok((result, left == 0))
    }

    fn arm(&self, nth: u32) -> Result<()> {
        let mut text = [0; 10];
        // An allocation of this program's own could fail in the kernel, too.
        let mut rest = nth;
        let mut at = text.len();
        while at == text.len() || rest > 0 {
            at -= 1;
            text[at] = b'0' + (rest % 10) as u8;
            rest /= 10;
        }
        self.nth
            .write_all_at(&text[at..], 0)
            .with_context(|| format!("cannot write to {NTH}"))
    }

    fn set(&mut self, name: &str, value: &str) -> Result<()> {
        let path = format!("{DEBUGFS}/{name}");
        let before = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
        fs::write(&path, value).with_context(|| format!("{path} = {value}"))?;
        self.before.push((path, before.trim().to_owned()));
        Ok(())
    }
}

impl Drop for Failures {
    fn drop(&mut self) {
        // The last first: something may have been set twice. Nothing fails without a request, so
        // what cannot be put back harms nobody.
        let _: Vec<io::Result<()>> = self
            .before
            .drain(..)
            .rev()
            .map(|(path, value)| fs::write(path, value))
            .collect();
    }
}

/// Where a function begins, and where what comes behind it does.
fn bounds(symbols: &str, name: &str) -> Option<(u64, u64)> {
    let mut addresses = Vec::new();
    let mut start = None;
    for line in symbols.lines() {
        let mut words = line.split_ascii_whitespace();
        let address = u64::from_str_radix(words.next()?, 16).ok()?;
        let is_code = matches!(words.next(), Some("t" | "T"));
        if is_code && words.next() == Some(name) {
            start = Some(address);
        }
        addresses.push(address);
    }
    let start = start?;
    let end = addresses
        .into_iter()
        .filter(|address| *address > start)
        .min()?;
    Some((start, end))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn function_ends_where_the_next_symbol_begins() {
        let symbols = "ffff02 T b\nffff00 T a\nffff00 T alias\nffff09 t c\nffff0c D d\n";
        assert_eq!(bounds(symbols, "a"), Some((0xffff00, 0xffff02)));
        assert_eq!(bounds(symbols, "b"), Some((0xffff02, 0xffff09)));
        assert_eq!(bounds(symbols, "c"), Some((0xffff09, 0xffff0c)));
        assert_eq!(bounds(symbols, "d"), None, "data is no function");
        assert_eq!(bounds(symbols, "e"), None);
    }

    #[test]
    fn number_of_the_allocation_is_written_as_it_is_and_read_back() {
        let file = tempfile_in_memory();
        let failures = Failures {
            nth: file,
            before: Vec::new(),
        };
        // Nothing counts it down here: it is still to come after the call.
        let (result, came) = failures.inject(1234, || 5).expect("a plain file");
        assert_eq!((result, came), (5, false));
        assert!(failures.inject(0, || ()).is_err());
    }

    fn tempfile_in_memory() -> File {
        let fd = nix::sys::memfd::memfd_create(c"nth", nix::sys::memfd::MFdFlags::empty())
            .expect("a file in memory");
        File::from(fd)
    }
}
