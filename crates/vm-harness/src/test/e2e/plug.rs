// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Devices that are unplugged and plugged while the machine runs, through QMP: the driver lets
//! its device go before the slot is ejected, or the slot is not ejected.

use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use nix::sys::signal::Signal;

use super::{Session, faults, held, patience, poison, silent};

/// What an unplug may take that nothing stands in the way of, under emulation, and a busy host.
const LIMIT: Duration = Duration::from_secs(60);
/// How long an unplug must wait for what does stand in its way: longer than the driver's
/// shortened patience, and then some.
const PENDING: Duration = Duration::from_secs(8);

/// Starts `cdm-busy`, whose commands and moves end with the device.
const BUSY: &str = "echo > /tmp/busy; \
    ((cdm-busy; echo \"exit $?\") > /tmp/busy 2>&1) > /dev/null 2>&1 & \
    while ! grep -q -e busy -e exit /tmp/busy; do sleep 0.1; done; \
    sleep 1; ! grep exit /tmp/busy || { cat /tmp/busy >&2; exit 1; }";

/// The first device is gone for the guest, and its kernel has nothing to say about that.
fn is_gone(session: &mut Session) -> Result<()> {
    session.text("! test -e /dev/cdm0 && ! ls /sys/class/misc | grep -q cdm")?;
    session.judge_log()
}

fn let_go(session: &mut Session, index: u8) -> Result<()> {
    ensure!(
        session.vm()?.has_let_go(index, LIMIT)?,
        "the guest does not let the device go in {} s",
        LIMIT.as_secs()
    );
    Ok(())
}

/// Plugs another device, which must work.
fn plug(session: &mut Session) -> Result<()> {
    session.plug(0)?;
    session
        .text("for i in $(seq 300); do test -e /dev/cdm0 && break; sleep 0.1; done; ls /dev/cdm0")
        .context("a device that was plugged")?;
    faults::all_is_well(session)
}

/// Processes compute and move pages: each gets its memory back as it was, and ENODEV. What is
/// plugged instead is a device like the first, as often as that is done.
pub fn under_load(session: &mut Session) -> Result<()> {
    for _ in 0..2 {
        session.text(BUSY)?;
        session.vm()?.ask_to_unplug(0)?;
        let_go(session, 0)?;
        let said = session
            .text("while ! grep -q exit /tmp/busy; do sleep 0.1; done; cat /tmp/busy")
            .context("the process at work")?;
        let gone = said.matches("rounds, then ENODEV").count();
        ensure!(
            gone == 2 && said.contains("unchanged") && said.contains("exit 0"),
            "the process says: {said}"
        );
        ensure!(!said.contains(": 0 rounds"), "nobody was at work: {said}");
        is_gone(session)?;
        plug(session)?;
    }
    Ok(())
}

/// An unplug that something stands in the way of: it waits, and the machine lives.
fn is_pending(session: &mut Session, cause: &str) -> Result<()> {
    session.new_log()?;
    session.vm()?.ask_to_unplug(0)?;
    ensure!(
        !session.vm()?.has_let_go(0, PENDING)?,
        "the device was let go: {cause}"
    );
    session.text("true")?;
    let log = session.new_log()?;
    ensure!(
        log.lines()
            .any(|line| line.contains("unplug waits") && line.contains(cause)),
        "the driver does not say what it waits for:\n{log}"
    );
    Ok(())
}

/// Pages that somebody holds cannot leave: the unplug waits for him, and he has his bytes.
pub fn waits_for_held_pages(session: &mut Session) -> Result<()> {
    patience::shorten(session)?;
    session.text(held::HOLD)?;
    is_pending(session, "pages are still in use")?;
    held::let_go(session)?;
    let_go(session, 0)?;
    is_gone(session)?;
    plug(session)
}

/// Memory that has failed is no reason to keep the device: who has it takes along what the CPU
/// still finds there.
pub fn takes_failed_memory_along(session: &mut Session) -> Result<()> {
    with_failed_memory(session, ("have failed", "load: what was there"))
}

/// Where the kernel has taken the page from its user, it stays lost without the device.
pub fn lost_page_stays_lost(session: &mut Session) -> Result<()> {
    let found = ("Memory failure", "load: BUS_MCEERR_AR at its address");
    with_failed_memory(session, found)
}

fn with_failed_memory(session: &mut Session, found: (&str, &str)) -> Result<()> {
    poison::failed_page_at_an_unplug(session, found, |session| {
        session.vm()?.ask_to_unplug(0)?;
        let_go(session, 0)?;
        is_gone(session)
    })?;
    plug(session)
}

/// A device that does not answer cannot be reset: the unplug waits until it does.
pub fn waits_for_a_silent_device(session: &mut Session) -> Result<()> {
    patience::shorten(session)?;
    session.text(silent::TOUCH)?;
    silent::signal(session, Signal::SIGSTOP)?;
    let pending = is_pending(session, "does not answer");
    silent::signal(session, Signal::SIGCONT)?;
    pending?;
    let_go(session, 0)?;
    silent::all_is_unchanged(session)?;
    is_gone(session)?;
    plug(session)
}
