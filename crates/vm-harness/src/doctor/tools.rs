// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Programs: those of the toolbox with their versions, and those of the host.

use std::fs;
use std::process::{Command, Stdio};

use super::Check;
use super::machine::host_tools;

/// The distribution release that the toolbox is made of.
const SUITE: &str = "trixie";
/// The first QEMU whose vhost-user devices have shared memory regions.
pub const MINIMUM_QEMU: u32 = 11;
/// What mends anything that is wrong with the toolbox.
const REMAKE: &str = "just clean --all, then run this again: the toolbox is made anew";

/// Programs of the toolbox, and what each is for.
const TOOLS: [(&str, &str); 22] = [
    ("make", "builds the kernel"),
    ("clang", "compiles the kernel"),
    ("llvm-cov", "tells what the fuzzers reach"),
    ("ld.lld", "links the kernel"),
    ("rustc", "compiles the driver and the tools"),
    ("cargo", "builds the tools"),
    ("rustfmt", "checks the layout of the code"),
    ("bindgen", "generates bindings"),
    ("ccache", "keeps objects of the kernel"),
    ("patch", "applies the kernel series"),
    ("cpio", "checks archives"),
    ("busybox", "is the guest's shell"),
    ("gdb", "looks into a guest"),
    ("drgn", "looks into the memory of a guest that crashed"),
    ("node", "runs the check of the workflow for GitHub Actions"),
    ("npm", "fetches that check"),
    ("umoci", "makes the image for container engines"),
    ("mdbook", "makes the book of the documents"),
    ("chromium-headless-shell", "looks at pages of results"),
    ("reuse", "checks licences"),
    ("dpkg-buildpackage", "makes packages for Debian"),
    ("dkms", "tries the driver's package"),
];

/// Programs of the host that the project can use, and what each is good for.
const HOST_TOOLS: [(&str, &str); 6] = [
    ("just", "runs the recipes"),
    ("python3", "fetches just"),
    ("cargo", "builds just where Python's pip is missing"),
    ("mmdebstrap", "makes the toolbox"),
    ("podman", "holds the toolbox where namespaces cannot"),
    ("docker", "holds the toolbox where namespaces cannot"),
];

/// Looks at everything here.
pub fn checks() -> Vec<Check> {
    let mut checks = vec![
        suite(&fs::read_to_string("/etc/os-release").unwrap_or_default()),
        qemu(version("qemu-system-x86_64").as_deref()),
        kernel_source(),
    ];
    checks.extend(TOOLS.iter().map(|(name, purpose)| match version(name) {
        Some(version) => Check::ok(*name, version),
        None => Check::lack(*name, format!("not in the toolbox; it {purpose}"), REMAKE),
    }));
    if let Some(found) = host_tools() {
        checks.push(on_the_host(&found));
    }
    checks
}

fn suite(os_release: &str) -> Check {
    let codename = os_release
        .lines()
        .find_map(|line| line.strip_prefix("VERSION_CODENAME="))
        .unwrap_or("unknown")
        .trim_matches('"');
    if codename == SUITE {
        Check::ok("suite", codename)
    } else {
        Check::lack(
            "suite",
            format!("{codename} instead of {SUITE}"),
            "start this as 'ci/just doctor', which enters the toolbox",
        )
    }
}

fn qemu(version: Option<&str>) -> Check {
    let name = "qemu";
    let Some(version) = version else {
        return Check::lack(name, "not in the toolbox", REMAKE);
    };
    match major(version) {
        Some(major) if major >= MINIMUM_QEMU => Check::ok(name, version),
        _ => Check::lack(
            name,
            format!("{version}; {MINIMUM_QEMU} is the first that can map device memory"),
            REMAKE,
        ),
    }
}

/// The first number of a version that comes after the word `version`.
fn major(text: &str) -> Option<u32> {
    let rest = text.split("version ").nth(1).unwrap_or(text);
    let digits: String = rest.chars().take_while(char::is_ascii_digit).collect();
    digits.parse().ok()
}

fn kernel_source() -> Check {
    let names = fs::read_dir("/usr/src")
        .into_iter()
        .flatten()
        .flatten()
        .map(|entry| entry.file_name().to_string_lossy().into_owned());
    match names
        .filter(|name| name.starts_with("linux-source-") && name.contains(".tar"))
        .min()
    {
        Some(name) => Check::ok("kernel source", name),
        None => Check::note(
            "kernel source",
            "not in the toolbox: its series has left the distribution",
            "use a kernel tree of your own: just run-vm --kernel PATH",
        ),
    }
}

fn on_the_host(found: &[String]) -> Check {
    let list: Vec<String> = HOST_TOOLS
        .iter()
        .map(|(name, purpose)| {
            let has = found.iter().any(|tool| tool == name);
            format!("{name} {} ({purpose})", if has { "yes" } else { "no" })
        })
        .collect();
    Check::ok("host", list.join(", "))
}

/// The first line that a program prints about its version.
fn version(program: &str) -> Option<String> {
    // busybox takes --version for the name of an applet.
    let argument = if program == "busybox" {
        "--help"
    } else {
        "--version"
    };
    let output = Command::new(program)
        .arg(argument)
        .stdin(Stdio::null())
        .output()
        .ok()?;
    let text = String::from_utf8_lossy(&output.stdout);
    text.lines().next().map(|line| line.trim().to_owned())
}

#[cfg(test)]
mod tests {
    use super::super::Status;
    use super::*;

    #[test]
    fn an_old_qemu_is_refused_with_the_first_that_will_do() {
        let check = qemu(Some("QEMU emulator version 10.0.2 (Debian 1:10.0.2)"));
        assert_eq!(check.status, Status::Lack);
        assert!(check.found.contains("11"), "{check:?}");
        let check = qemu(Some("QEMU emulator version 11.1.3 (Debian 1:11.1.3)"));
        assert_eq!(check.status, Status::Ok);
        assert_eq!(qemu(None).status, Status::Lack);
    }

    #[test]
    fn another_suite_than_the_toolboxs_is_a_lack() {
        assert_eq!(suite("VERSION_CODENAME=trixie\n").status, Status::Ok);
        assert_eq!(suite("VERSION_CODENAME=bookworm\n").status, Status::Lack);
        assert_eq!(suite("").status, Status::Lack);
    }

    #[test]
    fn every_tool_of_the_toolbox_answers_with_a_version() {
        for (name, _) in TOOLS {
            let version = version(name).unwrap_or_default();
            assert!(
                version.chars().any(|c| c.is_ascii_digit()),
                "{name} says '{version}'"
            );
        }
    }
}
