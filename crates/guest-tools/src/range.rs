// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Address ranges of a process.

use std::fmt;
use std::str::FromStr;

use crate::memory::PAGE_BYTES;

/// Addresses `start..end` of a process; not empty.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct AddressRange {
    start: u64,
    end: u64,
}

impl AddressRange {
    /// The range, unless it is empty or runs backwards.
    pub fn new(start: u64, end: u64) -> Option<Self> {
        (start < end).then_some(Self { start, end })
    }

    /// First address.
    pub fn start(self) -> u64 {
        self.start
    }

    /// First address behind the range.
    pub fn end(self) -> u64 {
        self.end
    }

    /// Length in bytes.
    pub fn bytes(self) -> u64 {
        self.end - self.start
    }

    /// Pages that the range touches, if it is page-aligned.
    pub fn pages(self) -> u64 {
        self.bytes() / PAGE_BYTES as u64
    }
}

impl fmt::Display for AddressRange {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.pad(&format!("{:#x}-{:#x}", self.start, self.end))
    }
}

impl FromStr for AddressRange {
    type Err = String;

    /// Reads `START-END` in hexadecimal, with or without `0x`, as /proc/PID/maps prints it.
    fn from_str(text: &str) -> Result<Self, String> {
        let hex = |text: &str| {
            let digits = text.trim().trim_start_matches("0x");
            u64::from_str_radix(digits, 16)
                .map_err(|_| format!("'{text}' is no hexadecimal address"))
        };
        let (start, end) = text.split_once('-').ok_or_else(|| {
            format!("'{text}' is no range: write START-END as /proc/PID/maps does")
        })?;
        let (start, end) = (hex(start)?, hex(end)?);
        let range = Self::new(start, end)
            .ok_or_else(|| format!("range {text} is empty: END must lie above START"))?;
        let page = PAGE_BYTES as u64;
        if start % page != 0 || end % page != 0 {
            return Err(format!(
                "range {text} is not a whole number of {page}-byte pages"
            ));
        }
        Ok(range)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn range_reads_what_maps_prints() {
        let range: AddressRange = "7f0000000000-7f0000004000".parse().unwrap();
        assert_eq!((range.start(), range.pages()), (0x7f00_0000_0000, 4));
        assert_eq!(
            "0x1000-0x2000".parse(),
            Ok(AddressRange {
                start: 0x1000,
                end: 0x2000
            })
        );
    }

    #[test]
    fn range_that_is_empty_backwards_unaligned_or_no_range_is_refused() {
        for text in [
            "1000-1000",
            "2000-1000",
            "1000-1fff",
            "1000",
            "x-y",
            "-",
            "1000-",
        ] {
            assert!(text.parse::<AddressRange>().is_err(), "{text}");
        }
    }
}
