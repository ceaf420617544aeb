// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Device memory that fails, as processes in the guest meet it: who touches it is told, nobody
//! gets it again, and everything else goes on. A device's memory does not mend as long as its
//! process lives, so each check counts from where the one before left off.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail, ensure};
use cdm_control_protocol::{Ask, Fault, State};

use super::{Session, faults, patience, stuck};
use crate::vm::breaches;

/// How long news may take from the device's process to the driver, under emulation.
const LIMIT: Duration = Duration::from_secs(30);
const PAGE_BYTES: u64 = 4096;
/// How late a device answers that forgets a page late: a wait that nobody notices otherwise.
const LATE_MS: u32 = 1500;

/// Starts `cdm-failing`, which waits until /tmp/end exists, and says which page it uses.
const USE: &str = "rm -f /tmp/end; echo > /tmp/failing; \
    (while [ ! -e /tmp/end ]; do sleep 0.1; done | \
    (cdm-failing MODE; echo \"exit $?\") > /tmp/failing 2>&1) > /dev/null 2>&1 & \
    while ! grep -q -e page -e exit /tmp/failing; do sleep 0.1; done; cat /tmp/failing";
const GO_ON: &str =
    "touch /tmp/end; while ! grep -q exit /tmp/failing; do sleep 0.1; done; cat /tmp/failing";

/// Lets pages of the device fail.
fn poison(session: &mut Session, spec: &str) -> Result<()> {
    let fault: Fault = format!("poison,{spec}").parse()?;
    let control = session.vm()?.backends()[0].control().clone();
    control.ask(Ask::SetFault(fault))?;
    Ok(())
}

fn state(session: &mut Session, device: u8) -> Result<State> {
    let control = session.vm()?.backends()[usize::from(device)]
        .control()
        .clone();
    control.ask(Ask::State)?.state.context("no state")
}

/// A figure of the driver.
fn figure(session: &mut Session, name: &str) -> Result<u64> {
    figure_of(session, 0, name)
}

/// The same of any device.
fn figure_of(session: &mut Session, device: u8, name: &str) -> Result<u64> {
    let text = session.text(&format!("cat /sys/kernel/debug/cdm/cdm{device}/{name}"))?;
    Ok(text.trim().parse()?)
}

/// Free pages when nobody uses any: what a process gives back may take a while.
fn free_pages(session: &mut Session) -> Result<u64> {
    let deadline = Instant::now() + LIMIT;
    while figure(session, "pages_in_use")? != 0 {
        ensure!(Instant::now() < deadline, "pages stay in use");
        thread::sleep(Duration::from_millis(50));
    }
    figure(session, "pages_free")
}

/// Pages at the beginning of the device memory that are struct pages.
pub fn metadata_pages(session: &mut Session, device: u8) -> Result<u64> {
    let bytes = session.text(&format!("cat /sys/class/misc/cdm{device}/bytes_metadata"))?;
    Ok(bytes.trim().parse::<u64>()? / PAGE_BYTES)
}

/// Waits until the driver has taken so many pages from use.
fn wait_for_poisoned(session: &mut Session, pages: u64) -> Result<()> {
    wait_for_poisoned_of(session, 0, pages)
}

/// Waits until the driver has taken all pages from use that have failed, of a device that nobody
/// uses any more.
pub fn wait_until_all_is_out_of_use(session: &mut Session, device: u8) -> Result<()> {
    let all = usable_bad_pages(session, device)?;
    wait_for_poisoned_of(session, device, all)
}

fn wait_for_poisoned_of(session: &mut Session, device: u8, pages: u64) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    loop {
        let found = figure_of(session, device, "pages_poisoned")?;
        if found == pages {
            return Ok(());
        }
        ensure!(
            Instant::now() < deadline && found < pages,
            "the driver has taken {found} pages from use, not {pages}"
        );
        thread::sleep(Duration::from_millis(50));
    }
}

