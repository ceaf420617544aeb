// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's other mm selftests, which know nothing of devices, in two guests of the
//! same kernel and memory: one without a device, and one in which `cdm-shuttle` moves their memory
//! into a device and back while they run. What passes without and not with is a fault.

use std::fs;
use std::time::Duration;

use anyhow::{Context as _, Result};

use self::compare::{Comparison, END, Ran};
use self::differences::Differences;
use self::page::Document;
use self::programs::{PROGRAMS, Program};
use self::tap::{Outcome, Reader, Verdict};
use super::Task;
use crate::build;
use crate::test::Session;
use crate::vm::boot::Stream;
use crate::vm::{ByteSize, FileCopy, MemoryType, VmSpec};

mod compare;
mod differences;
mod page;
mod programs;
mod tap;

/// Where the programs are in the guest.
const FOLDER: &str = "/root/mm-selftests";
/// Where cdm-shuttle leaves its totals.
const TOTALS: &str = "/run/cdm-shuttle.totals";
/// Longest that a program may run, in seconds: a hang costs no more.
const LIMIT_SECONDS: u64 = 900;
/// Longest silence of a program.
const SILENCE: Duration = Duration::from_secs(LIMIT_SECONDS + 60);

/// Runs that may be repeated because a program bailed out, for each program.
const SPARE_RUNS: u64 = 4;

/// What the guests have: some of the tests want two nodes, and threads enough to meet.
const MEMORY: ByteSize = ByteSize(3 << 30);
const SECOND_NODE: ByteSize = ByteSize(1 << 30);
const CPUS: u8 = 4;
const DEVICE_MEMORY: ByteSize = ByteSize(512 << 20);

/// Runs the programs that are wanted, or all, in both guests. Whether all was good.
pub fn run(task: &Task<'_>, memory_type: Option<MemoryType>, wanted: &[String]) -> Result<bool> {
    let known = Differences::read(&task.ctx.repo)?;
    let titles: Vec<String> = PROGRAMS.iter().map(Program::title).collect();
    known.check_programs(&titles)?;
    let programs = programs::chosen(wanted)?;
    let host = build::mm_selftests(task.ctx, &task.kernel, &programs::names())?;
    let files = vec![
        FileCopy {
            host,
            guest: FOLDER.to_owned(),
        },
        // Of the kernel's own, one is a disk to swap to.
        FileCopy::kernel_modules(task.ctx, &task.kernel)?,
    ];
    let without = machine(task, &files, None);
    let without = run_all(task, &without, &programs, &known, "without")?;
    let with = machine(task, &files, Some(memory_type));
    let with = run_all(task, &with, &programs, &known, "with")?;

    let memory_type = memory_type.map_or("best".to_owned(), |one| one.to_string());
    let mut document = Document::new(task, memory_type);
    for ((program, without), with) in programs.iter().zip(&without).zip(&with) {
        let title = program.title();
        let compared = Comparison::of(&title, program.least_pages, &without[0], with, &known);
        for complaint in &compared.complaints {
            task.ctx.progress.say(format!("cdm: {title}: {complaint}"));
        }
        document.programs.push(compared);
    }
    println!("# cdm: {}", document.count());
    document.publish(task)?;
    Ok(document.is_good())
}

/// The machine without a device, or with one of a type, or of the best that the kernel has.
fn machine(task: &Task<'_>, files: &[FileCopy], device: Option<Option<MemoryType>>) -> VmSpec {
    let mut spec = VmSpec::new(task.kernel.clone());
    spec.memory = MEMORY;
    spec.second_node = Some(SECOND_NODE);
    spec.smp = CPUS;
    spec.files = files.to_vec();
    spec.device_memory = DEVICE_MEMORY;
    match device {
        Some(memory_type) => spec.memory_types = memory_type.into_iter().collect(),
        None => {
            spec.devices = 0;
            spec.load_module = false;
        }
    }
    spec
}

