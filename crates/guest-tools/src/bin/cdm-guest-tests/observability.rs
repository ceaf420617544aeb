// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a person sees of the device from outside: /proc, sysfs, debugfs, trace
//! events, the log.

use std::fs;
use std::io::Read;
use std::os::unix::fs::OpenOptionsExt;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Device, Direction, Span, memory_type_name};
use cdm_guest_tools::iomem;
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::uapi::{CDM_CAN_MOVE_FILES, CDM_MEMORY_PUBLIC, CDM_UAPI_VERSION};

use crate::fixture::{Fixture, move_patiently, skip};
use crate::trace::Tracing;

crate::tests!("observability":
    query_describes_a_device_that_makes_sense,
    region_has_a_name_of_its_own_in_iomem,
    sysfs_agrees_with_the_ioctl,
    debugfs_counts_what_moved_and_why_the_rest_did_not,
    trace_events_tell_of_migrations_and_commands,
    normal_use_writes_nothing_to_the_log,
);

fn query_describes_a_device_that_makes_sense(t: &Fixture) -> Result<()> {
    let q = &t.start;
    t.note(format!("{q:?}"));
    ensure!(
        q.uapi_version == CDM_UAPI_VERSION,
        "version {}",
        q.uapi_version
    );
    ensure!(q.device == 0, "device {}", q.device);
    ensure!(
        q.protocol_major == cdm_protocol::VERSION_MAJOR,
        "protocol {}",
        q.protocol_major
    );
    ensure!(q.bytes_free <= q.bytes_total, "more is free than there is");
    let whole = q.bytes_total + q.bytes_metadata;
    ensure!(
        whole.is_power_of_two(),
        "usable and metadata are {whole:#x} together"
    );
    ensure!(
        q.base.is_multiple_of(whole),
        "base {:#x} is not that of a BAR",
        q.base
    );
    ensure!(q.num_command_queues >= 1, "no command queue");
    ensure!(
        q.num_command_queues <= cdm_protocol::COMMAND_QUEUES_MAX,
        "{} command queues",
        q.num_command_queues
    );
    ensure!(
        q.num_pools >= 1 && q.link_width_lanes > 0 && q.link_speed_mts > 0,
        "no topology"
    );
    ensure!(q.num_home_agents >= 1, "no home agent");
    let online = fs::read_to_string("/sys/devices/system/node/online").context("nodes")?;
    if q.numa_node >= 0 {
        let node = format!("/sys/devices/system/node/node{}", q.numa_node);
        ensure!(
            fs::exists(&node)?,
            "node {} is not online ({})",
            q.numa_node,
            online.trim()
        );
    }
    Ok(())
}

fn region_has_a_name_of_its_own_in_iomem(t: &Fixture) -> Result<()> {
    if t.start.memory_type != CDM_MEMORY_PUBLIC {
        return skip("needs MEMORY_DEVICE_PUBLIC: other types have no name in /proc/iomem");
    }
    let resources = iomem::resources()?;
    let memory = t.device_memory();
    let inside: Vec<_> = resources
        .iter()
        .filter(|resource| resource.contains(memory.start))
        .collect();
    let named = inside
        .iter()
        .find(|resource| resource.name == "Device Public Memory");
    let names: Vec<_> = inside.iter().map(|resource| &resource.name).collect();
    let named =
        named.with_context(|| format!("around {:#x} there are only {names:?}", memory.start))?;
    ensure!(
        named.contains(memory.end - 1),
        "the region ends at {:#x}",
        named.last
    );
    Ok(())
}

fn attribute(device: u32, name: &str) -> Result<String> {
    let path = format!("/sys/class/misc/cdm{device}/{name}");
    Ok(fs::read_to_string(&path)
        .with_context(|| format!("cannot read {path}"))?
        .trim()
        .to_owned())
}

fn sysfs_agrees_with_the_ioctl(t: &Fixture) -> Result<()> {
    let _memory = t.resident_memory(33, 1)?;
    let q = t.device.query()?;
    let expected = [
        ("memory_type", memory_type_name(q.memory_type)),
        ("base", format!("{:#x}", q.base)),
        ("bytes_total", q.bytes_total.to_string()),
        ("bytes_free", q.bytes_free.to_string()),
        ("bytes_metadata", q.bytes_metadata.to_string()),
        ("numa_node", q.numa_node.to_string()),
        ("link_width_lanes", q.link_width_lanes.to_string()),
        ("link_speed_mts", q.link_speed_mts.to_string()),
    ];
    for (name, value) in expected {
        let found = attribute(0, name)?;
        ensure!(
            found == value,
            "{name} is {found} in sysfs and {value} by ioctl"
        );
    }
    ensure!(
        q.bytes_free < q.bytes_total,
        "33 pages are in the device and it counts none"
    );
    Ok(())
}

/// A figure of the driver in debugfs.
fn counter(name: &str) -> Result<u64> {
    let path = format!("/sys/kernel/debug/cdm/cdm0/{name}");
    let text = fs::read_to_string(&path).with_context(|| format!("cannot read {path}"))?;
    text.trim()
        .parse()
        .with_context(|| format!("{path} holds '{}'", text.trim()))
}

