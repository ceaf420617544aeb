// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The tool in the guest, as a person or a script uses it.

use anyhow::{Context as _, Result, bail, ensure};
use serde_json::Value;

use super::{Session, follows_schema};
use crate::vm::Output;

/// The output of `cdmctl … --json` as a document that follows its schema.
fn json(session: &mut Session, line: &str, schema: &str) -> Result<Value> {
    let text = session.text(line)?;
    follows_schema(session.ctx(), schema, text.as_bytes()).with_context(|| line.to_owned())
}

/// Holds the output of a command to be tables that begin so, one after the other, in plain text.
fn is_tables(text: &str, begin: &[&str]) -> Result<()> {
    let tables: Vec<&str> = text.trim_end().split("\n\n").collect();
    let is_as_expected = tables.len() == begin.len()
        && tables
            .iter()
            .zip(begin)
            .all(|(table, begin)| table.starts_with(begin) && table.lines().count() > 1);
    ensure!(
        is_as_expected,
        "no tables that begin with {begin:?}:\n{text}"
    );
    ensure!(
        !text.contains('\x1b'),
        "colours where no terminal is: {text:?}"
    );
    Ok(())
}

fn info(session: &mut Session) -> Result<Value> {
    json(session, "cdmctl info --json", "cdmctl-info.schema.json")
}

/// `cdmctl info --json`.
pub fn info_matches_schema(session: &mut Session) -> Result<()> {
    let info = info(session)?;
    let devices = info["devices"].as_array().context("no list of devices")?;
    let spec = session.spec();
    ensure!(
        devices.len() == usize::from(spec.devices),
        "{} devices",
        devices.len()
    );
    for (number, device) in devices.iter().enumerate() {
        ensure!(
            device["device"] == number,
            "device {number} is called {}",
            device["device"]
        );
        let bytes = |field: &str| device[field].as_u64().unwrap_or(0);
        let whole = bytes("bytes_total") + bytes("bytes_metadata");
        ensure!(
            whole == spec.device_memory.0,
            "total and metadata are {whole} together"
        );
        ensure!(
            bytes("bytes_free") <= bytes("bytes_total"),
            "more free than there is"
        );
        let queues = u64::from(spec.command_queues());
        ensure!(
            bytes("command_queues") == queues,
            "{} queues",
            device["command_queues"]
        );
    }
    let table = session.text("cdmctl info")?;
    is_tables(&table, &["DEVICE  MEMORY", "DEVICE  FACT"])?;
    let rows = |start: &str| table.lines().filter(|line| line.starts_with(start)).count();
    for number in 0..devices.len() {
        // One in the first table, and its facts.
        ensure!(rows(&format!("{number} ")) > 2, "the tables are:\n{table}");
    }
    Ok(())
}

/// `cdmctl hot`: all of a buffer that the device uses moves to it, and with a burst of ten pages ten.
pub fn moves_what_is_hot(session: &mut Session) -> Result<()> {
    let hot = |session: &mut Session, line: &str| {
        json(session, line, "cdmctl-hot.schema.json").map(|report| {
            let figure = |field: &str| report[field].as_u64().unwrap_or(u64::MAX);
            (figure("pages_moved"), figure("pages_in_device"))
        })
    };
    let all = hot(session, "cdmctl hot --size 1M --rounds 50 --json")?;
    ensure!(all.1 >= 240, "of 256 pages {} are in the device", all.1);
    let line = "cdmctl hot --size 1M --burst 10 --pages-per-second 0 --json";
    let ten = hot(session, line)?;
    ensure!(
        ten == (10, 10),
        "{} pages moved, {} are there",
        ten.0,
        ten.1
    );
    let tables = session.text("cdmctl hot --size 1M --burst 10 --pages-per-second 0")?;
    is_tables(&tables, &["DEVICE  REPORTS", "WHAT"])?;
    let used = tables.lines().find(|line| line.starts_with("used "));
    ensure!(used.is_some_and(|row| row.contains(" 1 MiB")), "{tables}");
    let info = info(session)?;
    let moved = info["devices"][0]["pages_hot_to_device"].as_u64();
    ensure!(moved >= Some(all.0 + 10), "cdmctl info says {moved:?}");
    Ok(())
}

