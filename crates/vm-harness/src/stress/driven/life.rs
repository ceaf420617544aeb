// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Devices that are unplugged and plugged, machines that reboot, and guest after guest on one
//! device, while processes in the guest use what there is.

use std::time::Duration;

use anyhow::{Result, ensure};

use super::Play;
use crate::test::Session;

/// What an unplug may take that nothing stands in the way of, under emulation, and a busy host.
const LIMIT: Duration = Duration::from_secs(300);
/// What the processes do between two events.
const COMMANDS: u64 = 15;

/// A line that waits until nobody has a node open whose device is gone: as long as somebody has,
/// its number is not given to the next one.
pub const DEAD_NODES_ARE_CLOSED: &str =
    "while ls -l /proc/[0-9]*/fd 2> /dev/null | grep -q '/dev/cdm.* (deleted)'; do sleep 0.1; done";

/// Waits until a device has its node.
pub fn await_node(session: &mut Session<'_>, number: u8) -> Result<()> {
    session.text(&format!(
        "for i in $(seq 60); do test -e /dev/cdm{number} && break; sleep 1; done; \
         ls /dev/cdm{number}"
    ))?;
    Ok(())
}

/// Unplugs one device or the other, and plugs another one there.
pub fn unplug_and_plug(play: &mut Play<'_, '_>) -> Result<()> {
    let mut playing = play.start()?;
    loop {
        playing.await_more("commands_done", COMMANDS)?;
        if !play.round() {
            break;
        }
        let devices = play.session.spec().devices;
        let index = play.random.u8(..devices);
        play.session.vm()?.ask_to_unplug(index)?;
        ensure!(
            play.session.vm()?.has_let_go(index, LIMIT)?,
            "the guest does not let device {index} go in {LIMIT:?}"
        );
        play.add("unplugged", 1);
        // Some of the time only the other one is there.
        if play.random.bool() && devices > 1 {
            playing.await_more("commands_done", COMMANDS)?;
        }
        play.session.text(DEAD_NODES_ARE_CLOSED)?;
        play.session.plug(index)?;
        await_node(play.session, index)?;
        play.add("plugged", 1);
        play.session.judge_log()?;
    }
    play.end(playing)
}

/// Reboots the guest under its processes; the next one finds devices that serve.
pub fn reboot(play: &mut Play<'_, '_>) -> Result<()> {
    let backends = play.backends()?;
    loop {
        let mut playing = play.start()?;
        playing.await_more("commands_done", COMMANDS)?;
        if !play.round() {
            play.end(playing)?;
            ensure!(play.backends()? == backends, "the backends are others");
            return Ok(());
        }
        play.session.judge_log()?;
        play.session.vm()?.reboot()?;
        playing.expect_lost()?;
        play.add("reboots", 1);
    }
}

/// Turns the guest off and boots the next one on the same backends.
pub fn guest_after_guest(play: &mut Play<'_, '_>) -> Result<()> {
    let backends = play.backends()?;
    loop {
        let mut playing = play.start()?;
        playing.await_more("commands_done", 4 * COMMANDS)?;
        play.end(playing)?;
        play.session.judge_log()?;
        if !play.round() {
            return Ok(());
        }
        play.session.next_guest(|_| Ok(()))?;
        ensure!(play.backends()? == backends, "the backends are others");
        play.add("guests", 1);
    }
}