/// Runs each program in a guest, once without a device and several times with one, and again with
/// another seed where it bailed out as declared. A guest that dies is replaced.
fn run_all(
    task: &Task<'_>,
    spec: &VmSpec,
    programs: &[&Program],
    known: &Differences,
    place: &str,
) -> Result<Vec<Vec<Ran>>> {
    let mut session = Session::new(task.ctx, spec.clone(), task.folder.join(place));
    let mut transcript = String::new();
    let mut all = Vec::new();
    for program in programs {
        let (mut wanted, spare) = match spec.devices {
            0 => (1, 0),
            _ => (program.times, SPARE_RUNS),
        };
        let most = wanted + spare;
        let progress = format!("{} {place} a device", program.title());
        let _task = task.ctx.progress.task(progress, None);
        let mut runs = Vec::new();
        let mut seed = 0;
        while seed < wanted {
            seed += 1;
            let is_new = !session.has_guest();
            // A machine that does not boot is no result of a program's.
            session.vm()?;
            if is_new {
                prepare(&mut session)?;
            }
            let ran = run_one(&mut session, program, seed, known, &mut transcript);
            println!("{}", line(program, seed, place, &ran));
            if ran.bailed_out.is_some() {
                wanted = most.min(wanted + 1);
            }
            runs.push(ran);
        }
        all.push(runs);
    }
    let path = task.folder.join(format!("{place}.ktap"));
    fs::write(&path, transcript).with_context(|| format!("cannot write {}", path.display()))?;
    if session.has_guest() {
        session.end()?;
    }
    Ok(all)
}

/// What some of the tests take for granted, and what is none of the kernel's faults: that a process
/// died of a signal, as some of those that they start shall do.
fn prepare(session: &mut Session<'_>) -> Result<()> {
    session.text(
        "echo 0 > /proc/sys/debug/exception-trace; \
         echo 64 > /sys/kernel/mm/hugepages/hugepages-2048kB/nr_hugepages; \
         modprobe brd && mkswap /dev/ram0 > /dev/null && swapon /dev/ram0 && \
         [ \"$(ls -d /sys/devices/system/node/node[01] | wc -l)\" = 2 ]",
    )?;
    Ok(())
}

/// One run of a program.
fn run_one(
    session: &mut Session<'_>,
    program: &Program,
    seed: u64,
    known: &Differences,
    transcript: &mut String,
) -> Ran {
    let moves = session.spec().devices > 0;
    let shuttle = match moves {
        true => format!("cdm-shuttle --seed {seed} --totals {TOTALS} -- "),
        false => String::new(),
    };
    let line = format!(
        "rm -f {TOTALS}; cd /tmp && {shuttle}timeout -s KILL {LIMIT_SECONDS} {FOLDER}/{} 2>&1",
        program.title()
    );
    *transcript += &format!("# cdm: {}, seed {seed}\n", program.title());
    let mut reader = Reader::default();
    let mut last = Vec::new();
    let streamed = session.vm().and_then(|vm| {
        vm.exec_streaming_within(SILENCE, &line, |stream, text| {
            *transcript += text;
            transcript.push('\n');
            match stream {
                Stream::Stdout => reader.line(text),
                Stream::Stderr => eprintln!("{text}"),
            }
            last.push(text.to_owned());
        })
    });
    let mut ran = Ran {
        outcomes: reader.finish(),
        ..Ran::default()
    };
    let ended = streamed.map(|status| status.shell_code());
    let totals = match (&ended, moves) {
        (Ok(_), true) => session.text(&format!("cat {TOTALS}")),
        _ => Ok(String::new()),
    };
    match totals {
        Ok(text) => {
            ran.pages_to_device = total(&text, "pages_to_device");
            ran.pages_to_system = total(&text, "pages_to_system");
        }
        Err(error) => last.push(format!("{error:#}")),
    }
    match session.new_log() {
        Ok(log) => {
            let reports = crate::vm::reports(&log);
            ran.reports = reports.into_iter().map(|report| report.text).collect();
        }
        Err(error) => last.push(format!("{error:#}")),
    }
    let is_alive = ended.is_ok() && session.exec("true").is_ok();
    ran.bailed_out = last
        .iter()
        .filter(|_| moves)
        .find_map(|line| known.bail_out(&program.title(), line))
        .map(str::to_owned);
    if ran.bailed_out.is_none() {
        let end = end(ended, &ran.outcomes, last);
        ran.outcomes.push(end);
    }
    // A kernel that went wrong may do anything, also to the next program.
    if !is_alive || !ran.reports.is_empty() {
        session.discard();
    }
    ran
}

