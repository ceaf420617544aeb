// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Parameters of the driver that it must refuse, each with one line.

use anyhow::{Result, bail, ensure};

use super::Session;

const FILE: &str = "/lib/modules/cdm.ko";

/// Loads the driver with parameters that it must refuse; what it said. Then loads it as it was.
fn refused(session: &mut Session, parameters: &str) -> Result<Vec<String>> {
    session.text("rmmod cdm")?;
    session.new_log()?;
    let output = session.exec(&format!("insmod {FILE} {parameters}"))?;
    let bound = session.exec("test -e /dev/cdm0")?.status.success();
    let log = session.new_log()?;
    // The module may load and refuse its device, or not load at all.
    session.exec("test -e /sys/module/cdm && rmmod cdm")?;
    session.text(&format!("insmod {FILE} && cdmctl run checksum --size 1M"))?;
    if bound {
        bail!(
            "the device was bound with {parameters} ({:?}):\n{log}",
            output.status
        );
    }
    // The driver core adds a line of its own to whatever a driver says about a probe.
    let by_driver = |line: &&str| line.contains("cdm") && !line.contains("probe with driver");
    Ok(log.lines().filter(by_driver).map(str::to_owned).collect())
}

fn one_line(lines: &[String], words: &[&str]) -> Result<()> {
    let [line] = lines else {
        bail!("the driver says not one line but {lines:#?}")
    };
    for word in words {
        ensure!(line.contains(word), "'{line}' does not speak of '{word}'");
    }
    Ok(())
}

/// Struct pages for the whole device in a guest that has no room for them.
pub fn no_room_without_altmap(session: &mut Session) -> Result<()> {
    let lines = refused(session, "altmap=0")?;
    one_line(&lines, &["altmap", "MiB"])
}

/// `memory_type=public` on a kernel without MEMORY_DEVICE_PUBLIC.
pub fn public_is_refused(session: &mut Session) -> Result<()> {
    let devices = usize::from(session.spec().devices);
    let lines = refused(session, "memory_type=public")?;
    ensure!(
        (1..=devices).contains(&lines.len()),
        "not one line for a device at most, but {lines:#?}"
    );
    lines
        .iter()
        .try_for_each(|line| one_line(std::slice::from_ref(line), &["public"]))
}

/// A list that has a type for two devices of three: the third is not guessed.
pub fn short_list_is_refused(session: &mut Session) -> Result<()> {
    session.text("rmmod cdm")?;
    session.new_log()?;
    session.text(&format!("insmod {FILE} memory_type=private,public"))?;
    let types = session.text(
        "cd /sys/class/misc; for name in cdm*; do echo $name $(cat $name/memory_type); done",
    )?;
    let log = session.new_log()?;
    session.text(&format!(
        "rmmod cdm && insmod {FILE} && cdmctl run checksum --size 1M --device 2"
    ))?;
    ensure!(types == "cdm0 private\ncdm1 public\n", "{types}");
    let about_types = |line: &&str| line.contains("memory_type");
    let lines: Vec<String> = log.lines().filter(about_types).map(str::to_owned).collect();
    one_line(&lines, &["cdm2", "one for each"])
}

/// A memory type that does not exist.
pub fn unknown_type_is_refused(session: &mut Session) -> Result<()> {
    let lines = refused(session, "memory_type=purple")?;
    let own: Vec<String> = lines
        .into_iter()
        .filter(|line| line.contains("purple"))
        .collect();
    ensure!(
        !own.is_empty(),
        "the driver does not name what it does not know"
    );
    ensure!(
        own.iter().any(|line| line.contains("public")),
        "{own:?} does not say what it knows"
    );
    Ok(())
}
