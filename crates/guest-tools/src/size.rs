// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Byte counts as people write and read them.

use std::fmt;

const UNITS: [(&str, u32); 4] = [("TiB", 40), ("GiB", 30), ("MiB", 20), ("KiB", 10)];

/// A number of bytes that prints in the largest binary unit that fits.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Size(pub u64);

impl fmt::Display for Size {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        for (unit, shift) in UNITS {
            let one = 1u64 << shift;
            if self.0 >= one {
                return match self.0 % one {
                    0 => f.pad(&format!("{} {unit}", self.0 >> shift)),
                    _ => f.pad(&format!("{:.1} {unit}", self.0 as f64 / one as f64)),
                };
            }
        }
        f.pad(&format!("{} B", self.0))
    }
}

/// Reads `4096`, `4K`, `4KiB`, `256M`, `1G`.
pub fn parse(text: &str) -> Result<u64, String> {
    let digits = text
        .find(|c: char| !c.is_ascii_digit())
        .unwrap_or(text.len());
    let number: u64 = text[..digits]
        .parse()
        .map_err(|_| format!("'{text}' is no size: write a number with K, M or G, such as 64M"))?;
    let shift = match text[digits..].trim().to_ascii_lowercase().as_str() {
        "" | "b" => 0,
        "k" | "kib" => 10,
        "m" | "mib" => 20,
        "g" | "gib" => 30,
        unit => return Err(format!("'{unit}' is no unit of size: use K, M or G")),
    };
    number
        .checked_mul(1 << shift)
        .ok_or_else(|| format!("{text} is more than 64 bits can count"))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn size_prints_whole_units_without_a_fraction() {
        assert_eq!(Size(256 << 20).to_string(), "256 MiB");
        assert_eq!(Size(4096).to_string(), "4 KiB");
        assert_eq!(Size(0).to_string(), "0 B");
    }

    #[test]
    fn size_prints_a_broken_unit_with_one_digit() {
        assert_eq!(Size((252 << 20) + (512 << 10)).to_string(), "252.5 MiB");
    }

    #[test]
    fn parse_takes_short_and_long_units() {
        assert_eq!(parse("64M"), Ok(64 << 20));
        assert_eq!(parse("64MiB"), Ok(64 << 20));
        assert_eq!(parse("4096"), Ok(4096));
    }

    #[test]
    fn parse_refuses_what_is_no_size() {
        for text in ["", "M", "12Q", "-1", "1.5G", "18446744073709551615G"] {
            assert!(parse(text).is_err(), "{text}");
        }
    }
}