/// How a program came to its end. One that failed because a test of its own did has told so.
fn end(ended: Result<i32>, outcomes: &[Outcome], last: Vec<String>) -> Outcome {
    let has = |wanted: Verdict| outcomes.iter().any(|one| one.verdict == wanted);
    let (verdict, said) = match ended {
        Ok(0) => (Verdict::Passed, Vec::new()),
        Ok(1) if has(Verdict::Failed) => (Verdict::Passed, Vec::new()),
        Ok(4) if has(Verdict::Passed) => (Verdict::Passed, Vec::new()),
        Ok(4) => (Verdict::Skipped, last),
        Ok(status) => {
            let tail = last.iter().skip(last.len().saturating_sub(3)).cloned();
            let said = tail.chain([format!("it ended with status {status}")]);
            (Verdict::Failed, said.collect())
        }
        Err(error) => (Verdict::Lost, vec![format!("{error:#}")]),
    };
    Outcome {
        name: END.to_owned(),
        verdict,
        said,
    }
}

/// A number among the totals.
fn total(text: &str, name: &str) -> u64 {
    let number = |line: &str| {
        let (found, number) = line.strip_prefix("total ")?.split_once(' ')?;
        (found == name).then(|| number.trim().parse().ok())?
    };
    text.lines().find_map(number).unwrap_or_default()
}

/// A line for who watches.
fn line(program: &Program, seed: u64, place: &str, ran: &Ran) -> String {
    let count = |wanted: Verdict| {
        let of = ran.outcomes.iter().filter(|one| one.verdict == wanted);
        of.count()
    };
    let end = match ran.bailed_out {
        Some(_) => ", bailed out",
        None => "",
    };
    format!(
        "{} ({place} a device, seed {seed}): {} passed, {} failed, {} skipped{end}; {} pages moved in, {} back",
        program.title(),
        count(Verdict::Passed),
        count(Verdict::Failed) + count(Verdict::Lost),
        count(Verdict::Skipped),
        ran.pages_to_device,
        ran.pages_to_system
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn outcome(verdict: Verdict) -> Outcome {
        Outcome {
            name: "a".into(),
            verdict,
            said: Vec::new(),
        }
    }

    #[test]
    fn failed_program_is_told_unless_a_test_of_its_own_failed() {
        let cases = [
            (0, Verdict::Passed, Verdict::Passed),
            (1, Verdict::Failed, Verdict::Passed),
            (1, Verdict::Passed, Verdict::Failed),
            (4, Verdict::Passed, Verdict::Passed),
            (4, Verdict::Skipped, Verdict::Skipped),
            (137, Verdict::Failed, Verdict::Failed),
            (125, Verdict::Passed, Verdict::Failed),
        ];
        for (status, test, expected) in cases {
            let end = end(Ok(status), &[outcome(test)], vec!["last words".into()]);
            assert_eq!(end.verdict, expected, "{status} {test:?}");
        }
        let lost = end(Err(anyhow::anyhow!("it is gone")), &[], Vec::new());
        assert_eq!(
            (lost.verdict, lost.said[0].as_str()),
            (Verdict::Lost, "it is gone")
        );
    }

    #[test]
    fn totals_are_read_by_name() {
        let text = "total moves 3\ntotal pages_to_device 512\n";
        assert_eq!(total(text, "pages_to_device"), 512);
        assert_eq!(total(text, "pages_to_system"), 0);
    }
}
