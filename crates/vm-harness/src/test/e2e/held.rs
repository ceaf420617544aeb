// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The end of a driver while somebody holds pages of its device for good.

use anyhow::{Context as _, Result, ensure};
use std::time::{Duration, Instant};

use super::Session;

/// How long the driver shall wait for pages to leave.
const PATIENCE_MS: u32 = 1500;
/// What a bounded end may take under emulation, and a busy host.
const LIMIT: Duration = Duration::from_secs(30);

/// Starts `cdm-hold`, which lends pages of the device to a pipe until /tmp/end exists.
const HOLD: &str = "rm -f /tmp/end /tmp/held; \
    (while [ ! -e /tmp/end ]; do sleep 0.1; done | \
    (cdm-hold; echo \"exit $?\") > /tmp/held 2>&1) > /dev/null 2>&1 & \
    while ! grep -q -e held -e exit /tmp/held; do sleep 0.1; done; \
    ! grep exit /tmp/held";

/// Has `line` end the driver while the pages are held; then has the holder look at them.
fn end_driver(session: &mut Session, line: &str) -> Result<()> {
    session.text(&format!(
        "echo {PATIENCE_MS} > /sys/module/cdm/parameters/evacuate_ms"
    ))?;
    session.text(HOLD)?;
    session.new_log()?;
    let start = Instant::now();
    session.text(line)?;
    let took = start.elapsed();
    ensure!(took < LIMIT, "'{line}' took {} s", took.as_secs());
    ensure!(
        took >= Duration::from_millis(PATIENCE_MS.into()),
        "'{line}' took only {took:?}: were the pages held at all?"
    );
    let log = session.new_log()?;
    ensure!(
        log.lines()
            .any(|line| line.contains("16 pages did not leave")),
        "the driver does not say what it left behind:\n{log}"
    );
    ensure!(
        !session.exec("test -e /dev/cdm0")?.status.success(),
        "/dev/cdm0 is still there"
    );
    Ok(())
}

fn holder_has_its_bytes(session: &mut Session) -> Result<()> {
    let held = session
        .text("touch /tmp/end; while ! grep -q exit /tmp/held; do sleep 0.1; done; cat /tmp/held")
        .context("the holder of the pages")?;
    ensure!(
        held.contains("unchanged") && held.contains("exit 0"),
        "the holder says: {held}"
    );
    // The machine has a device that nobody can use any more.
    session.judge_log()?;
    session.discard();
    Ok(())
}

/// `rmmod` ends, the module is gone, and a new one does not get the device.
pub fn unload_ends(session: &mut Session) -> Result<()> {
    end_driver(session, "rmmod cdm && ! test -e /sys/module/cdm")?;
    session.text("insmod /lib/modules/cdm.ko; sleep 1; ! test -e /dev/cdm0")?;
    holder_has_its_bytes(session)
}

/// Unbinding ends, the module stays because it is needed, and the device cannot be bound again.
pub fn unbind_ends(session: &mut Session) -> Result<()> {
    const DRIVER: &str = "/sys/bus/virtio/drivers/cdm";
    let name = session.text("readlink -f /sys/class/misc/cdm0/device")?;
    let name = name.trim().rsplit('/').next().unwrap_or_default();
    end_driver(session, &format!("echo {name} > {DRIVER}/unbind"))?;
    ensure!(
        !session.exec("rmmod cdm")?.status.success(),
        "the module went away under a device that is left running"
    );
    ensure!(
        !session
            .exec(&format!("echo {name} > {DRIVER}/bind"))?
            .status
            .success(),
        "a device that is left running was bound again"
    );
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
    session.text(&format!(
        "echo {PATIENCE_MS} > /sys/module/cdm/parameters/evacuate_ms"
    ))?;
    session.text(STUCK)?;
    let name = session.text("readlink -f /sys/class/misc/cdm0/device")?;
    let name = name.trim().rsplit('/').next().unwrap_or_default();
    let start = Instant::now();
    session.text(&format!(
        "echo {name} > /sys/bus/virtio/drivers/cdm/unbind && ! test -e /dev/cdm0"
    ))?;
    let took = start.elapsed();
    ensure!(took < LIMIT, "the unbind took {} s", took.as_secs());
    ensure!(
        took >= Duration::from_millis(PATIENCE_MS.into()),
        "the unbind took only {took:?}: was the ioctl under way at all?"
    );
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