/// `cdmctl top`: what moves while it looks, and whose memory is in the device.
pub fn top_sees_moves_and_who_has_memory_in_the_device(session: &mut Session) -> Result<()> {
    session.text(
        "touch /tmp/go; \
         (x=$(head -c 1048576 /dev/zero | tr '\\0' x); while [ -e /tmp/go ]; do usleep 50000; done) \
         > /dev/null 2>&1 & echo $! > /tmp/pid; sleep 1; \
         (while [ -e /tmp/go ]; do for to in system device; do \
         cdmctl migrate --pid $(cat /tmp/pid) --all --to $to > /dev/null; done; usleep 300000; done) \
         > /dev/null 2>&1 &",
    )?;
    let line = "cdmctl top --json --interval 0.5 --count 12 --processes 100";
    let text = session.text(line)?;
    let table = session.text("cdmctl top --once")?;
    let end = "rm /tmp/go; while [ -d /proc/$(cat /tmp/pid) ]; do usleep 10000; done; cat /tmp/pid";
    let pid: u64 = session.text(end)?.trim().parse()?;
    ensure!(text.lines().count() == 12, "not twelve intervals: {text}");
    let mut moved = [0.0; 2];
    let mut most = 0;
    for line in text.lines() {
        let rates = follows_schema(session.ctx(), "cdmctl-top.schema.json", line.as_bytes())?;
        let device = &rates["devices"][0];
        ensure!(
            device["commands_per_second"].is_number(),
            "root may read all: {device}"
        );
        for (sum, field) in moved.iter_mut().zip(["to_device", "to_system"]) {
            *sum += device[format!("bytes_{field}_per_second")]
                .as_f64()
                .unwrap_or(0.0);
        }
        let processes = rates["processes"].as_array().cloned().unwrap_or_default();
        let own = processes.iter().find(|process| process["pid"] == pid);
        most = most.max(own.map_or(0, |own| own["bytes_in_device"].as_u64().unwrap_or(0)));
    }
    ensure!(
        moved.iter().all(|bytes| *bytes > 0.0),
        "nothing moved: {text}"
    );
    ensure!(
        most >= 1 << 19,
        "of a megabyte {most} bytes are in the device: {text}"
    );
    ensure!(
        table.starts_with("DEVICE") && table.contains("MiB"),
        "{table}"
    );
    ensure!(table.contains("cdm-agent"), "no process is shown: {table}");
    ensure!(
        !table.contains('\x1b'),
        "colours where no terminal is: {table:?}"
    );
    Ok(())
}

fn memory_type(session: &mut Session) -> Result<String> {
    let info = info(session)?;
    Ok(info["devices"][0]["memory_type"]
        .as_str()
        .unwrap_or_default()
        .to_owned())
}

/// Without a parameter the driver takes the best type.
pub fn memory_type_is_public(session: &mut Session) -> Result<()> {
    let found = memory_type(session)?;
    ensure!(found == "public", "the memory type is {found}");
    Ok(())
}

/// Without MEMORY_DEVICE_PUBLIC the driver takes MEMORY_DEVICE_COHERENT, and tells.
pub fn falls_back_to_coherent(session: &mut Session) -> Result<()> {
    let found = memory_type(session)?;
    ensure!(found == "coherent", "the memory type is {found}");
    let log = session.vm()?.kernel_log()?;
    let told = log
        .lines()
        .any(|line| line.contains("cdm") && line.contains("coherent"));
    ensure!(told, "the driver does not say that it falls back:\n{log}");
    Ok(())
}

/// A shell that keeps a megabyte in a variable, so that there is something to move.
const VICTIM: &str = "sh -c 'x=$(head -c 1048576 /dev/zero | tr \"\\0\" x); \
                      echo ready > /tmp/victim; while [ -e /tmp/victim ]; do sleep 0.1; done; \
                      echo \"${#x}\" > /tmp/length'";

