// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Devices that fail while they use the addresses of a process: pages that they do not forget in
//! time, or at all, and pages that they do not get.

use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, ensure};

use super::faults::{self, LIMIT};
use super::stuck::{COMMAND_MS, impatiently, timeouts};
use super::{Session, silent};

/// Pages that `cdm-bound` has the device store to.
const PAGES: u64 = 64;
/// How long a late answer takes that the driver waits for.
const LATE_MS: u64 = 700;
/// How long an access takes: less than `cdm-bound` looks whether its memory stays as it is.
const ACCESS_MS: u64 = 300;
/// How long one takes that comes after its patience, and before that with the RESET ends.
const TOO_LATE_MS: u64 = 2700;

/// Pages of system memory that are never used again.
fn forsaken(session: &mut Session) -> Result<u64> {
    let text = session.text("cat /sys/kernel/debug/cdm/cdm0/pages_forsaken")?;
    Ok(text.trim().parse()?)
}

/// Has a process take steps, none of which may take for ever; what it says of each.
fn take_steps(session: &mut Session, steps: &str) -> Result<String> {
    let start = Instant::now();
    let said = session.text(&format!("cdm-bound {steps}"))?;
    ensure!(
        start.elapsed() < LIMIT,
        "it took {:?}: {said}",
        start.elapsed()
    );
    Ok(said)
}

/// What is said of a step.
fn of<'a>(said: &'a str, step: &str) -> Result<&'a str> {
    let line = said.lines().find_map(|line| line.strip_prefix(step));
    let words = line.and_then(|rest| rest.strip_prefix(": "));
    words.with_context(|| format!("nothing of '{step}' in: {said}"))
}

/// How long a step took.
fn took(said: &str, step: &str) -> Result<Duration> {
    let words = of(said, step)?;
    let number = words.split_whitespace().nth(1).unwrap_or_default();
    let ms = number.parse().with_context(|| words.to_owned())?;
    Ok(Duration::from_millis(ms))
}

fn took_at_least(said: &str, step: &str, ms: u64) -> Result<()> {
    let took = took(said, step)?;
    ensure!(
        took >= Duration::from_millis(ms),
        "{step}: {took:?}: {said}"
    );
    Ok(())
}

fn ended(said: &str, words: &str) -> Result<()> {
    let answer = of(said, "answer")?;
    ensure!(answer.contains(words), "the command ended with: {answer}");
    Ok(())
}

/// The device forgot, though it did not say so in time; so after a RESET, or without one, pages
/// are used again, nobody stores to them, and the next process can bind itself.
fn is_as_before(session: &mut Session, forsaken_before: u64) -> Result<()> {
    faults::clear(session)?;
    ensure!(
        forsaken(session)? == forsaken_before,
        "pages of a device that has forgotten are not used again"
    );
    let said = take_steps(session, "fill reuse")?;
    ensure!(of(&said, "fill")?.starts_with("OK"), "{said}");
    faults::all_is_well(session)
}

/// The page that the device did not get ends its command with what a driver would have said, and
/// nothing else.
pub fn refused_page_ends_its_command_alone(session: &mut Session) -> Result<()> {
    let before = timeouts(session)?;
    for (spec, status) in [
        ("refuse-page,nth=3", "PAGE_ERROR"),
        ("refuse-page,nth=2,status=23", "UNMAPPED"),
        ("refuse-page,nth=4,status=24", "NO_ACCESS"),
    ] {
        faults::set(session, spec)?;
        // The binding outlives it, too. What the device says it did is looked at by the process.
        let said = take_steps(session, "fill fill fill").with_context(|| spec.to_owned())?;
        faults::clear(session)?;
        let outcomes: Vec<&str> = said
            .lines()
            .filter_map(|line| line.strip_prefix("fill: "))
            .collect();
        let is_right = matches!(outcomes[..], [first, second, third]
            if first.starts_with(status) && second.starts_with("OK") && third == second);
        ensure!(is_right, "{spec}: {said}");
    }
    ensure!(timeouts(session)? == before, "the device was reset");
    faults::all_is_well(session)
}

/// Memory does not go before the device has said that it does not use it.
pub fn late_invalidation_is_waited_for(session: &mut Session) -> Result<()> {
    let (resets, kept) = (timeouts(session)?, forsaken(session)?);
    faults::set(session, &format!("late-invalidation,ms={LATE_MS}"))?;
    let said = take_steps(session, "work unmap reuse answer")?;
    took_at_least(&said, "unmap", LATE_MS)?;
    ended(&said, "UNMAPPED")?;
    ensure!(timeouts(session)? == resets, "the device was reset");
    is_as_before(session, kept)
}

