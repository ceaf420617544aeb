// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device that stops answering, and a driver that does not wait for it for ever.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::faults::{self, LIMIT, RUN};
use super::{Session, silent};

/// How long the driver shall wait for an answer.
pub const COMMAND_MS: u64 = 2000;
const PARAMETER: &str = "/sys/module/cdm/parameters/command_ms";

/// Runs `check` while the driver is less patient than usual.
pub fn impatiently(
    session: &mut Session,
    check: impl FnOnce(&mut Session) -> Result<()>,
) -> Result<()> {
    let usual = command_ms(session)?;
    set_command_ms(session, COMMAND_MS)?;
    let checked = check(session);
    set_command_ms(session, usual)?;
    checked
}

/// How patient the driver is.
pub fn command_ms(session: &mut Session) -> Result<u64> {
    Ok(session.text(&format!("cat {PARAMETER}"))?.trim().parse()?)
}

/// Makes the driver wait so long.
pub fn set_command_ms(session: &mut Session, ms: u64) -> Result<()> {
    session.text(&format!("echo {ms} > {PARAMETER}")).map(drop)
}

/// RESETs of the first device because of a command without an answer.
pub fn timeouts(session: &mut Session) -> Result<u64> {
    timeouts_of(session, 0)
}

/// The same of any device.
pub fn timeouts_of(session: &mut Session, device: u8) -> Result<u64> {
    let text = session.text(&format!("cat /sys/kernel/debug/cdm/cdm{device}/timeouts"))?;
    Ok(text.trim().parse()?)
}

/// A command ends with an error when the limit is over, and not before. Memory in the device is
/// as it was, and the device works on.
fn command_ends_at_the_limit(session: &mut Session, fault: &str) -> Result<()> {
    session.text(silent::TOUCH)?;
    let before = timeouts(session)?;
    session.new_log()?;
    faults::set(session, fault)?;
    let start = Instant::now();
    let said = faults::fails(session, RUN)?;
    ensure!(
        start.elapsed() >= Duration::from_millis(COMMAND_MS),
        "{fault}: the command took only {:?}: {said}",
        start.elapsed()
    );
    faults::clear(session)?;
    let log = session.new_log()?;
    ensure!(
        log.contains("no answer to a command"),
        "the driver does not say that it reset the device:\n{log}"
    );
    ensure!(
        timeouts(session)? > before,
        "the RESET is not counted: {said}"
    );
    faults::all_is_well(session)?;
    silent::all_is_unchanged(session)
}

/// A queue that hangs is brought back by the driver, without anybody's help.
pub fn hung_queue_is_reset(session: &mut Session) -> Result<()> {
    impatiently(session, |session| {
        command_ends_at_the_limit(session, "hang,count=0")
    })
}

/// So is a device that loses a completion; what the lost command pinned can be moved again, or
/// the driver could not be unbound from the device and bound again.
pub fn lost_completion_ends_at_the_limit(session: &mut Session) -> Result<()> {
    impatiently(session, |session| {
        command_ends_at_the_limit(session, "drop,count=0")
    })?;
    for line in faults::rebinding(session)? {
        session.text(&line)?;
    }
    faults::all_is_well(session)
}

/// Nor does it matter how many commands there were: a batch ends with an error at the limit, what
/// had not begun never does, and the next one is carried out.
pub fn batch_ends_at_the_limit(session: &mut Session) -> Result<()> {
    session.text("for i in $(seq 100); do echo FILL to=0+4096 width=8; done > /tmp/batch")?;
    let runs = ["", " --bind"]
        .map(|bind| format!("cdmctl run batch --commands /tmp/batch --size 64K{bind}"));
    impatiently(session, |session| {
        session.text(silent::TOUCH)?;
        for run in &runs {
            for fault in ["hang,count=0", "drop,count=0"] {
                session.text(run)?;
                let before = timeouts(session)?;
                faults::set(session, fault)?;
                let said = faults::fails(session, run)?;
                ensure!(
                    said.contains("Input/output error") && said.contains("0 of 100"),
                    "{fault}: it says: {said}"
                );
                faults::clear(session)?;
                ensure!(timeouts(session)? > before, "{fault}: nothing was reset");
            }
            for line in faults::rebinding(session)? {
                session.text(&line)?;
            }
        }
        faults::all_is_well(session)?;
        silent::all_is_unchanged(session)
    })
}

/// A process whose binding the device does not answer gets an error when the limit is over, and
/// the next ones are bound.
pub fn lost_answer_about_an_address_space_ends_at_the_limit(session: &mut Session) -> Result<()> {
    const BOUND_RUN: &str = "cdmctl run checksum --size 64K --bind";
    session.text(BOUND_RUN)?;
    impatiently(session, |session| {
        session.text(silent::TOUCH)?;
        let before = timeouts(session)?;
        faults::set(session, "drop,queue=0")?;
        let said = faults::fails(session, BOUND_RUN)?;
        ensure!(said.contains("Input/output error"), "it says: {said}");
        ensure!(
            timeouts(session)? == before + 1,
            "not one RESET because of it"
        );
        faults::clear(session)?;
        for _ in 0..3 {
            session.text(BOUND_RUN)?;
        }
        faults::all_is_well(session)?;
        silent::all_is_unchanged(session)
    })
}

/// A command whose caller was killed has no limit: the next RESET gives back what it pinned.
pub fn lost_command_of_a_killed_process_keeps_nothing(session: &mut Session) -> Result<()> {
    faults::set(session, "drop,count=0")?;
    session.exec(&format!("timeout -s KILL 2 {RUN}"))?;
    faults::clear(session)?;
    session.text("cdmctl reset")?;
    for line in faults::rebinding(session)? {
        session.text(&line)?;
    }
    faults::all_is_well(session)
}

/// A page fault that needs the device waits for the limit, too, and is served after the RESET.
pub fn fault_on_private_memory_outlives_a_hung_queue(session: &mut Session) -> Result<()> {
    impatiently(session, |session| {
        session.text(silent::TOUCH)?;
        faults::set(session, "hang")?;
        session.text("touch /tmp/load")?;
        faults::wait_for_stall(session)?;
        let start = Instant::now();
        session.text("while ! grep -q child /tmp/touched; do sleep 0.1; done")?;
        ensure!(start.elapsed() < LIMIT, "it took {:?}", start.elapsed());
        silent::all_is_unchanged(session)?;
        ensure!(timeouts(session)? > 0, "nothing was reset");
        faults::clear(session)?;
        faults::all_is_well(session)
    })
}

/// A device that does not even answer a RESET is not asked any more. Who waits for it gets an
/// error, RESET itself included, and memory that the CPU can reach is as it was.
pub fn hung_control_queue_is_the_end_of_the_device(session: &mut Session) -> Result<()> {
    impatiently(session, |session| {
        session.text(silent::TOUCH)?;
        session.new_log()?;
        faults::set(session, "hang,queue=0")?;
        faults::set(session, "hang,count=0")?;
        faults::fails(session, RUN)?;
        let log = session.new_log()?;
        ensure!(
            log.contains("not even a RESET"),
            "the driver does not say that it gave the device up:\n{log}"
        );
        for line in [RUN, "cdmctl reset"] {
            let said = faults::fails(session, line)?;
            ensure!(said.contains("No such device"), "'{line}' says: {said}");
        }
        silent::all_is_unchanged(session)
    })?;
    // The machine has a device that nobody can use any more.
    session.judge_log()?;
    session.discard();
    Ok(())
}