/// `cdmctl migrate` and `cdmctl residency` on a process that knows nothing of it.
pub fn migrates_a_process(session: &mut Session) -> Result<()> {
    session.text(&format!(
        "rm -f /tmp/victim /tmp/length; {VICTIM} >/dev/null 2>&1 & echo $! > /tmp/victim.pid; \
         while [ ! -e /tmp/victim ]; do sleep 0.1; done"
    ))?;
    let pid = session.text("cat /tmp/victim.pid")?.trim().to_owned();
    let residency = |session: &mut Session| -> Result<u64> {
        let line = format!("cdmctl residency --pid {pid} --all --json");
        let report = json(session, &line, "cdmctl-residency.schema.json")?;
        let ranges = report["ranges"].as_array().cloned().unwrap_or_default();
        Ok(ranges
            .iter()
            .filter_map(|range| range["pages_this_device"].as_u64())
            .sum())
    };
    ensure!(
        residency(session)? == 0,
        "pages are in the device before anything moved"
    );
    let line = format!("cdmctl migrate --pid {pid} --all --to device --json");
    let report = json(session, &line, "cdmctl-migrate.schema.json")?;
    let moved = report["pages_moved"].as_u64().unwrap_or(0);
    ensure!(
        moved >= 256,
        "only {moved} pages of over a megabyte moved: {report}"
    );
    let there = residency(session)?;
    ensure!(
        there > 0 && there <= moved,
        "{there} of {moved} moved pages are in the device"
    );
    let table = session.text(&format!("cdmctl residency --pid {pid} --all"))?;
    ensure!(
        table
            .lines()
            .last()
            .is_some_and(|line| line.starts_with("all")),
        "{table}"
    );
    is_tables(&table, &["RANGE"])?;
    let table = session.text(&format!("cdmctl migrate --pid {pid} --all --to system"))?;
    is_tables(&table, &["WHAT"])?;
    let row = |name: &str| table.lines().find(|line| line.starts_with(name));
    let is_there = |row: Option<&str>| row.is_some_and(|row| row.contains("iB"));
    ensure!(
        is_there(row("asked ")) && is_there(row("moved ")),
        "{table}"
    );
    ensure!(residency(session)? == 0, "pages are still in the device");
    session.text("rm /tmp/victim; while [ ! -s /tmp/length ]; do sleep 0.1; done")?;
    let length = session.text("cat /tmp/length")?;
    ensure!(
        length.trim() == "1048576",
        "the process lost its memory: length {length}"
    );
    Ok(())
}

