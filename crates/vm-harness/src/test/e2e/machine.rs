// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The machine as a whole: reboot, and what the tests here would do about a
//! guest that misbehaves.

use std::fs;

use anyhow::{Context as _, Result, bail, ensure};

use super::super::run::Run;
use super::{Session, group};
use crate::build::KernelChoice;

/// A guest that reboots finds its device again: the backends stay, and so does QEMU.
pub fn reboot_works(session: &mut Session) -> Result<()> {
    let backends: Vec<u32> = session
        .vm()?
        .backends()
        .iter()
        .map(|backend| backend.pid())
        .collect();
    let before = session.text("cat /proc/sys/kernel/random/boot_id")?;
    // With pages in the device, whose BAR the reset takes away.
    session.text(
        "sh -c 'x=$(head -c 4194304 /dev/zero | tr \"\\0\" x); echo > /tmp/filled; \
         sleep 1000; echo ${#x}' >/dev/null 2>&1 & echo $! > /tmp/pid; \
         while [ ! -e /tmp/filled ]; do sleep 0.1; done; \
         cdmctl migrate --pid $(cat /tmp/pid) --all --to device",
    )?;
    session.judge_log()?;
    session.vm()?.reboot()?;
    let after = session.text("cat /proc/sys/kernel/random/boot_id")?;
    ensure!(before != after, "the guest did not boot again");
    let now: Vec<u32> = session
        .vm()?
        .backends()
        .iter()
        .map(|backend| backend.pid())
        .collect();
    ensure!(
        backends == now,
        "the backends are others: {backends:?}, {now:?}"
    );
    for device in 0..session.spec().devices {
        session.text(&format!("cdmctl run checksum --size 8M --device {device}"))?;
    }
    let info = session.text("cdmctl info --json")?;
    let json: serde_json::Value = serde_json::from_str(&info)?;
    for device in json["devices"].as_array().into_iter().flatten() {
        ensure!(
            device["bytes_free"] == device["bytes_total"],
            "pages are left over: {device}"
        );
    }
    session.text("cdm-guest-tests --exact migration::contents_are_equal_after_a_round_trip")?;
    Ok(())
}

/// What a program in the guest may say instead of results: each must become a failure.
pub fn broken_streams_fail(session: &mut Session) -> Result<()> {
    let cases = [
        ("nothing", "true"),
        ("no plan", "echo 'KTAP version 1'"),
        (
            "too few results",
            "printf 'KTAP version 1\\n1..2\\nok 1 a::b\\n'",
        ),
        (
            "too many results",
            "printf 'KTAP version 1\\n1..1\\nok 1 a::b\\nok 2 a::c\\n'",
        ),
        (
            "a program that dies",
            "printf 'KTAP version 1\\n1..1\\n'; kill -9 $$",
        ),
        (
            "a status that is no test's",
            "printf 'KTAP version 1\\n1..1\\nok 1 a::b\\n'; exit 3",
        ),
        ("a program that is not there", "cdm-guest-tests-gone"),
    ];
    for (what, line) in cases {
        let mut scratch = Run::quiet(session.ctx(), session.ctx().cache.clone());
        let streamed = group::stream(
            &mut scratch,
            session,
            "scratch",
            &KernelChoice::Public,
            line,
        );
        if streamed.is_ok() {
            bail!("{what} was taken for success: {}", scratch.report().count());
        }
    }
    // The good one is good, so that each refusal above was for its fault.
    let mut scratch = Run::quiet(session.ctx(), session.ctx().cache.clone());
    let good = "printf 'KTAP version 1\\n1..2\\nok 1 a::b\\nnot ok 2 a::c\\n'; exit 1";
    group::stream(
        &mut scratch,
        session,
        "scratch",
        &KernelChoice::Public,
        good,
    )?;
    let count = scratch.report().count();
    ensure!(count == "1 passed, 1 failed, 0 skipped", "{count}");
    Ok(())
}

/// What fails here gets a folder with all that is known of it.
pub fn failure_has_a_folder(session: &mut Session) -> Result<()> {
    let ctx = session.ctx();
    let folder = tempfile::tempdir_in(&ctx.cache)?;
    let mut scratch = Run::quiet(ctx, folder.path().to_owned());
    let line = "printf 'KTAP version 1\\n1..1\\n# 1 < 2\\nnot ok 1 a::b\\n'; exit 1";
    group::stream(
        &mut scratch,
        session,
        "e2e::public",
        &KernelChoice::Public,
        line,
    )?;
    let name = "e2e::public::a::b".to_owned();
    scratch.keep_evidence(&[name], || session.evidence());
    let failure = folder.path().join("failures/e2e.public.a.b");
    for (file, words) in [
        ("failure.txt", "1 < 2"),
        ("repeat.txt", "ci/just test e2e::public::a::b"),
        ("console.log", "Linux version"),
        ("commands.txt", "qemu-system-x86_64"),
        ("kernel.config", "CONFIG_ZONE_DEVICE=y"),
        ("backend0.log", ""),
        ("state0.json", "\"queues\""),
        ("metrics0.json", "cdm_"),
    ] {
        let text = fs::read_to_string(failure.join(file)).with_context(|| file.to_owned())?;
        ensure!(text.contains(words), "{file} has no '{words}':\n{text}");
    }
    Ok(())
}

/// The log check finds what it is there for.
pub fn planted_warning_is_found(session: &mut Session) -> Result<()> {
    session.judge_log()?;
    let planted = [
        "WARNING: CPU: 0 PID: 1 at mm/memory.c:1 planted_by_a_test+0x0/0x10",
        "BUG: Bad page state in process planted  pfn:00000",
        "BUG: Bad rss-counter state mm:0 type:MM_FILEPAGES val:64",
        "Oops: planted 0000 [#1] SMP",
        "WARNING: possible circular locking dependency detected",
    ];
    for text in planted {
        session.text(&format!("echo '<4>{text}' > /dev/kmsg"))?;
        if session.judge_log().is_ok() {
            bail!("the log check does not see '{text}'");
        }
        // Judged once, it is not held against what follows.
        session.judge_log()?;
    }
    Ok(())
}
