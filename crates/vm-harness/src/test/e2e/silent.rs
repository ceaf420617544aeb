// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The end of a driver whose device does not answer: its backend is stopped.

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{Session, patience};

/// Pages that `cdm-touch` has in the device.
const PAGES: u64 = 64 + 512;

/// Starts `cdm-touch`, which has memory in the device. A child of it loads a word of that when
/// /tmp/load exists, and it looks at all of it when /tmp/end does.
pub const TOUCH: &str = "rm -f /tmp/load /tmp/end; echo > /tmp/touched; \
    ((while [ ! -e /tmp/load ]; do sleep 0.1; done; echo; \
    while [ ! -e /tmp/end ]; do sleep 0.1; done) | \
    (cdm-touch; echo \"exit $?\") > /tmp/touched 2>&1) > /dev/null 2>&1 & \
    while ! grep -q -e ready -e exit /tmp/touched; do sleep 0.1; done; \
    ! grep exit /tmp/touched";

/// Sends a signal to all backends.
pub fn signal(session: &mut Session, signal: Signal) -> Result<()> {
    for backend in session.vm()?.backends() {
        backend.signal(signal);
    }
    Ok(())
}

/// Has `line` end the driver while the device does not answer; what the log says then.
///
/// The device answers again when this returns, whatever it returns.
fn end_driver(
    session: &mut Session,
    before: impl FnOnce(&mut Session) -> Result<()>,
    line: &str,
) -> Result<String> {
    signal(session, Signal::SIGSTOP)?;
    let ended = (|| {
        before(session)?;
        session.new_log()?;
        patience::end_driver(session, line, "was the device silent")
    })();
    signal(session, Signal::SIGCONT)?;
    ended?;
    let log = session.new_log()?;
    let found = crate::vm::breaches(&log);
    ensure!(found.is_empty(), "the guest's kernel reports:\n{log}");
    Ok(log)
}

/// A machine with memory of a process in its device; the line that unbinds the driver.
fn prepare(session: &mut Session) -> Result<String> {
    patience::shorten(session)?;
    session.text(TOUCH)?;
    patience::unbind(session)
}

/// What the process finds in its memory, which it must outlive.
fn touched(session: &mut Session) -> Result<String> {
    session
        .text(
            "touch /tmp/load /tmp/end; while ! grep -q exit /tmp/touched; do sleep 0.1; done; \
             cat /tmp/touched",
        )
        .context("the process with memory in the device")
}

/// The process finds its memory as it was.
pub fn all_is_unchanged(session: &mut Session) -> Result<()> {
    let found = touched(session)?;
    ensure!(
        found.contains("found it unchanged")
            && found.contains(&format!("{PAGES} unchanged, 0 lost")),
        "the process says: {found}"
    );
    Ok(())
}

fn says(log: &str, words: &str) -> Result<()> {
    let lines = log.lines().filter(|line| line.contains(words)).count();
    ensure!(lines == 1, "{lines} lines speak of '{words}':\n{log}");
    Ok(())
}

fn all_is_lost(found: &str) -> Result<()> {
    ensure!(
        found.contains("died of SIGBUS") && found.contains(&format!("0 unchanged, {PAGES} lost")),
        "the process says: {found}"
    );
    Ok(())
}

/// Memory that the CPU can reach comes home without the device.
pub fn addressable_memory_comes_home(session: &mut Session) -> Result<()> {
    let unbind = prepare(session)?;
    let log = end_driver(session, |_| Ok(()), &unbind)?;
    says(&log, "device does not answer")?;
    all_is_unchanged(session)?;
    patience::cannot_be_bound_again(session, &unbind)?;
    session.judge_log()?;
    session.discard();
    Ok(())
}

/// Private memory is lost, also for a process that waits for a page of it meanwhile; the page that
/// the device was to write to is never used again.
pub fn private_memory_is_lost(session: &mut Session) -> Result<()> {
    let unbind = prepare(session)?;
    let wait_for_a_page =
        |session: &mut Session| session.text("touch /tmp/load; sleep 1").map(drop);
    let log = end_driver(session, wait_for_a_page, &unbind)?;
    says(&log, &format!("{PAGES} pages of private memory are lost"))?;
    // Who waits for the device looks now and then whether to give up.
    let figures = session.text(
        "cd /sys/kernel/debug/cdm; for i in $(seq 50); do \
         grep -q '^0$' pages_forsaken || break; sleep 0.1; done; cat pages_lost pages_forsaken",
    )?;
    ensure!(
        figures == format!("{PAGES}\n1\n"),
        "debugfs says {figures:?}"
    );
    all_is_lost(&touched(session)?)?;
    patience::cannot_be_bound_again(session, &unbind)?;
    session.judge_log()?;
    session.discard();
    Ok(())
}

/// An unload takes the memory from the process that has it, which is still there to find out
/// when the module is not.
pub fn unload_loses_private_memory(session: &mut Session) -> Result<()> {
    prepare(session)?;
    let log = end_driver(session, |_| Ok(()), "rmmod cdm")?;
    says(&log, "pages of private memory are lost")?;
    says(&log, &format!("{PAGES} pages of private memory are lost"))?;
    says(&log, "device does not answer, so it cannot be reset")?;
    session.text("! test -e /sys/module/cdm")?;
    all_is_lost(&touched(session)?)?;
    patience::is_given_to_nobody(session)?;
    session.judge_log()?;
    session.discard();
    Ok(())
}

/// A kernel that cannot take the memory from the process says so, and its unload ends with the
/// process.
pub fn unload_waits_for_users_of_private_memory(session: &mut Session) -> Result<()> {
    prepare(session)?;
    let unload = "rmmod cdm > /dev/null 2>&1 & while ! dmesg | grep -q 'pages of private memory are lost'; do \
                  sleep 0.1; done; sleep 1";
    let log = end_driver(session, |_| Ok(()), unload)?;
    says(&log, &format!("{PAGES} pages of private memory are lost"))?;
    says(&log, "waiting for whoever holds them")?;
    session.text("test -e /sys/module/cdm")?;
    all_is_lost(&touched(session)?)?;
    session.text("while test -e /sys/module/cdm; do sleep 0.1; done")?;
    patience::is_given_to_nobody(session)?;
    session.judge_log()?;
    session.discard();
    Ok(())
}