/// `cdmctl run`, with a buffer in the device and one in system memory.
pub fn runs_each_operation(session: &mut Session) -> Result<()> {
    session.text("head -c 100000 /dev/urandom > /tmp/a; cp /tmp/a /tmp/b; printf x >> /tmp/b")?;
    session.text("head -c 64 /dev/zero > /tmp/zeroes")?;
    session.text(
        "printf 'SET d=1 imm=5 # to be added\\nATOMIC_ADD d=0 b=1 imm=16 width=8 order=seq-cst\\n\
         LOAD d=0 imm=16 width=8 order=relaxed' > /tmp/code",
    )?;
    session.text(
        "printf 'FILL to=0+64 width=8 arg0=0x61 unordered # as\\nFILL to=64+64 width=1 arg0=0x62\\n\
         FENCE\\nCOPY from=120+8,0+1 to=128+9\\nCHECKSUM from=128+9\\n' > /tmp/batch",
    )?;
    for place in ["device", "system"] {
        let mut report = |arguments: &str| {
            let line = format!("cdmctl run {arguments} --in {place} --json");
            json(session, &line, "cdmctl-run.schema.json")
        };
        // The tool itself compares the device's checksum with the CPU's.
        let sum = report("checksum --input /tmp/a")?;
        let again = report("checksum --input /tmp/a")?;
        ensure!(sum["crc32c"] == again["crc32c"], "{sum} and {again}");
        ensure!(sum["bytes_done"] == 100_000, "{sum}");
        report("copy --input /tmp/a --output /tmp/copy")?;
        let equal = report("compare --input /tmp/a --with /tmp/copy")?;
        ensure!(equal["equal"] == true, "{equal}");
        let added = report("fetch-add --initial 7 --value 3 --times 10")?;
        ensure!(added["before"] == 34 && added["after"] == 37, "{added}");
        let swapped = report("compare-swap --initial 7 --expect 7 --store 9")?;
        ensure!(swapped["before"] == 7 && swapped["after"] == 9, "{swapped}");
        // The tool compares these with the CPU's, too.
        let sum = report("sum --input /tmp/a --type u64 --stride 16")?;
        ensure!(sum["bytes_done"] == 100_000, "{sum}");
        report("axpy --type f32 --factor 2.5 --input /tmp/a --with /tmp/copy")?;
        report("chase --size 64K --hops 5000")?;
        let counted = report("histogram --input /tmp/zeroes --bins 2")?;
        ensure!(
            counted["counters"][0] == 64 && counted["outside"] == 0,
            "{counted}"
        );
        let ended = report("program --code /tmp/code --input /tmp/zeroes")?;
        ensure!(ended["result"] == 5 && ended["bytes_done"] == 3, "{ended}");
        let batch = report("batch --commands /tmp/batch --size 4K --output /tmp/copied")?;
        let commands = batch["commands"].as_array().cloned().unwrap_or_default();
        let is_ok = |command: &Value| command["status"] == "OK";
        ensure!(commands.len() == 5 && commands.iter().all(is_ok), "{batch}");
        ensure!(batch["bytes_done"] == 64 + 64 + 9 + 9, "{batch}");
        let copied = session.text("head -c 137 /tmp/copied | tail -c 9")?;
        ensure!(copied == "bbbbbbbba", "the batch copied '{copied}'");
        let filled =
            format!("cdmctl run fill --size 3 --value 0x61 --width 1 --output - --in {place}");
        let text = session.text(&filled)?;
        ensure!(text == "aaa", "the device filled '{text}'");
    }
    session.text("cmp /tmp/a /tmp/copy && cdmctl run nop && cdmctl reset")?;
    let sum = session.text("printf 123456789 | cdmctl run checksum --input -")?;
    // The check value of CRC-32C.
    is_tables(&sum, &["DEVICE  OPERATION"])?;
    ensure!(sum.contains("crc32c 0xe3069283"), "{sum}");
    let evicted = session.text("cdmctl evict --all")?;
    is_tables(&evicted, &["WHAT"])?;
    Ok(())
}

/// `cdmctl run --bind`: the device finds the buffers by the addresses of the process, which it asks
/// the driver for.
pub fn runs_each_operation_on_addresses_of_its_process(session: &mut Session) -> Result<()> {
    let asked = |session: &mut Session| -> Result<u64> {
        let text = session.text("cat /sys/kernel/debug/cdm/cdm0/page_requests")?;
        Ok(text.trim().parse()?)
    };
    session.text("head -c 100000 /dev/urandom > /tmp/a; head -c 64 /dev/zero > /tmp/zeroes")?;
    session.text(
        "printf 'SET d=1 imm=5\\nATOMIC_ADD d=0 b=1 imm=16 width=8 order=seq-cst\\n\
         LOAD d=0 imm=16 width=8 order=relaxed' > /tmp/code",
    )?;
    for place in ["device", "system"] {
        // The tool compares what the device finds with what the CPU does.
        for (arguments, key, value) in [
            ("checksum --input /tmp/a", "bytes_done", 100_000),
            (
                "fill --size 100000 --value 7 --width 1 --output /tmp/filled",
                "bytes_done",
                100_000,
            ),
            (
                "copy --input /tmp/a --output /tmp/copy",
                "bytes_done",
                100_000,
            ),
            (
                "compare --input /tmp/a --with /tmp/copy",
                "bytes_done",
                100_000,
            ),
            ("fetch-add --initial 7 --value 3 --times 10", "after", 37),
            ("compare-swap --initial 7 --expect 7 --store 9", "after", 9),
            (
                "sum --input /tmp/a --type u64 --stride 16",
                "bytes_done",
                100_000,
            ),
            (
                "axpy --type f32 --factor 2.5 --input /tmp/a --with /tmp/copy",
                "bytes_done",
                100_000,
            ),
            ("chase --size 64K --hops 5000", "bytes_done", 40_000),
            ("histogram --input /tmp/zeroes --bins 2", "outside", 0),
            ("program --code /tmp/code --input /tmp/zeroes", "result", 5),
        ] {
            let before = asked(session)?;
            let line = format!("cdmctl run {arguments} --in {place} --bind --json");
            let report = json(session, &line, "cdmctl-run.schema.json")?;
            ensure!(report[key] == value, "'{line}': {report}");
            ensure!(
                asked(session)? > before,
                "'{line}': the device asked for no page"
            );
        }
        session.text(
            "cmp /tmp/a /tmp/copy && head -c 100000 /dev/zero | tr '\\0' '\\7' | cmp - /tmp/filled",
        )?;
    }
    let bound = session.text("cat /sys/kernel/debug/cdm/cdm0/address_spaces")?;
    ensure!(
        bound.trim() == "0",
        "{bound} address spaces are still bound"
    );
    // Without the option nobody asks.
    let before = asked(session)?;
    session.text("cdmctl run checksum --input /tmp/a")?;
    ensure!(asked(session)? == before, "the device asked for a page");
    Ok(())
}