/// What the kernel said since the last time, and no fault of its own.
fn new_log(session: &mut Session) -> Result<String> {
    let log = session.new_log()?;
    let found = breaches(&log);
    ensure!(
        found.is_empty(),
        "the guest's kernel reports a fault:\n{log}"
    );
    Ok(log)
}

/// Waits until the kernel has said something.
fn wait_for_log(session: &mut Session, part: &str) -> Result<()> {
    let deadline = Instant::now() + LIMIT;
    let mut log = String::new();
    while Instant::now() < deadline {
        log += &new_log(session)?;
        if log.contains(part) {
            return Ok(());
        }
        thread::sleep(Duration::from_millis(50));
    }
    bail!("the kernel does not say '{part}':\n{log}")
}

/// Has a process use memory that is about to fail; what it says of its pages.
fn start(session: &mut Session, mode: &str) -> Result<String> {
    let said = session.text(&USE.replace("MODE", mode))?;
    let pages = said.lines().find_map(|line| line.strip_prefix("page "));
    let pages = pages.with_context(|| format!("it says: {said}"))?;
    Ok(pages.to_owned())
}

/// Has a process use memory of which a page is about to fail; which page.
fn use_memory(session: &mut Session, mode: &str) -> Result<u64> {
    Ok(start(session, mode)?.parse()?)
}

/// Lets the process go on; what it says in all.
fn go_on(session: &mut Session) -> Result<String> {
    let said = session.text(GO_ON)?;
    ensure!(said.contains("exit 0"), "the process says: {said}");
    Ok(said)
}

fn expect_said(said: &str, part: &str) -> Result<()> {
    ensure!(said.contains(part), "not '{part}' but: {said}");
    Ok(())
}

/// The page is used by nobody, even when the device is full; and the device works.
fn is_not_handed_out(session: &mut Session, page: u64) -> Result<()> {
    // What others gave back may be on its way.
    free_pages(session)?;
    session.text(&format!("cdm-failing fill {page}"))?;
    session.text("cdmctl run checksum --size 64K").map(drop)
}

/// The same, and memory that moves there and back keeps its contents.
fn is_out_of_use(session: &mut Session, page: u64) -> Result<()> {
    is_not_handed_out(session, page)?;
    session
        .text("cdm-guest-tests --exact migration::contents_are_equal_after_a_round_trip")
        .map(drop)
}

fn touched_page_fails(session: &mut Session, mode: &str) -> Result<()> {
    let before = figure(session, "pages_poisoned")?;
    let free = free_pages(session)?;
    let page = use_memory(session, mode)?;
    poison(session, &format!("page={page}"))?;
    wait_for_poisoned(session, before + 1)?;
    let said = go_on(session)?;
    expect_said(&said, "load: BUS_MCEERR_AR at its address")?;
    expect_said(&said, "neighbours: unchanged")?;
    expect_said(&said, "neighbours: moved")?;
    let left = free_pages(session)?;
    ensure!(left == free - 1, "{left} pages are free, not {}", free - 1);
    is_out_of_use(session, page)
}

/// The process that touches a page that failed gets SIGBUS with its address, and nobody else.
pub fn touched_page_raises_sigbus(session: &mut Session) -> Result<()> {
    touched_page_fails(session, "small")
}

/// The same with a page of a folio of 2 MiB, of which the rest stays.
pub fn page_of_a_huge_page_fails_alone(session: &mut Session) -> Result<()> {
    touched_page_fails(session, "huge")
}

