// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The end of a driver that has to wait for something which does not come about.

use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

use super::Session;

/// How long the driver shall wait.
const PATIENCE_MS: u32 = 1500;
/// What a bounded end may take under emulation, and a busy host.
const LIMIT: Duration = Duration::from_secs(30);
const DRIVER: &str = "/sys/bus/virtio/drivers/cdm";

/// Shortens the driver's patience: each of these checks leaves a device behind that nobody can
/// use.
pub fn shorten(session: &mut Session) -> Result<()> {
    session.text(&format!(
        "echo {PATIENCE_MS} > /sys/module/cdm/parameters/evacuate_ms"
    ))?;
    Ok(())
}

/// The line that unbinds the driver from the first device.
pub fn unbind(session: &mut Session) -> Result<String> {
    let name = session.text("readlink -f /sys/class/misc/cdm0/device")?;
    let name = name.trim().rsplit('/').next().unwrap_or_default();
    Ok(format!("echo {name} > {DRIVER}/unbind"))
}

/// Has `line` end the driver, which must lose its patience on the way, as `cause` says, and must
/// not take for ever. The node is gone then.
pub fn end_driver(session: &mut Session, line: &str, cause: &str) -> Result<()> {
    let start = Instant::now();
    session.text(line)?;
    let took = start.elapsed();
    ensure!(took < LIMIT, "'{line}' took {} s", took.as_secs());
    ensure!(
        took >= Duration::from_millis(PATIENCE_MS.into()),
        "'{line}' took only {took:?}: {cause} at all?"
    );
    ensure!(
        !session.exec("test -e /dev/cdm0")?.status.success(),
        "/dev/cdm0 is still there"
    );
    Ok(())
}

/// The module stays after an unbind that left the device running, because it is needed, and the
/// device cannot be bound again.
pub fn cannot_be_bound_again(session: &mut Session, unbind: &str) -> Result<()> {
    ensure!(
        !session.exec("rmmod cdm")?.status.success(),
        "the module went away under a device that is left running"
    );
    let bind = unbind.replace("/unbind", "/bind");
    ensure!(
        !session.exec(&bind)?.status.success(),
        "a device that is left running was bound again"
    );
    Ok(())
}

/// A module that is loaded anew does not get the device that was left running.
pub fn is_given_to_nobody(session: &mut Session) -> Result<()> {
    session.text("insmod /lib/modules/cdm.ko; sleep 1; ! test -e /dev/cdm0")?;
    Ok(())
}
