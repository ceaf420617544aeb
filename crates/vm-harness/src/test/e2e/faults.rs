// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device that fails on request, as processes in the guest meet it: each fault ends in
//! success or a defined error, and what comes after it works (docs/reference/control-socket.md).

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};
use cdm_control_protocol::{Ask, Fault};

use super::Session;
use crate::vm::Control;

/// A command that a device with nothing wrong carries out at once.
pub const RUN: &str = "cdmctl run checksum --size 64K";
/// What one line may take under emulation, on a busy host.
pub const LIMIT: Duration = Duration::from_secs(30);
/// Time after which somebody in the guest gives a command up.
const PATIENCE_S: u64 = 2;
const DRIVER: &str = "/sys/bus/virtio/drivers/cdm";

fn control(session: &mut Session) -> Result<Control> {
    Ok(session.vm()?.backends()[0].control().clone())
}

/// Sets a fault.
pub fn set(session: &mut Session, spec: &str) -> Result<()> {
    let fault: Fault = spec.parse()?;
    control(session)?.ask(Ask::SetFault(fault))?;
    Ok(())
}

/// Takes all faults away, which must have hit something.
pub fn clear(session: &mut Session) -> Result<()> {
    let control = control(session)?;
    let faults = control.ask(Ask::Faults)?.faults.unwrap_or_default();
    control.ask(Ask::ClearFaults)?;
    for fault in faults {
        ensure!(fault.hits > 0, "'{}' has hit nothing", fault.fault);
    }
    Ok(())
}

/// Runs a line that ends with a failure which it explains, within the limit.
pub fn fails(session: &mut Session, line: &str) -> Result<String> {
    let start = Instant::now();
    let output = session.exec(line)?;
    let text = String::from_utf8_lossy(&output.stderr).into_owned()
        + &String::from_utf8_lossy(&output.stdout);
    ensure!(!output.status.success(), "'{line}' succeeded: {text}");
    ensure!(
        start.elapsed() < LIMIT,
        "'{line}' took {:?}",
        start.elapsed()
    );
    ensure!(
        !text.trim().is_empty(),
        "'{line}' does not say why it failed"
    );
    Ok(text)
}

/// The device and its driver work as if nothing had been.
pub fn all_is_well(session: &mut Session) -> Result<()> {
    // On each queue: commands go to that of the CPU that they are made on.
    for _ in 0..4 {
        session.text(RUN)?;
    }
    session
        .text("cdm-guest-tests --exact migration::contents_are_equal_after_a_round_trip")
        .map(drop)
}

/// Under a fault that hits every command, commands end with an error.
fn every_command_fails(session: &mut Session, spec: &str) -> Result<String> {
    set(session, spec)?;
    let said = fails(session, RUN).with_context(|| spec.to_owned())?;
    clear(session)?;
    all_is_well(session).with_context(|| format!("after {spec}"))?;
    Ok(said)
}

/// A command that the device refuses hands its status to who asked.
pub fn refused_commands_say_why(session: &mut Session) -> Result<()> {
    let said = every_command_fails(session, "fail,count=0")?;
    ensure!(said.contains("HOST_ERROR"), "cdmctl says: {said}");
    Ok(())
}

/// One command of many is refused, and no other notices.
pub fn nth_command_is_refused_and_no_other(session: &mut Session) -> Result<()> {
    // Commands on addresses of a process have one queue for all CPUs.
    let line = format!("{RUN} --bind");
    set(session, "fail,opcode=CHECKSUM,nth=3")?;
    for number in 1..=5 {
        if number == 3 {
            let said = fails(session, &line)?;
            ensure!(said.contains("HOST_ERROR"), "cdmctl says: {said}");
        } else {
            session
                .text(&line)
                .with_context(|| format!("run {number}"))?;
        }
    }
    clear(session)?;
    all_is_well(session)
}

/// Completions that are cut short or tell too small a length are errors.
pub fn short_completions_are_errors(session: &mut Session) -> Result<()> {
    for spec in [
        "truncate,count=0,bytes=0",
        "truncate,count=0,bytes=23",
        "truncate,count=0,seed=5",
        "wrong-length,count=0,bytes=0",
        "wrong-length,count=0,bytes=16",
    ] {
        every_command_fails(session, spec)?;
    }
    Ok(())
}

/// A used length beyond the buffer is no reason to read behind it.
pub fn long_completions_do_no_harm(session: &mut Session) -> Result<()> {
    set(session, "wrong-length,count=0,bytes=4294967295")?;
    // Whether the driver takes such a completion is its choice.
    session.exec(RUN)?;
    clear(session)?;
    all_is_well(session)
}

/// A status that no version knows is an error, and no other garbage is a crash.
pub fn corrupt_completions_do_no_harm(session: &mut Session) -> Result<()> {
    every_command_fails(session, "corrupt,count=0,offset=0,seed=1")?;
    every_command_fails(session, "corrupt,count=0,offset=1,seed=2")?;
    set(session, "corrupt,count=0,seed=3")?;
    session.text(&format!(
        "for i in $(seq 40); do {RUN} > /dev/null 2>&1; done; true"
    ))?;
    clear(session)?;
    all_is_well(session)
}

/// Late completions are waited for.
pub fn late_commands_succeed(session: &mut Session) -> Result<()> {
    set(session, "delay,count=0,ms=700")?;
    let start = Instant::now();
    session.text(RUN)?;
    let took = start.elapsed();
    ensure!(took >= Duration::from_millis(700), "it took only {took:?}");
    clear(session)?;
    all_is_well(session)
}

