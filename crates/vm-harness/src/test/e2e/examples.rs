// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The drivers in `examples/`, in the place of ours: what docs/tutorial and docs/how-to show must
//! work as it is shown.

use std::fs;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};

use super::Session;
use crate::build;
use crate::markdown;
use crate::vm::FileCopy;

/// Has an example's module in the guest; where.
fn bring(session: &mut Session, folder: &str, module: &str) -> Result<String> {
    let sources = session.ctx().repo.join("examples").join(folder);
    bring_from(session, &sources, module)
}

fn bring_from(session: &mut Session, sources: &Path, module: &str) -> Result<String> {
    let built = build::own_modules(session.ctx(), &session.spec().kernel, sources)?;
    let host = built.into_iter().next().context("no module was built")?;
    let guest = format!("/root/{module}.ko");
    session.bring(FileCopy {
        host,
        guest: guest.clone(),
    })?;
    Ok(guest)
}

/// Loads an example where ours was; what the kernel said.
fn load(session: &mut Session, folder: &str, module: &str) -> Result<String> {
    let guest = bring(session, folder, module)?;
    insert(session, &guest)
}

fn insert(session: &mut Session, guest: &str) -> Result<String> {
    session.text("rmmod cdm")?;
    session.new_log()?;
    session.text(&format!("insmod {guest}"))?;
    session.new_log()
}

/// The guest's part of the tutorial: in one shell, line for line, with what it says there. What
/// differs from one guest to the next is `…` in the document.
pub fn tutorial_works_as_written(session: &mut Session) -> Result<()> {
    /// Between what one command says and the next.
    const END: &str = "@end of a command@";
    let page = session.ctx().repo.join("docs/tutorial/first-driver.md");
    let text = fs::read_to_string(&page).context("cannot read the tutorial")?;
    let mut steps: Vec<(&str, Vec<&str>)> = Vec::new();
    let blocks = markdown::blocks(&text);
    for (_, block) in blocks.iter().filter(|(kind, _)| kind == "console") {
        for line in block.lines() {
            match (line.strip_prefix("# "), steps.last_mut()) {
                (Some(command), _) => steps.push((command, Vec::new())),
                (None, Some((_, said))) => said.push(line),
                (None, None) => bail!("the tutorial says '{line}' before any command"),
            }
        }
    }
    ensure!(steps.len() > 3, "no steps were recognised in the tutorial");
    bring(session, "first-driver", "first")?;
    let script: String = steps
        .iter()
        .map(|(command, _)| format!("{command}\necho '{END}'\n"))
        .collect();
    let all = session.text(&format!(
        "cat > /tmp/tutorial <<'THE END'\n{script}THE END\nsh /tmp/tutorial 2>&1"
    ))?;
    let answers: Vec<&str> = all.split(END).map(str::trim).collect();
    for ((command, said), answer) in steps.iter().zip(answers) {
        let lines: Vec<&str> = answer.lines().collect();
        let same = lines.len() == said.len()
            && lines
                .iter()
                .zip(said)
                .all(|(line, said)| is_like(line, said));
        ensure!(
            same,
            "'{command}' says {lines:#?}, and in the tutorial {said:#?}"
        );
    }
    session.text("insmod /lib/modules/cdm.ko && cdmctl run checksum --size 1M")?;
    Ok(())
}

/// Whether a line is what a document shows, whose `…` stands for anything.
fn is_like(line: &str, shown: &str) -> bool {
    let parts: Vec<&str> = shown.split('…').map(str::trim).collect();
    let mut rest = line;
    for (number, part) in parts.iter().enumerate() {
        match rest.find(part) {
            Some(at) if at == 0 || number > 0 => rest = &rest[at + part.len()..],
            _ => return false,
        }
    }
    rest.is_empty() || parts.last().is_some_and(|last| last.is_empty())
}

/// Takes the example away, and has ours work on the device again.
fn unload(session: &mut Session, module: &str) -> Result<()> {
    session.text(&format!("rmmod {module}"))?;
    session.text("insmod /lib/modules/cdm.ko && cdmctl run checksum --size 1M")?;
    Ok(())
}

/// A shell that writes the address of its heap to the driver, and then waits for a line from
/// /tmp/hold without starting anything: a child would share the page, and who writes to it first gets
/// a copy in ordinary memory. Its number, the address and the driver's answer are in files.
const SHELL: &str = "rm -f /tmp/hold /tmp/shell /tmp/status; mkfifo /tmp/hold; \
    sh -c 'word=unchanged; heap=$(sed -n \"/heap/s/-.*//p\" /proc/$$/maps); \
    echo $$ $heap > /tmp/shell; read go < /tmp/hold; echo $heap > /dev/first; \
    echo $? > /tmp/status; read go < /tmp/hold; echo $word > /tmp/status' \
    > /dev/null 2>&1 &";

/// Waits until the shell has said something in a file, which one that is gone never does.
fn said(session: &mut Session, file: &str, what: &str) -> Result<String> {
    session
        .text(&format!(
            "for again in $(seq 100); do grep -q '{what}' {file} 2> /dev/null && break; sleep 0.2; \
             done; cat {file}"
        ))
        .context("the shell whose page moves says nothing")
}

/// The entry of the page map for the beginning of that heap.
const ENTRY: &str = "read pid heap < /tmp/shell; \
    dd if=/proc/$pid/pagemap bs=8 count=1 skip=$((0x$heap / 4096)) 2> /dev/null | od -An -t u8";

