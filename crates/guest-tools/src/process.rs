// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What /proc tells about the memory of a process.

use std::{fs, io};

use crate::range::AddressRange;

/// One mapping of a process, from /proc/PID/maps.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Vma {
    /// Its addresses.
    pub range: AddressRange,
    /// Such as `rw-p`.
    pub permissions: String,
    /// File or kind; empty for plain anonymous memory.
    pub name: String,
}

impl Vma {
    /// Whether its pages can be a process's own: private and writable.
    pub fn is_private_writable(&self) -> bool {
        let permissions = self.permissions.as_bytes();
        permissions.get(1) == Some(&b'w') && permissions.get(3) == Some(&b'p')
    }
}

/// The mappings of process `pid`, lowest first; 0 is the caller.
pub fn maps(pid: i32) -> io::Result<Vec<Vma>> {
    let text = fs::read_to_string(format!("/proc/{}/maps", name(pid)))?;
    Ok(text.lines().filter_map(parse_vma).collect())
}

fn name(pid: i32) -> String {
    match pid {
        0 => "self".into(),
        pid => pid.to_string(),
    }
}

fn parse_vma(line: &str) -> Option<Vma> {
    let mut fields = line.split_ascii_whitespace();
    let (start, end) = fields.next()?.split_once('-')?;
    let start = u64::from_str_radix(start, 16).ok()?;
    let end = u64::from_str_radix(end, 16).ok()?;
    let permissions = fields.next()?.to_owned();
    let name = fields.skip(3).collect::<Vec<_>>().join(" ");
    Some(Vma {
        range: AddressRange::new(start, end)?,
        permissions,
        name,
    })
}

/// What each thread of a process is doing, a line each: its state, and where in the kernel it is,
/// innermost function first. A process that is gone has none.
pub fn threads(pid: i32) -> Vec<String> {
    let Ok(tasks) = fs::read_dir(format!("/proc/{}/task", name(pid))) else {
        return Vec::new();
    };
    let tell = |task: fs::DirEntry| {
        let read = |file| fs::read_to_string(task.path().join(file)).unwrap_or_default();
        let (status, stack) = (read("status"), read("stack"));
        let state = status
            .lines()
            .find_map(|line| line.strip_prefix("State:"))
            .unwrap_or_default();
        let functions: Vec<&str> = stack
            .lines()
            .filter_map(|line| line.split_once("] ").map(|(_, function)| function))
            .collect();
        format!(
            "thread {}:{state}: {}",
            task.file_name().display(),
            functions.join(" < ")
        )
    };
    tasks.flatten().map(tell).collect()
}

/// A field of /proc/PID/status that is given in KiB, such as `RssAnon`, in bytes.
pub fn status_bytes(pid: i32, field: &str) -> io::Result<u64> {
    let path = format!("/proc/{}/status", name(pid));
    kib_field(&fs::read_to_string(&path)?, field)
        .ok_or_else(|| io::Error::other(format!("{path} has no field {field}")))
}

/// The sum of a field of /proc/PID/smaps, such as `Rss`, in bytes, over the
/// mappings that lie inside `range`.
pub fn smaps_bytes(pid: i32, range: AddressRange, field: &str) -> io::Result<u64> {
    let path = format!("/proc/{}/smaps", name(pid));
    Ok(sum_smaps(&fs::read_to_string(path)?, range, field))
}

/// A field of /proc/PID/smaps_rollup, the sum over all mappings, in bytes; a kernel that has no such
/// field counts nothing.
pub fn rollup_bytes(pid: i32, field: &str) -> io::Result<u64> {
    let path = format!("/proc/{}/smaps_rollup", name(pid));
    Ok(kib_field(&fs::read_to_string(path)?, field).unwrap_or(0))
}

fn sum_smaps(text: &str, range: AddressRange, field: &str) -> u64 {
    let mut inside = false;
    let mut sum = 0;
    for line in text.lines() {
        match parse_vma(line) {
            Some(vma) => {
                inside = vma.range.start() >= range.start() && vma.range.end() <= range.end();
            }
            None if inside => sum += kib_field(line, field).unwrap_or(0),
            None => {}
        }
    }
    sum
}

fn kib_field(text: &str, field: &str) -> Option<u64> {
    text.lines().find_map(|line| {
        let value = line.strip_prefix(field)?.strip_prefix(':')?;
        value
            .trim()
            .strip_suffix("kB")?
            .trim()
            .parse::<u64>()
            .ok()
            .map(|kib| kib << 10)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMAPS: &str = "\
1000-3000 rw-p 00000000 00:00 0 
Rss:                   8 kB
AnonHugePages:         0 kB
7000-8000 r--p 00000000 00:01 77 /a file
Rss:                   4 kB
";

    #[test]
    fn smaps_field_is_summed_inside_the_range_only() {
        let range = AddressRange::new(0x1000, 0x3000).unwrap();
        assert_eq!(sum_smaps(SMAPS, range, "Rss"), 8 << 10);
        let all = AddressRange::new(0x1000, 0x8000).unwrap();
        assert_eq!(sum_smaps(SMAPS, all, "Rss"), 12 << 10);
    }

    #[test]
    fn file_name_with_a_blank_is_kept() {
        let vma = parse_vma("7000-8000 r--p 00000000 00:01 77 /a file").unwrap();
        assert_eq!(vma.name, "/a file");
        assert!(!vma.is_private_writable());
    }

    #[test]
    fn each_thread_is_told_with_its_state_and_a_process_that_is_gone_has_none() {
        let told = threads(0);
        assert!(
            told.iter().any(|line| line.contains("R (running)")),
            "{told:?}"
        );
        assert!(threads(i32::MAX).is_empty());
    }

    #[test]
    fn own_status_has_a_resident_set() {
        assert!(status_bytes(0, "RssAnon").unwrap() > 0);
        assert!(status_bytes(0, "NoSuchField").is_err());
    }
}