/// The page of a process that the device has the address space of is lost to the device as well,
/// which has to forget it first, and may take its time.
pub fn bound_process_loses_its_page(session: &mut Session) -> Result<()> {
    let before = figure(session, "pages_poisoned")?;
    let page = use_memory(session, "bound")?;
    let forgotten = figure(session, "invalidations")?;
    faults::set(session, &format!("late-invalidation,ms={LATE_MS}"))?;
    let start = Instant::now();
    poison(session, &format!("page={page}"))?;
    wait_for_poisoned(session, before + 1)?;
    ensure!(
        start.elapsed() >= Duration::from_millis(LATE_MS.into()),
        "the page was out of use before the device had forgotten it"
    );
    ensure!(
        figure(session, "invalidations")? > forgotten,
        "the device was not made to forget the page"
    );
    faults::clear(session)?;
    let said = go_on(session)?;
    expect_said(&said, "addresses: the device answered PAGE_ERROR")?;
    expect_said(&said, "addresses beside it: done")?;
    expect_said(&said, "load: BUS_MCEERR_AR at its address")?;
    expect_said(&said, "neighbours: moved")?;
    is_out_of_use(session, page)
}

/// Where the process keeps the page, the device refuses it, whether it knows where the page is
/// or, after a RESET, has to ask.
pub fn commands_on_addresses_are_told(session: &mut Session) -> Result<()> {
    for is_reset in [false, true] {
        let before = figure(session, "pages_poisoned")?;
        let page = use_memory(session, "bound")?;
        new_log(session)?;
        poison(session, &format!("page={page}"))?;
        wait_for_log(session, "bytes of the device memory have failed")?;
        if is_reset {
            session.text("cdmctl reset")?;
        }
        let said = go_on(session)?;
        expect_said(&said, "addresses: the device answered POISONED")?;
        expect_said(&said, "addresses beside it: done")?;
        expect_said(&said, "load: what was there")?;
        expect_said(&said, "neighbours: moved")?;
        wait_for_poisoned(session, before + 1)?;
        is_out_of_use(session, page)?;
    }
    Ok(())
}

/// A private page that fails is lost to the device as well.
pub fn bound_process_loses_its_private_page(session: &mut Session) -> Result<()> {
    let before = figure(session, "pages_poisoned")?;
    let page = use_memory(session, "bound")?;
    let forgotten = figure(session, "invalidations")?;
    poison(session, &format!("page={page}"))?;
    wait_for_poisoned(session, before + 1)?;
    ensure!(
        figure(session, "invalidations")? > forgotten,
        "the device was not made to forget the page"
    );
    let said = go_on(session)?;
    expect_said(&said, "addresses: the device answered PAGE_ERROR")?;
    expect_said(&said, "addresses beside it: done")?;
    expect_said(&said, "load: BUS_MCEERR_AR at its address")?;
    expect_said(&said, "neighbours: unchanged")?;
    is_not_handed_out(session, page)
}

/// Pages fail one by one while they move there and back, and while the device reads them by their
/// addresses: some are lost, and nobody uses them again; the others are as they were.
pub fn pages_fail_while_they_move(session: &mut Session) -> Result<()> {
    let said = start(session, "churn")?;
    let pages: Vec<u64> = said.split(' ').map(str::parse).collect::<Result<_, _>>()?;
    // What the process lets go of is handed out again soon, so it comes by these all the time.
    for page in pages.iter().step_by(3) {
        poison(session, &format!("page={page}"))?;
        thread::sleep(Duration::from_millis(100));
    }
    let said = go_on(session)?;
    expect_said(&said, "rounds, lost")?;
    let all = usable_bad_pages(session, 0)?;
    wait_for_poisoned(session, all)?;
    new_log(session)?;
    is_out_of_use(session, pages[0])
}

/// Lets a page fail that a process uses, and has the process look at it after `meanwhile`; what it
/// finds.
fn looks_after(
    session: &mut Session,
    sign: &str,
    meanwhile: impl FnOnce(&mut Session) -> Result<()>,
) -> Result<String> {
    let page = use_memory(session, "loads")?;
    new_log(session)?;
    poison(session, &format!("page={page}"))?;
    wait_for_log(session, sign)?;
    meanwhile(session)?;
    let said = go_on(session)?;
    expect_said(&said, "neighbours: unchanged")?;
    Ok(said)
}

