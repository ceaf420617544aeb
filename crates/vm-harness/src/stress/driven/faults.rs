// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Devices that are told by a seed to fail while processes in the guest use them.

use std::ops::Range;

use anyhow::{Context as _, Result, ensure};
use cdm_control_protocol::{Ask, Fault, FaultKind};

use super::playing::Playing;
use super::{Play, draw};
use crate::test::Session;
use crate::test::e2e::{faults, poison, stuck};
use crate::vm::Control;

/// What the processes do between two faults.
const COMMANDS: u64 = 5;
/// Pages at the start of what processes can have of a device, which are in use first.
const USED_PAGES: u64 = 2000;

/// Answers and accesses late, or in another order.
pub fn late(play: &mut Play<'_, '_>) -> Result<()> {
    use FaultKind::{Delay, LateAccess, LateInvalidation, Reorder};
    by_seed(play, &[Delay, Reorder, LateInvalidation, LateAccess])
}

/// Requests refused, and answers of the wrong length.
pub fn refused_and_cut(play: &mut Play<'_, '_>) -> Result<()> {
    use FaultKind::{Fail, RefusePage, Truncate, WrongLength};
    by_seed(play, &[Fail, Truncate, WrongLength, RefusePage])
}

/// Answers with a wrong byte.
pub fn corrupt(play: &mut Play<'_, '_>) -> Result<()> {
    by_seed(play, &[FaultKind::Corrupt])
}

/// No answers: the driver resets the device, sooner than usual.
pub fn lost(play: &mut Play<'_, '_>) -> Result<()> {
    let usual = stuck::command_ms(play.session)?;
    stuck::set_command_ms(play.session, stuck::COMMAND_MS)?;
    let done = by_seed(play, &[FaultKind::Hang, FaultKind::Drop]);
    stuck::set_command_ms(play.session, usual)?;
    done
}

/// Answers given twice: the driver is bound anew after each.
pub fn doubled(play: &mut Play<'_, '_>) -> Result<()> {
    by_seed(play, &[FaultKind::Duplicate])
}

/// Memory that fails; the machine is of no more use afterwards.
pub fn failing_memory(play: &mut Play<'_, '_>) -> Result<()> {
    by_seed(play, &[FaultKind::Poison])?;
    for device in 0..play.session.spec().devices {
        poison::wait_until_all_is_out_of_use(play.session, device)?;
    }
    play.session.judge_log()?;
    play.session.discard();
    Ok(())
}

/// Has devices fail in these ways, one after the other, as a seed says.
fn by_seed(play: &mut Play<'_, '_>, kinds: &[FaultKind]) -> Result<()> {
    let mut playing = play.start()?;
    let mut next: Vec<FaultKind> = Vec::new();
    loop {
        playing.await_more("commands_done", COMMANDS)?;
        if !play.round() {
            break;
        }
        if next.is_empty() {
            next = kinds.to_vec();
            play.random.shuffle(&mut next);
        }
        let kind = next.pop().context("there are kinds")?;
        let devices = play.session.spec().devices;
        let device = play.random.u8(..devices);
        let pages = used_pages(play.session, device)?;
        let fault = draw::fault(&mut play.random, kind, pages)?;
        let hits = strike(play, &mut playing, device, &fault)
            .with_context(|| format!("device {device} under '{fault}'"))?;
        play.add(&format!("faults_{}", kind.name().replace('-', "_")), hits);
        play.add("faults", hits);
        play.session.judge_log()?;
    }
    play.end(playing)
}

fn used_pages(session: &mut Session<'_>, device: u8) -> Result<Range<u64>> {
    let first = poison::metadata_pages(session, device)?;
    Ok(first..first + USED_PAGES)
}

/// Sets a fault, waits until it has hit and until what comes of it is over; how often it hit.
fn strike(
    play: &mut Play<'_, '_>,
    playing: &mut Playing,
    device: u8,
    fault: &Fault,
) -> Result<u64> {
    let backend = &play.session.vm()?.backends()[usize::from(device)];
    let control = backend.control().clone();
    let resets = stuck::timeouts_of(play.session, device)?;
    let set = control.ask(Ask::SetFault(fault.clone()))?.fault;
    let id = set.context("the fault has no number")?;
    // Memory fails at once, if it has not failed before.
    if fault.kind != FaultKind::Poison {
        playing.listen_until("the fault has hit something", |_| {
            Ok(hits(&control, id)? > 0)
        })?;
    }
    match fault.kind {
        FaultKind::Hang | FaultKind::Drop => {
            let session = &mut *play.session;
            playing.listen_until("the device is reset", |_| {
                Ok(stuck::timeouts_of(session, device)? > resets)
            })?;
        }
        FaultKind::Duplicate => {
            // It hits once on each queue, also of a driver that has just been bound.
            let hit = lift(&control, id)?;
            let [unbind, bind] = faults::rebinding_of(play.session, device)?;
            play.session.text(&unbind)?;
            play.session.text(super::life::DEAD_NODES_ARE_CLOSED)?;
            play.session.text(&bind)?;
            super::life::await_node(play.session, device)?;
            return Ok(hit);
        }
        _ => {}
    }
    lift(&control, id)
}

/// Takes a fault away; how often it hit.
fn lift(control: &Control, id: u64) -> Result<u64> {
    let hit = hits(control, id)?;
    let cleared = control.ask(Ask::ClearFault(id))?.cleared;
    ensure!(cleared == Some(1), "it is gone");
    Ok(hit)
}

fn hits(control: &Control, id: u64) -> Result<u64> {
    let faults = control.ask(Ask::Faults)?.faults.unwrap_or_default();
    let fault = faults.iter().find(|fault| fault.id == id);
    Ok(fault.context("the fault is gone")?.hits)
}
