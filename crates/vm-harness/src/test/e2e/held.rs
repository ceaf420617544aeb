// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The end of a driver while somebody holds pages of its device for good.

use anyhow::{Context as _, Result, ensure};

use super::{Session, patience};

/// Starts `cdm-hold`, which lends pages of the device to a pipe until /tmp/end exists.
pub const HOLD: &str = "rm -f /tmp/end /tmp/held; \
    (while [ ! -e /tmp/end ]; do sleep 0.1; done | \
    (cdm-hold; echo \"exit $?\") > /tmp/held 2>&1) > /dev/null 2>&1 & \
    while ! grep -q -e held -e exit /tmp/held; do sleep 0.1; done; \
    ! grep exit /tmp/held";

/// Has `line` end the driver while the pages are held.
fn end_driver(session: &mut Session, line: &str) -> Result<()> {
    patience::shorten(session)?;
    session.text(HOLD)?;
    session.new_log()?;
    patience::end_driver(session, line, "were the pages held")?;
    let log = session.new_log()?;
    ensure!(
        log.lines()
            .any(|line| line.contains("16 pages did not leave")),
        "the driver does not say what it left behind:\n{log}"
    );
    Ok(())
}

/// Has the holder let the pages go, which must have the bytes that they had.
pub fn let_go(session: &mut Session) -> Result<()> {
    let held = session
        .text("touch /tmp/end; while ! grep -q exit /tmp/held; do sleep 0.1; done; cat /tmp/held")
        .context("the holder of the pages")?;
    ensure!(
        held.contains("unchanged") && held.contains("exit 0"),
        "the holder says: {held}"
    );
    Ok(())
}

fn holder_has_its_bytes(session: &mut Session) -> Result<()> {
    let_go(session)?;
    // The machine has a device that nobody can use any more.
    session.judge_log()?;
    session.discard();
    Ok(())
}

/// `rmmod` ends, the module is gone, and a new one does not get the device.
pub fn unload_ends(session: &mut Session) -> Result<()> {
    end_driver(session, "rmmod cdm && ! test -e /sys/module/cdm")?;
    patience::is_given_to_nobody(session)?;
    holder_has_its_bytes(session)
}

/// Unbinding ends, the module stays because it is needed, and the device cannot be bound again.
pub fn unbind_ends(session: &mut Session) -> Result<()> {
    let unbind = patience::unbind(session)?;
    end_driver(session, &unbind)?;
    patience::cannot_be_bound_again(session, &unbind)?;
    holder_has_its_bytes(session)
}

/// Starts `cdm-stuck`, whose ioctl ends when /tmp/end exists, because it waits for a page fault
/// that is not served before.
const STUCK: &str = "rm -f /tmp/end; echo > /tmp/stuck; \
    (while [ ! -e /tmp/end ]; do sleep 0.1; done | \
    (cdm-stuck; echo \"exit $?\") > /tmp/stuck 2>&1) > /dev/null 2>&1 & \
    while ! grep -q -e stuck -e exit /tmp/stuck; do sleep 0.1; done; \
    sleep 1; ! grep exit /tmp/stuck";

/// Unbinding does not wait for an ioctl that user space keeps from its end; the ioctl finds the
/// device gone when it goes on.
pub fn unbind_ends_around_an_ioctl(session: &mut Session) -> Result<()> {
    patience::shorten(session)?;
    session.text(STUCK)?;
    let unbind = patience::unbind(session)?;
    patience::end_driver(session, &unbind, "was the ioctl under way")?;
    session.text("! grep exit /tmp/stuck")?;
    let said = session
        .text("touch /tmp/end; while ! grep -q exit /tmp/stuck; do sleep 0.1; done; cat /tmp/stuck")
        .context("the process in the ioctl")?;
    ensure!(
        said.contains("ENODEV") && said.contains("exit 0"),
        "the process says: {said}"
    );
    session.judge_log()?;
    session.discard();
    Ok(())
}