fn debugfs_counts_what_moved_and_why_the_rest_did_not(t: &Fixture) -> Result<()> {
    const NAMES: [&str; 6] = [
        "pages_to_device",
        "pages_to_system",
        "to_device_not_present",
        "to_device_unsupported",
        "commands",
        "commands_refused",
    ];
    let read = || {
        NAMES
            .iter()
            .map(|name| counter(name))
            .collect::<Result<Vec<u64>>>()
    };
    let before = read()?;
    let memory = t.resident_memory(40, 2)?;
    t.move_all(memory.page_range(0, 15), Direction::ToSystem)?;
    let untouched = Mapping::anonymous(7 * PAGE_BYTES)?;
    let (migration, _) = move_patiently(&t.device, 0, untouched.range(), Direction::ToDevice)?;
    ensure!(migration.not_present == 7, "{migration:?}");
    let shared = Mapping::shared(3 * PAGE_BYTES)?;
    shared.fill(1);
    let (migration, _) = move_patiently(&t.device, 0, shared.range(), Direction::ToDevice)?;
    let files = match t.start.capabilities & CDM_CAN_MOVE_FILES {
        0 => 0,
        _ => 3,
    };
    ensure!(
        (migration.moved, migration.unsupported) == (files, 3 - files),
        "{migration:?}"
    );
    t.device.nop()?.ok()?;
    let refused = t.device.fill(&memory, Span::all(&memory), 3, 0)?;
    ensure!(
        refused.ok().is_err(),
        "a width of 3 was accepted: {refused:?}"
    );
    let after = read()?;
    let grown: Vec<u64> = after
        .iter()
        .zip(&before)
        .map(|(after, before)| after - before)
        .collect();
    let expected = [40 + files, 15, 7, 3 - files, 2, 1];
    ensure!(
        grown == expected,
        "{NAMES:?} grew by {grown:?}, not {expected:?}"
    );

    let query = t.device.query()?;
    ensure!(
        [query.pages_to_device, query.pages_to_system] == after[..2],
        "debugfs says {after:?}, the ioctl {query:?}"
    );
    let (free, in_use) = (counter("pages_free")?, counter("pages_in_use")?);
    ensure!(
        free == query.bytes_free / PAGE_BYTES as u64,
        "debugfs counts {free} free pages"
    );
    ensure!(
        in_use == 25 + files,
        "debugfs counts {in_use} pages in use, 25 and {files} are"
    );
    let total = counter("pages_total")?;
    ensure!(
        total == free + in_use,
        "{free} free and {in_use} in use are not {total}"
    );
    Ok(())
}

fn trace_events_tell_of_migrations_and_commands(t: &Fixture) -> Result<()> {
    let tracing = Tracing::start(&[
        "cdm/cdm_migrate_batch",
        "cdm/cdm_command_submit",
        "cdm/cdm_command_done",
    ])?;
    let memory = t.resident_memory(5, 3)?;
    t.device.checksum(&memory, Span::all(&memory), 0)?;
    let lines = tracing.lines()?;
    let one = |event: &str, what: &str| -> Result<()> {
        let found = lines
            .iter()
            .any(|line| line.contains(event) && line.contains(what));
        ensure!(found, "no '{event}' with '{what}' among {lines:#?}");
        Ok(())
    };
    one("cdm_migrate_batch", "to=device")?;
    one("cdm_migrate_batch", "moved=5")?;
    one("cdm_command_submit", "opcode=4")?;
    one("cdm_command_done", "status=0")?;
    one("cdm_command_done", "bytes=20480")?;
    // The event of probe exists; it fires when the module is loaded, which another group does.
    ensure!(
        fs::exists("/sys/kernel/tracing/events/cdm/cdm_probe/enable")?,
        "no event cdm_probe"
    );
    Ok(())
}

fn normal_use_writes_nothing_to_the_log(t: &Fixture) -> Result<()> {
    let mut log = fs::File::options()
        .read(true)
        .custom_flags(libc::O_NONBLOCK)
        .open("/dev/kmsg")
        .context("cannot open /dev/kmsg")?;
    // A read gives one record, and EAGAIN behind the last one.
    let mut drain = || -> Vec<String> {
        let mut records = Vec::new();
        let mut record = [0; 8192];
        while let Ok(bytes) = log.read(&mut record) {
            records.push(String::from_utf8_lossy(&record[..bytes]).into_owned());
        }
        records
    };
    drain();
    let memory = t.resident_memory(512, 4)?;
    t.device.fill(&memory, Span::all(&memory), 8, 7)?.ok()?;
    t.device.checksum(&memory, Span::all(&memory), 0)?;
    Device::open(0)?.query()?;
    t.move_all(memory.range(), Direction::ToSystem)?;
    drop(memory);
    // Lines of others come when they like, and whether they are harmless is for the check of the
    // whole log to say.
    let said: Vec<_> = drain()
        .into_iter()
        .filter(|record| record.contains("cdm"))
        .collect();
    ensure!(said.is_empty(), "the driver said {said:#?}");
    Ok(())
}