/// A process that has lost a page has lost it for good, also when the driver has let go of the
/// device, and another one has come.
pub fn lost_page_stays_lost_without_the_driver(session: &mut Session) -> Result<()> {
    let said = looks_after(session, "Memory failure", rebind)?;
    expect_said(&said, "load: BUS_MCEERR_AR at its address")?;
    let all = usable_bad_pages(session, 0)?;
    wait_for_poisoned(session, all)
}

/// A driver that lets go of the device takes memory along that has failed, for who still has it.
pub fn failed_page_leaves_with_the_driver(session: &mut Session) -> Result<()> {
    let said = looks_after(session, "have failed", rebind)?;
    expect_said(&said, "load: what was there")?;
    let all = usable_bad_pages(session, 0)?;
    wait_for_poisoned(session, all)
}

/// What is lost by then stays lost, and no more, when the device is unplugged: `log` tells that the
/// driver knows of the page, `load` what becomes of a load from it.
pub fn failed_page_at_an_unplug(
    session: &mut Session,
    (log, load): (&str, &str),
    unplug: impl FnOnce(&mut Session) -> Result<()>,
) -> Result<()> {
    let said = looks_after(session, log, unplug)?;
    expect_said(&said, load)
}

/// Where the kernel cannot take a page from its user, the driver says so, and the user goes on with
/// what is there; commands are told, and nobody gets the page afterwards.
pub fn driver_says_that_it_cannot(session: &mut Session) -> Result<()> {
    let before = figure(session, "pages_poisoned")?;
    let page = use_memory(session, "small")?;
    new_log(session)?;
    poison(session, &format!("page={page}"))?;
    wait_for_log(
        session,
        "cannot take coherent memory that has failed from who uses it",
    )?;
    let said = go_on(session)?;
    expect_said(&said, "load: what was there")?;
    expect_said(&said, "command: the device answered POISONED")?;
    expect_said(&said, "neighbours: moved")?;
    wait_for_poisoned(session, before + 1)?;
    // It is said once.
    let page = {
        let other = use_memory(session, "small")?;
        ensure!(other != page, "page {page} is used again");
        other
    };
    new_log(session)?;
    poison(session, &format!("page={page}"))?;
    wait_for_log(session, "bytes of the device memory have failed")?;
    go_on(session)?;
    wait_for_poisoned(session, before + 2)?;
    let log = new_log(session)?;
    ensure!(!log.contains("cannot take"), "it is said again:\n{log}");
    is_out_of_use(session, page)
}

/// Private memory that fails is taken from its user: that page alone, with a SIGBUS that tells it.
fn private_page_fails(session: &mut Session, mode: &str) -> Result<()> {
    let before = figure(session, "pages_poisoned")?;
    let page = use_memory(session, mode)?;
    poison(session, &format!("page={page}"))?;
    wait_for_poisoned(session, before + 1)?;
    let said = go_on(session)?;
    expect_said(&said, "load: BUS_MCEERR_AR at its address")?;
    expect_said(&said, "neighbours: unchanged")?;
    is_not_handed_out(session, page)
}

/// Where the kernel cannot take it, an access to the page is SIGBUS from the driver, and what else
/// there is comes back.
pub fn private_page_cannot_be_taken(session: &mut Session) -> Result<()> {
    let before = figure(session, "pages_poisoned")?;
    let page = use_memory(session, "small")?;
    poison(session, &format!("page={page}"))?;
    wait_for_log(
        session,
        "cannot take private memory that has failed from who uses it",
    )?;
    let said = go_on(session)?;
    expect_said(&said, "load: SIGBUS of another kind")?;
    expect_said(&said, "command: the device answered POISONED")?;
    expect_said(&said, "neighbours: unchanged")?;
    wait_for_poisoned(session, before + 1)?;
    is_not_handed_out(session, page)
}

/// The same for single pages.
pub fn private_page_fails_alone(session: &mut Session) -> Result<()> {
    private_page_fails(session, "small")
}

