// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Physical address ranges by name, from /proc/iomem.

use std::{fs, io};

/// One line of /proc/iomem.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Resource {
    /// How many resources it lies in.
    pub depth: usize,
    /// First address.
    pub start: u64,
    /// Last address.
    pub last: u64,
    /// What it is.
    pub name: String,
}

impl Resource {
    /// Whether `address` belongs to it.
    pub fn contains(&self, address: u64) -> bool {
        (self.start..=self.last).contains(&address)
    }
}

/// Reads /proc/iomem. The kernel shows the addresses to CAP_SYS_ADMIN alone;
/// everybody else reads zeroes.
pub fn resources() -> io::Result<Vec<Resource>> {
    Ok(parse(&fs::read_to_string("/proc/iomem")?))
}

fn parse(text: &str) -> Vec<Resource> {
    text.lines()
        .filter_map(|line| {
            let trimmed = line.trim_start();
            let (range, name) = trimmed.split_once(" : ")?;
            let (start, last) = range.split_once('-')?;
            Some(Resource {
                depth: (line.len() - trimmed.len()) / 2,
                start: u64::from_str_radix(start, 16).ok()?,
                last: u64::from_str_radix(last, 16).ok()?,
                name: name.to_owned(),
            })
        })
        .collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nested_resources_keep_their_depth() {
        let text = "100000000-17fffffff : System RAM\n\
                    380000000000-38ffffffffff : PCI Bus 0000:00\n  \
                    380000000000-38003fffffff : 0000:01:00.0\n    \
                    380000000000-38003fffffff : cdm0\n";
        let resources = parse(text);
        assert_eq!(resources.len(), 4);
        assert_eq!(
            (resources[3].depth, resources[3].name.as_str()),
            (2, "cdm0")
        );
        assert!(resources[3].contains(0x3800_3fff_ffff));
        assert!(!resources[3].contains(0x3800_4000_0000));
    }

    #[test]
    fn lines_that_are_no_resource_are_left_out() {
        assert_eq!(parse("nonsense\nzz-yy : x\n1-2\n"), []);
    }
}