/// A store that takes its time reaches the page that it was meant for, and nobody who has the page
/// next.
pub fn late_access_is_waited_for(session: &mut Session) -> Result<()> {
    let (resets, kept) = (timeouts(session)?, forsaken(session)?);
    // One behind those with which the device begins; the process waits for no more of them.
    let fault = format!("late-access,nth=1000,ms={ACCESS_MS}");
    faults::set(session, &fault)?;
    let said = take_steps(session, "work unmap reuse answer")?;
    ended(&said, "UNMAPPED")?;
    ensure!(timeouts(session)? == resets, "the device was reset");
    is_as_before(session, kept)
}

/// Runs steps with a fault that the driver answers with one RESET, which has the device forget
/// everything; `slow` is the step that has to wait for it.
fn one_reset(session: &mut Session, fault: &str, steps: &str, slow: &str, end: &str) -> Result<()> {
    impatiently(session, |session| {
        session.text(silent::TOUCH)?;
        let (resets, kept) = (timeouts(session)?, forsaken(session)?);
        faults::set(session, fault)?;
        let said = take_steps(session, steps)?;
        took_at_least(&said, slow, COMMAND_MS)?;
        ended(&said, end)?;
        ensure!(
            timeouts(session)? == resets + 1,
            "not one RESET because of it: {said}"
        );
        is_as_before(session, kept)?;
        silent::all_is_unchanged(session)
    })
}

/// Beyond its patience the driver stops the device, which answers that.
pub fn invalidation_that_is_too_late_is_a_reset(session: &mut Session) -> Result<()> {
    let fault = format!("late-invalidation,ms={TOO_LATE_MS}");
    one_reset(
        session,
        &fault,
        "work unmap reuse answer",
        "unmap",
        "Input/output error",
    )
}

/// An INVALIDATE without an answer.
pub fn lost_answer_to_an_invalidation_is_a_reset(session: &mut Session) -> Result<()> {
    one_reset(
        session,
        "drop,opcode=INVALIDATE",
        "work unmap reuse answer",
        "unmap",
        "Input/output error",
    )
}

/// An UNBIND without an answer: asked for, and at the end of a process.
pub fn lost_answer_to_an_unbind_is_a_reset(session: &mut Session) -> Result<()> {
    one_reset(
        session,
        "drop,opcode=UNBIND",
        "work unbind reuse answer",
        "unbind",
        "UNBOUND",
    )?;
    impatiently(session, |session| {
        let (resets, kept) = (timeouts(session)?, forsaken(session)?);
        faults::set(session, "drop,opcode=UNBIND")?;
        let start = Instant::now();
        let line = "timeout -s KILL 2 cdm-bound work wait";
        ensure!(!session.exec(line)?.status.success(), "'{line}' succeeded");
        ensure!(start.elapsed() < LIMIT, "it took {:?}", start.elapsed());
        ensure!(timeouts(session)? == resets + 1, "not one RESET");
        is_as_before(session, kept)
    })
}

/// A device that neither forgets nor answers a RESET may store to the pages for ever. The
/// process goes on without them, and nobody gets them.
fn pages_are_given_up(session: &mut Session, fault: &str, steps: &str, slow: &str) -> Result<()> {
    impatiently(session, |session| {
        session.text(silent::TOUCH)?;
        session.new_log()?;
        faults::set(session, fault)?;
        // The device stores all the time.
        let said = take_steps(session, steps)?;
        took_at_least(&said, slow, COMMAND_MS)?;
        let log = session.new_log()?;
        ensure!(
            log.contains("not even a RESET"),
            "the driver does not say that it gave the device up:\n{log}"
        );
        let given_up = forsaken(session)?;
        ensure!(
            (PAGES..2 * PAGES).contains(&given_up),
            "{given_up} pages are never used again"
        );
        // What the process had is nobody's, now that it has ended.
        take_steps(session, "reuse")?;
        let said = faults::fails(session, faults::RUN)?;
        ensure!(said.contains("No such device"), "it says: {said}");
        silent::all_is_unchanged(session)
    })?;
    // The machine has a device that nobody can use any more.
    session.judge_log()?;
    session.discard();
    Ok(())
}

/// The device hangs at an INVALIDATE, which it has not carried out.
pub fn pages_of_a_device_that_hangs_at_an_invalidation(session: &mut Session) -> Result<()> {
    pages_are_given_up(
        session,
        "hang,opcode=INVALIDATE",
        "work unmap reuse answer",
        "unmap",
    )
}

/// The same at an UNBIND.
pub fn pages_of_a_device_that_hangs_at_an_unbind(session: &mut Session) -> Result<()> {
    pages_are_given_up(
        session,
        "hang,opcode=UNBIND",
        "work unbind reuse answer",
        "unbind",
    )
}
