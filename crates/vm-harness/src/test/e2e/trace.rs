// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the devices and the driver did, on one time line.

use std::collections::HashMap;
use std::fs;

use anyhow::{Context as _, Result, ensure};
use serde_json::Value;

use super::Session;
use crate::vm::timeline;

/// A clock that is further off shows no order of commands. Under emulation on a busy host an
/// exchange takes some milliseconds; clocks that nobody aligned are apart by the host's uptime.
const ERROR_MAX_US: f64 = 1e6;

/// What came of one command, in microseconds.
#[derive(Debug)]
struct Command<'a> {
    name: &'a str,
    queue: u64,
    begin: f64,
    end: f64,
}

/// Commands of the guest that came to their end.
fn commands<'a>(records: &[&'a Value]) -> Result<Vec<Command<'a>>> {
    let mut ends: HashMap<&str, f64> = HashMap::new();
    for record in records.iter().filter(|record| record["ph"] == "e") {
        let id = record["id"].as_str().context("an end without an id")?;
        ends.insert(id, time(record)?);
    }
    let begins = records.iter().filter(|record| record["ph"] == "b");
    begins
        .map(|record| {
            let id = record["id"].as_str().context("a begin without an id")?;
            Ok(Command {
                name: record["name"].as_str().context("no name")?,
                queue: record["args"]["queue"].as_u64().context("no queue")?,
                begin: time(record)?,
                end: *ends
                    .get(id)
                    .with_context(|| format!("{record} has no end"))?,
            })
        })
        .collect()
}

fn time(record: &Value) -> Result<f64> {
    record["ts"]
        .as_f64()
        .with_context(|| format!("no time in {record}"))
}

/// Moves, commands on memory of the device and on addresses of a process, invalidations: each
/// command of the driver lies around its bar of the device.
pub fn one_time_line(session: &mut Session) -> Result<()> {
    session.text("head -c 100000 /dev/urandom > /tmp/a")?;
    session.text("cdmctl run copy --input /tmp/a --output /tmp/b --in device")?;
    session.text("cdmctl run copy --bind --input /tmp/a --output /tmp/c --in system")?;
    // Pages that the device knows are dropped under it.
    session.text("cdm-guest-tests --exact addresses::dropped_pages_are_zero_for_the_device")?;
    session.text("cmp /tmp/a /tmp/b && cmp /tmp/a /tmp/c")?;
    session.judge_log()?;
    let path = session.power_off()?.join(timeline::FILE);
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let file: Value = serde_json::from_str(&text)?;
    let other = &file["otherData"];
    ensure!(
        other["incomplete"].as_array().is_some_and(Vec::is_empty),
        "not all of it is there: {other:#}"
    );
    let told = &other["guest"][0];
    ensure!(told["events_lost"] == 0, "events are lost: {told:#}");
    let error = told["clock_error_us"].as_f64().context("no error")?;
    ensure!(
        0.0 < error && error < ERROR_MAX_US,
        "the guest's clock is within {error} us"
    );

    let all = file["traceEvents"].as_array().context("no events")?;
    let (guest, device): (Vec<&Value>, Vec<&Value>) = all
        .iter()
        .partition(|record| record["pid"] == other["guest_pid"]);
    let marks = |name: &str, key: &str, value: Value| {
        let fits = |record: &&&Value| record["name"] == name && record["args"][key] == value;
        guest.iter().filter(fits).count()
    };
    for (name, key, value) in [
        ("cdm_migrate_batch", "to", Value::from("device")),
        ("cdm_page_request", "status", Value::from(0)),
        ("cdm_invalidate", "done", Value::from(1)),
    ] {
        ensure!(
            marks(name, key, value.clone()) > 0,
            "no {name} with {key}={value}"
        );
    }
    for name in ["PAGE_REQUEST", "PAGE_RESPONSE", "INVALIDATE", "UNBIND"] {
        let is_there = device.iter().any(|record| record["name"] == name);
        ensure!(is_there, "the device shows no {name}");
    }

    let commands = commands(&guest)?;
    let mut bars: Vec<&Value> = device.into_iter().filter(|r| r["ph"] == "X").collect();
    let mut copies = 0;
    for command in &commands {
        let Command {
            name,
            queue,
            begin,
            end,
        } = *command;
        let mut around = None;
        for (at, bar) in bars.iter().enumerate() {
            let began = time(bar)?;
            let ended = began + bar["dur"].as_f64().context("a bar without an end")?;
            if bar["name"] == name
                && bar["tid"] == queue
                && begin <= began + error
                && ended <= end + error
            {
                around = Some(at);
                break;
            }
        }
        let around = around
            .with_context(|| format!("no bar of the device within {command:?}, +-{error} us"))?;
        bars.remove(around);
        copies += u32::from(name == "COPY");
    }
    ensure!(copies >= 2, "{copies} copies among {commands:?}");
    Ok(())
}