fn expect(output: &Output, code: i32, words: &[&str], line: &str) -> Result<()> {
    let found = output.status.shell_code();
    let said = format!(
        "{}{}",
        String::from_utf8_lossy(&output.stdout),
        String::from_utf8_lossy(&output.stderr)
    );
    if found != code {
        bail!("'{line}' exits with {found}, not {code}: {said}");
    }
    for word in words {
        ensure!(
            said.contains(word),
            "'{line}' does not speak of '{word}': {said}"
        );
    }
    Ok(())
}

/// Exit status 1: it ran, and the answer is no.
pub fn failed_checks_exit_with_1(session: &mut Session) -> Result<()> {
    session.text("printf aaaa > /tmp/a; printf aaba > /tmp/b")?;
    session.text("printf 'COPY from=0+4 to=8+5\\nNOP\\n' > /tmp/batch")?;
    let cases: [(&str, &[&str]); 4] = [
        (
            "cdmctl run batch --commands /tmp/batch --size 4K",
            &["COPY       LENGTH_MISMATCH", "NOP        OK", "1 of 2"],
        ),
        (
            "cdmctl run batch --commands /tmp/batch --size 4K --stop",
            &[
                "COPY       LENGTH_MISMATCH",
                "NOP        NOT_BEGUN",
                "0 of 2",
            ],
        ),
        (
            "cdmctl run compare --input /tmp/a --with /tmp/b",
            &["differ at byte 2"],
        ),
        (
            "cdmctl run compare-swap --initial 1 --expect 2 --store 3",
            &["found 1, not 2"],
        ),
    ];
    for (line, words) in cases {
        expect(&session.exec(line)?, 1, words, line)?;
    }
    Ok(())
}

/// Exit status 2: it could not run, and says what, where and what to do.
pub fn errors_exit_with_2(session: &mut Session) -> Result<()> {
    session.text("printf 'NOP\\nFLY to=0+1\\n' > /tmp/batch")?;
    let cases: [(&str, &[&str]); 9] = [
        (
            "cdmctl run batch --commands /tmp/batch --size 4K",
            &["line 2", "FLY"],
        ),
        (
            "cdmctl run nop --device 9",
            &["/dev/cdm9", "devices here: 0, 1"],
        ),
        ("cdmctl migrate --pid 999999 --all --to device", &["999999"]),
        (
            "cdmctl migrate --pid 1 --range 1000-1001 --to device",
            &["4096-byte pages"],
        ),
        ("cdmctl migrate --pid 1 --to device", &["--range", "--all"]),
        ("cdmctl residency --pid 0 --all", &["--pid"]),
        ("cdmctl run checksum --input /none", &["/none"]),
        (
            "cdmctl run fill --value 1 --width 3",
            &["BAD_WIDTH", "docs/reference/device.md"],
        ),
        ("cdmctl run fetch-add --times 0", &["--times"]),
    ];
    for (line, words) in cases {
        expect(&session.exec(line)?, 2, words, line)?;
    }
    Ok(())
}