/// A shell of its own writes the address of its heap; the page goes to the device and its contents
/// with it.
pub fn first_page_moves(session: &mut Session) -> Result<()> {
    let log = load(session, "first-driver", "first")?;
    ensure!(
        log.contains("first: 256 MiB of device memory at 0x"),
        "the driver does not say what it found:\n{log}"
    );
    let base = log
        .split("device memory at 0x")
        .nth(1)
        .and_then(|rest| rest.split_whitespace().next())
        .context("no address")?;
    let base = u64::from_str_radix(base, 16)?;
    session.text(SHELL)?;
    said(session, "/tmp/shell", ".")?;
    let is_in_device = |session: &mut Session| -> Result<bool> {
        let entry = session.text(ENTRY)?;
        let entry: u64 = entry
            .trim()
            .parse()
            .with_context(|| format!("entry {entry}"))?;
        // Bit 63: present. The lowest 55: the frame.
        let address = (entry & ((1 << 55) - 1)) << 12;
        Ok(entry >> 63 == 1 && (base..base + (256 << 20)).contains(&address))
    };
    ensure!(!is_in_device(session)?, "the page was in the device before");
    session.text("echo go > /tmp/hold")?;
    let status = said(session, "/tmp/status", "[0-9]")?;
    ensure!(status == "0\n", "the driver refuses: {status}");
    ensure!(is_in_device(session)?, "the page is not in the device");
    // Nobody may be there to read it any more.
    session.text("timeout 20 sh -c 'echo go > /tmp/hold' || true")?;
    let word = said(session, "/tmp/status", "[a-z]")?;
    ensure!(word == "unchanged\n", "the shell's memory changed: {word}");
    let nothing = session.exec("echo 0 > /dev/first")?;
    ensure!(
        !nothing.status.success(),
        "an address without a page is taken"
    );
    unload(session, "first")
}

/// `cdmctl` of ours moves a process there and back through the minimal driver.
pub fn minimal_driver_serves_cdmctl(session: &mut Session) -> Result<()> {
    load(session, "minimal-driver", "minimal")?;
    serves_cdmctl(session)
}

/// So does the one that is built with the contract of version 1.2, as a driver is that nobody has
/// touched since.
pub fn earlier_driver_serves_cdmctl(session: &mut Session) -> Result<()> {
    let ctx = session.ctx();
    let copy = ctx.cache.join("test/driver-of-1.2");
    let driver = copy.join("examples/minimal-driver");
    build::mirror(&ctx.repo.join("examples/minimal-driver"), &driver)?;
    let uapi = "crates/guest-driver/uapi";
    build::mirror(&ctx.repo.join(uapi), &copy.join(uapi))?;
    let include = "crates/device-protocol/include";
    let released = ctx.repo.join(include).join("released/cdm_device-1.2.h");
    build::mirror_file(&released, &copy.join(include).join("cdm_device.h"))?;
    let guest = bring_from(session, &driver, "minimal")?;
    insert(session, &guest)?;
    serves_cdmctl(session)
}

fn serves_cdmctl(session: &mut Session) -> Result<()> {
    let kernel = session.text("cdmctl info --json")?;
    ensure!(kernel.contains("\"bytes_total\": 268435456"), "{kernel}");
    session.text(
        "rm -f /tmp/hold /tmp/word; mkfifo /tmp/hold; sh -c 'word=unchanged; read go < /tmp/hold; \
         echo $word > /tmp/word' > /dev/null 2>&1 & echo $! > /tmp/pid",
    )?;
    let there = session.text("cdmctl migrate --pid $(cat /tmp/pid) --all --to device")?;
    let residency = |session: &mut Session| -> Result<u64> {
        let text = session.text("cdmctl residency --pid $(cat /tmp/pid) --all --json")?;
        let value: serde_json::Value = serde_json::from_str(&text)?;
        let ranges = value["ranges"].as_array().context("no ranges")?.clone();
        let in_device = ranges
            .iter()
            .map(|range| range["pages_this_device"].as_u64());
        in_device.sum::<Option<u64>>().context("no pages")
    };
    let in_device = residency(session)?;
    ensure!(in_device > 0, "nothing is in the device: {there}");
    // What is left there at the end comes home by itself.
    session.text("cdmctl migrate --pid $(cat /tmp/pid) --all --to system")?;
    ensure!(residency(session)? == 0, "pages stayed in the device");
    session.text("cdmctl migrate --pid $(cat /tmp/pid) --all --to device")?;
    // This driver tries each page once, so one that is busy stays: how many go may differ.
    ensure!(residency(session)? > 0, "nothing goes a second time");
    unload(session, "minimal")?;
    ensure!(residency(session)? == 0, "ours finds pages in the device");
    session.text("timeout 20 sh -c 'echo go > /tmp/hold' || true")?;
    let word = said(session, "/tmp/word", ".")?;
    ensure!(word == "unchanged\n", "its memory changed: {word}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::is_like;

    #[test]
    fn dots_stand_for_anything_and_the_rest_for_itself() {
        assert!(is_like(
            "sh: write error: Bad address",
            "… write error: Bad address"
        ));
        assert!(is_like(
            "[  1.2] first: 256 MiB at 0xff",
            "… first: … MiB at 0x…"
        ));
        assert!(is_like(
            "DeviceMemory:          4 kB",
            "DeviceMemory:          4 kB"
        ));
        assert!(!is_like(
            "DeviceMemory:          4 kB",
            "DeviceMemory:          0 kB"
        ));
        assert!(!is_like("x first:", "first:…"));
        assert!(!is_like("first: and more", "first:"));
    }
}