/// Completions in another order are those of their commands.
pub fn reordered_commands_succeed(session: &mut Session) -> Result<()> {
    // The delay has others wait behind the one that is overtaken.
    set(session, "delay,count=0,every=4,ms=5,seed=1")?;
    set(session, "reorder,count=0,every=2,seed=2")?;
    session.text("cdm-guest-tests --filter commands::")?;
    session.text(&format!(
        "for i in 1 2 3 4 5 6; do (for j in 1 2 3 4 5; do {RUN} > /dev/null || touch /tmp/bad; done) & done; \
         wait; ! test -e /tmp/bad"
    ))?;
    clear(session)?;
    all_is_well(session)
}

/// Waits until a queue hangs.
pub fn wait_for_stall(session: &mut Session) -> Result<()> {
    let control = control(session)?;
    let deadline = Instant::now() + LIMIT;
    loop {
        let state = control.ask(Ask::State)?.state.context("no state")?;
        if state.queues.iter().any(|queue| queue.is_stalled) {
            return Ok(());
        }
        ensure!(Instant::now() < deadline, "no queue hangs");
        thread::sleep(Duration::from_millis(10));
    }
}

/// Who waits at a queue that hangs can be interrupted, and RESET brings the queue back.
pub fn hanging_commands_can_be_interrupted_and_reset(session: &mut Session) -> Result<()> {
    set(session, "hang")?;
    session.text(&format!(
        "{RUN} > /tmp/hung 2>&1 & echo $! > /tmp/pid; sleep 1; test -e /proc/$(cat /tmp/pid)"
    ))?;
    wait_for_stall(session)?;
    session.text(&format!(
        "kill $(cat /tmp/pid); for i in $(seq {}); do \
         test -e /proc/$(cat /tmp/pid) || break; sleep 0.1; done; ! test -e /proc/$(cat /tmp/pid)",
        10 * LIMIT.as_secs()
    ))?;
    session.text("cdmctl reset")?;
    // The second queue hangs at its first command; who waits there is told by RESET.
    clear(session)?;
    session.text("cdmctl reset")?;
    all_is_well(session)
}

/// Who waits at a queue that hangs gets an error when the device is reset.
pub fn reset_ends_hanging_commands_with_an_error(session: &mut Session) -> Result<()> {
    set(session, "hang,count=0")?;
    session.text(&format!(
        "({RUN}; echo \"exit $?\") > /tmp/hung 2>&1 & sleep 1; ! grep exit /tmp/hung"
    ))?;
    wait_for_stall(session)?;
    session.text("cdmctl reset")?;
    let said = session.text("while ! grep -q exit /tmp/hung; do sleep 0.1; done; cat /tmp/hung")?;
    ensure!(!said.contains("exit 0"), "it says: {said}");
    clear(session)?;
    all_is_well(session)
}

/// Completions that never come leave nobody who cannot be killed.
pub fn lost_commands_can_be_interrupted(session: &mut Session) -> Result<()> {
    set(session, "drop,count=0")?;
    let line = format!("timeout -s KILL {PATIENCE_S} {RUN}");
    let start = Instant::now();
    ensure!(!session.exec(&line)?.status.success(), "'{line}' succeeded");
    ensure!(start.elapsed() < LIMIT, "it took {:?}", start.elapsed());
    clear(session)?;
    session.text("cdmctl reset")?;
    all_is_well(session)
}

/// The line that unbinds the driver, and the one that binds it again.
pub fn rebinding(session: &mut Session) -> Result<[String; 2]> {
    rebinding_of(session, 0)
}

/// The same for any device.
pub fn rebinding_of(session: &mut Session, device: u8) -> Result<[String; 2]> {
    let name = session.text(&format!("readlink -f /sys/class/misc/cdm{device}/device"))?;
    let name = name.trim().rsplit('/').next().unwrap_or_default();
    Ok(["unbind", "bind"].map(|what| format!("echo {name} > {DRIVER}/{what}")))
}

/// A chain that comes back twice costs the queue at most, until the driver is bound anew.
pub fn doubled_commands_cost_no_more_than_the_queue(session: &mut Session) -> Result<()> {
    set(session, "duplicate")?;
    for _ in 0..6 {
        let line = format!("timeout -s KILL {PATIENCE_S} {RUN}");
        let start = Instant::now();
        session.exec(&line)?;
        ensure!(start.elapsed() < LIMIT, "it took {:?}", start.elapsed());
    }
    clear(session)?;
    for line in rebinding(session)? {
        session.text(&line)?;
    }
    all_is_well(session)
}

/// A device that does not map its memory is given up in good order, and taken up later.
pub fn refused_mapping_leaves_a_device_that_can_be_bound(session: &mut Session) -> Result<()> {
    let [unbind, bind] = rebinding(session)?;
    session.text(&unbind)?;
    for spec in ["fail,queue=0,count=0", "truncate,queue=0,count=0,bytes=4"] {
        set(session, spec)?;
        ensure!(
            !session
                .exec(&format!("{bind} && test -e /dev/cdm0"))?
                .status
                .success(),
            "{spec}: the device was bound"
        );
        clear(session)?;
    }
    session.text(&bind)?;
    all_is_well(session)
}
