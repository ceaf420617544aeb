// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The size of device memory.

use cdm_protocol::{MEMORY_BYTES_MAX, MEMORY_BYTES_MIN};
use std::fmt;
use std::str::FromStr;

/// Bytes of device memory.
///
/// # Invariants
///
/// A power of two from [`MEMORY_BYTES_MIN`] to [`MEMORY_BYTES_MAX`]: QEMU aborts on a
/// shared memory region of any other size.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct MemorySize(u64);

/// Why a text or number is no size of device memory.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub enum MemorySizeError {
    /// Not a number with an optional unit.
    #[error("{0:?} is not a size; give a number with M or G, such as 512M or 4G")]
    NotASize(String),
    /// A size that QEMU cannot map.
    #[error("{} is not a power of two from 256M to 64G; the nearest that is: {}", Human(*.0), Human(nearest(*.0)))]
    Unsupported(u64),
}

impl MemorySize {
    /// Checks a number of bytes.
    pub fn new(bytes: u64) -> Result<Self, MemorySizeError> {
        let in_range = (MEMORY_BYTES_MIN..=MEMORY_BYTES_MAX).contains(&bytes);
        // INVARIANT: both halves of the invariant are checked here.
        if in_range && bytes.is_power_of_two() {
            Ok(Self(bytes))
        } else {
            Err(MemorySizeError::Unsupported(bytes))
        }
    }

    /// The size in bytes.
    pub fn bytes(self) -> u64 {
        self.0
    }
}

impl fmt::Display for MemorySize {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        Human(self.0).fmt(f)
    }
}

impl FromStr for MemorySize {
    type Err = MemorySizeError;

    /// Reads a number with a unit: `256M`, `1G`, `4GiB`; without one it is bytes.
    fn from_str(text: &str) -> Result<Self, MemorySizeError> {
        let not_a_size = || MemorySizeError::NotASize(text.to_owned());
        let digits_end = text
            .find(|c: char| !c.is_ascii_digit())
            .unwrap_or(text.len());
        let (digits, unit) = text.split_at(digits_end);
        let number: u64 = digits.parse().map_err(|_| not_a_size())?;
        let shift = match unit.trim_start().to_ascii_lowercase().as_str() {
            "" | "b" => 0,
            "k" | "kb" | "kib" => 10,
            "m" | "mb" | "mib" => 20,
            "g" | "gb" | "gib" => 30,
            _ => return Err(not_a_size()),
        };
        let bytes = number.checked_mul(1 << shift).ok_or_else(not_a_size)?;
        Self::new(bytes)
    }
}

/// The legal size closest to `bytes`.
fn nearest(bytes: u64) -> u64 {
    let bytes = bytes.clamp(MEMORY_BYTES_MIN, MEMORY_BYTES_MAX);
    let below = 1 << bytes.ilog2();
    let above = bytes.next_power_of_two();
    if bytes - below <= above - bytes {
        below
    } else {
        above
    }
}

/// Shows bytes in the largest unit that needs no fraction.
struct Human(u64);

impl fmt::Display for Human {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let (shift, unit) = match self.0 {
            0 => (0, " bytes"),
            n if n.trailing_zeros() >= 30 => (30, "G"),
            n if n.trailing_zeros() >= 20 => (20, "M"),
            n if n.trailing_zeros() >= 10 => (10, "K"),
            _ => (0, " bytes"),
        };
        write!(f, "{}{unit}", self.0 >> shift)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_power_of_two_from_256m_to_64g_is_a_size() {
        for shift in 28..=36 {
            assert_eq!(MemorySize::new(1 << shift).unwrap().bytes(), 1 << shift);
        }
        assert!(MemorySize::new(1 << 27).is_err());
        assert!(MemorySize::new(1 << 37).is_err());
    }

    #[test]
    fn units_are_read_in_any_case_and_long_or_short() {
        for text in ["1G", "1g", "1GiB", "1 gib", "1024M", "1073741824"] {
            assert_eq!(
                text.parse::<MemorySize>().unwrap().bytes(),
                1 << 30,
                "{text}"
            );
        }
    }

    #[test]
    fn a_refusal_names_the_nearest_legal_size() {
        let message = |text: &str| text.parse::<MemorySize>().unwrap_err().to_string();
        assert!(message("192M").ends_with("the nearest that is: 256M"));
        assert!(message("700M").ends_with("the nearest that is: 512M"));
        assert!(message("100G").ends_with("the nearest that is: 64G"));
        assert!(message("lots").contains("\"lots\" is not a size"));
        assert!(message("99999999999999G").contains("is not a size"));
    }

    #[test]
    fn a_size_is_shown_the_way_it_is_read() {
        for text in ["256M", "1G", "64G"] {
            assert_eq!(text.parse::<MemorySize>().unwrap().to_string(), text);
        }
    }
}
