// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Migrations whose pages the device copies, and a device that fails at that: whatever it does,
//! memory has the bytes that it had, and who moves it gets on.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{Session, faults, silent, stuck};

const PARAMETER: &str = "/sys/module/cdm/parameters/copy";
/// A migration there and back that looks at every byte.
const TRIP: &str = "cdm-guest-tests --exact migration::contents_are_equal_after_a_round_trip";
/// Tests that move anonymous memory, whole and in parts.
const GROUPS: [&str; 2] = [
    "cdm-guest-tests --group migration --group fork",
    // The last one loads the driver anew, with the parameters that it had.
    "cdm-guest-tests --group huge",
];
/// Every process of `cdm-touch` by its name, of which there is one.
const MOVE: &str = "cdmctl migrate --pid $(pidof cdm-touch) --all --to";

/// Runs `check` while the device copies what it may.
fn by_engine(session: &mut Session, check: impl FnOnce(&mut Session) -> Result<()>) -> Result<()> {
    let before = session.text(&format!("cat {PARAMETER}; echo engine > {PARAMETER}"))?;
    let checked = check(session);
    // A session that a check gave up is over.
    let restored = session.text(&format!("echo {} > {PARAMETER}", before.trim()));
    checked.and(restored.map(drop))
}

/// A figure of the driver.
fn figure(session: &mut Session, name: &str) -> Result<u64> {
    let text = session.text(&format!(
        "cd /sys/class/misc/cdm0; cat {name} 2> /dev/null || cat /sys/kernel/debug/cdm/cdm0/{name}"
    ))?;
    Ok(text.trim().parse()?)
}

/// What holds of migrations holds when the device copies.
pub fn migrations_are_the_same(session: &mut Session) -> Result<()> {
    by_engine(session, |session| {
        let before = figure(session, "bytes_copied_by_engine")?;
        let [single, huge] = GROUPS;
        session.text(single)?;
        let bytes = figure(session, "bytes_copied_by_engine")? - before;
        ensure!(bytes > 1 << 20, "the device copied only {bytes} bytes");
        session.text(huge)?;
        let copier = session.text(&format!("cat {PARAMETER}"))?;
        ensure!(copier == "engine\n", "copy is {copier}");
        Ok(())
    })
}

/// Copies that the device refuses, spoils, or answers with nonsense or late, are made by the CPU.
pub fn faulty_copies_are_made_by_the_cpu(session: &mut Session) -> Result<()> {
    by_engine(session, |session| {
        for spec in [
            "fail,opcode=COPY,count=0",
            // POISONED
            "fail,opcode=COPY,count=0,status=28",
            "truncate,opcode=COPY,count=0,bytes=0",
            "truncate,opcode=COPY,count=0,bytes=23",
            "wrong-length,opcode=COPY,count=0,bytes=16",
            "corrupt,opcode=COPY,count=0,offset=0,seed=1",
            "corrupt,opcode=COPY,count=0,offset=17,seed=1",
            "corrupt,opcode=COPY,count=0,seed=3",
        ] {
            let before = figure(session, "engine_copies_failed")?;
            faults::set(session, spec)?;
            session.text(TRIP).with_context(|| spec.to_owned())?;
            faults::clear(session)?;
            ensure!(
                figure(session, "engine_copies_failed")? > before,
                "{spec}: no copy failed"
            );
            faults::all_is_well(session).with_context(|| format!("after {spec}"))?;
        }
        faults::set(session, "delay,opcode=COPY,count=0,ms=300")?;
        session.text(TRIP).context("delay")?;
        faults::clear(session)
    })
}

/// A copy without an answer ends with a RESET, after which the CPU makes it; one that is answered
/// twice costs the queue at most.
pub fn lost_copies_are_made_by_the_cpu(session: &mut Session) -> Result<()> {
    by_engine(session, |session| {
        stuck::impatiently(session, |session| {
            for spec in ["drop,opcode=COPY", "hang,opcode=COPY"] {
                let before = stuck::timeouts(session)?;
                faults::set(session, spec)?;
                session.text(TRIP).with_context(|| spec.to_owned())?;
                faults::clear(session)?;
                ensure!(stuck::timeouts(session)? > before, "{spec}: no RESET");
                bind_anew(session)?;
            }
            faults::set(session, "duplicate,opcode=COPY")?;
            session.text(TRIP).context("duplicate")?;
            faults::clear(session)?;
            bind_anew(session)
        })
    })
}

/// Until then a queue that has lost a command, or got an answer twice, gets no more copies.
fn bind_anew(session: &mut Session) -> Result<()> {
    for line in faults::rebinding(session)? {
        session.text(&line)?;
    }
    faults::all_is_well(session)
}

/// A device that stands still while it is to copy is given up, and when it goes on, it writes to
/// nobody's memory.
fn late_device(session: &mut Session, to: &str, lost: &str) -> Result<()> {
    session.text(silent::TOUCH)?;
    if to == "device" {
        session.text(&format!("{MOVE} system > /dev/null; true"))?;
    }
    stuck::set_command_ms(session, stuck::COMMAND_MS)?;
    session.text(&format!("echo engine > {PARAMETER}"))?;
    let before = figure(session, lost)?;
    silent::signal(session, Signal::SIGSTOP)?;
    let moved = session.text(&format!("{MOVE} {to} || true"));
    silent::signal(session, Signal::SIGCONT)?;
    let said = moved?;
    let pages = figure(session, lost)? - before;
    ensure!(pages > 0, "{lost} stays {before}: {said}");
    // What was freed meanwhile is used by others when the device writes.
    session.text(
        "cdm-guest-tests --filter migration::contents_are_equal > /dev/null; sleep 1; cdmctl info",
    )?;
    silent::all_is_unchanged(session)?;
    session.judge_log()?;
    session.discard();
    Ok(())
}

/// On the way in, to pages of its own.
pub fn late_copies_to_the_device_harm_nobody(session: &mut Session) -> Result<()> {
    late_device(session, "device", "pages_poisoned")
}

/// On the way out, to pages of the system.
pub fn late_copies_to_the_system_harm_nobody(session: &mut Session) -> Result<()> {
    late_device(session, "system", "pages_forsaken")
}