/// The same for a folio of 2 MiB.
pub fn page_of_a_private_huge_page_fails_alone(session: &mut Session) -> Result<()> {
    private_page_fails(session, "huge")
}

/// A page that fails while it is free is not handed out.
pub fn free_page_is_never_handed_out(session: &mut Session) -> Result<()> {
    let before = figure(session, "pages_poisoned")?;
    let free = free_pages(session)?;
    // The last one: the driver hands out the lowest first.
    let page = state(session, 0)?.memory_bytes / PAGE_BYTES - 1;
    poison(session, &format!("page={page}"))?;
    wait_for_poisoned(session, before + 1)?;
    ensure!(free_pages(session)? == free - 1, "it is still free");
    is_out_of_use(session, page)
}

/// A device that refuses to say what has failed, or whose answer is lost, is asked again.
pub fn failed_question_is_asked_again(session: &mut Session) -> Result<()> {
    let last = state(session, 0)?.memory_bytes / PAGE_BYTES - 1;
    for (fault, page) in [
        ("fail,queue=0,count=2", last - 2),
        ("drop,queue=0", last - 4),
    ] {
        let before = figure(session, "pages_poisoned")?;
        stuck::impatiently(session, |session| {
            faults::set(session, fault)?;
            poison(session, &format!("page={page}"))?;
            wait_for_poisoned(session, before + 1).context(fault)
        })?;
        faults::clear(session)?;
        is_out_of_use(session, page)?;
    }
    Ok(())
}

/// Bad pages that are not struct pages.
fn usable_bad_pages(session: &mut Session, device: u8) -> Result<u64> {
    let metadata = metadata_pages(session, device)?;
    let state = state(session, device)?;
    let usable = |first: u64, pages: u64| (first + pages).saturating_sub(first.max(metadata));
    Ok(state
        .bad
        .iter()
        .map(|bad| usable(bad.page, bad.pages))
        .sum())
}

/// More errors at once than the driver has buffers for: it comes to know all of them.
pub fn errors_beyond_the_buffers_are_heard(session: &mut Session) -> Result<()> {
    poison(session, "count=200,seed=1")?;
    let all = usable_bad_pages(session, 0)?;
    ensure!(all >= 100, "only {all} pages are bad");
    wait_for_poisoned(session, all)?;
    let last = state(session, 0)?
        .bad
        .last()
        .copied()
        .context("none is bad")?;
    is_out_of_use(session, last.page)
}

fn rebind(session: &mut Session) -> Result<()> {
    let unbind = patience::unbind(session)?;
    session.text(&unbind)?;
    session.text(&unbind.replace("/unbind", "/bind"))?;
    session.text("test -e /dev/cdm0").map(drop)
}

/// What failed before a driver came, that driver never uses.
pub fn next_driver_uses_nothing_that_failed(session: &mut Session) -> Result<()> {
    let last = state(session, 0)?.memory_bytes / PAGE_BYTES - 1;
    let unbind = patience::unbind(session)?;
    session.text(&unbind)?;
    let page = last - 10;
    poison(session, &format!("page={page}"))?;
    session.text(&unbind.replace("/unbind", "/bind"))?;
    let all = usable_bad_pages(session, 0)?;
    let found = figure(session, "pages_poisoned")?;
    ensure!(found == all, "{found} pages are not used, not {all}");
    is_out_of_use(session, page)
}

/// A failed struct page is said loudly, and the next driver keeps them elsewhere.
pub fn failed_struct_pages_are_said(session: &mut Session) -> Result<()> {
    ensure!(
        metadata_pages(session, 0)? > 3,
        "no struct pages in the device"
    );
    new_log(session)?;
    poison(session, "page=3")?;
    wait_for_log(session, "where the struct pages of the device memory are")?;
    rebind(session)?;
    ensure!(
        metadata_pages(session, 0)? == 0,
        "the struct pages are where memory has failed"
    );
    wait_for_log(session, "guest memory holds them")?;
    is_out_of_use(session, 3)
}
