// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm logs`: what the console, the devices and QEMU of a run have said, line by line with the
//! name of who said it.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::{self, Read, Seek, SeekFrom, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use clap::{Args, ValueEnum};

use crate::cache;
use crate::context::Context;
use crate::runs;

/// Between two looks for new lines: soon for whoever watches, and next to no work.
const LOOK_INTERVAL: Duration = Duration::from_millis(200);
/// Begins what the guest's first process and its agent say, in the kernel's log.
const AGENT: &str = "cdm-init: ";

/// Arguments of `cdm logs`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just logs
  just logs --follow --only console
  just logs 20261123-144943 --only backend,qemu")]
pub struct LogsArgs {
    /// A run: its name in the cache, or the folder of its logs [default: the newest]
    #[arg(value_name = "RUN")]
    run: Option<PathBuf>,

    /// Go on until the run has ended
    #[arg(long, short)]
    follow: bool,

    /// Whose lines, with commas
    #[arg(long, value_name = "WHO", value_enum, value_delimiter = ',')]
    only: Vec<Who>,
}

/// Who writes a log.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
enum Who {
    /// The guest's kernel, and who writes into its log
    Console,
    /// The devices
    Backend,
    /// The guest's first process and its agent
    Agent,
    /// QEMU
    Qemu,
}

impl Who {
    /// Who writes the file of this name.
    fn of(name: &str) -> Option<Self> {
        let name = name.rsplit('/').next().unwrap_or(name);
        [
            ("console", Self::Console),
            ("backend", Self::Backend),
            ("qemu", Self::Qemu),
        ]
        .into_iter()
        .find_map(|(begin, who)| name.starts_with(begin).then_some(who))
    }
}

/// `cdm logs`.
pub fn run(ctx: &Context, args: &LogsArgs) -> Result<ExitCode> {
    let folder = runs::find(ctx, runs::GUESTS, args.run.as_deref())?;
    eprintln!("cdm: logs in {}", folder.display());
    let mut logs = Logs {
        folder: &folder,
        only: &args.only,
        read: BTreeMap::new(),
    };
    match logs.print(args.follow, &mut io::stdout().lock()) {
        // Whoever closed the pipe has read enough.
        Err(error) if is_closed_pipe(&error) => Ok(ExitCode::SUCCESS),
        result => result.map(|()| ExitCode::SUCCESS),
    }
}

fn is_closed_pipe(error: &anyhow::Error) -> bool {
    let io = error.downcast_ref::<io::Error>();
    io.is_some_and(|error| error.kind() == io::ErrorKind::BrokenPipe)
}

struct Logs<'a> {
    folder: &'a Path,
    only: &'a [Who],
    /// How far each file was read, and the beginning of a line whose end was not there.
    read: BTreeMap<String, (u64, Vec<u8>)>,
}

impl Logs<'_> {
    fn print(&mut self, follow: bool, out: &mut impl Write) -> Result<()> {
        loop {
            // First whether it goes on, then what it has said: nothing is missed.
            let goes_on = follow && runs::is_under_way(self.folder);
            self.print_new(out)?;
            if !goes_on {
                break;
            }
            out.flush()?;
            thread::sleep(LOOK_INTERVAL);
        }
        for (name, (_, rest)) in &self.read {
            if !rest.is_empty() {
                self.line(name, rest, out)?;
            }
        }
        Ok(out.flush()?)
    }

    fn print_new(&mut self, out: &mut impl Write) -> Result<()> {
        for path in cache::files_below(self.folder)? {
            let name = path.strip_prefix(self.folder)?.to_string_lossy();
            let Some(name) = name.strip_suffix(".log") else {
                continue;
            };
            if !self.is_wanted(name) {
                continue;
            }
            let (at, mut bytes) = self.read.remove(name).unwrap_or_default();
            let new = read_from(&path, at)?;
            let at = at + new.len() as u64;
            bytes.extend(new);
            while let Some(end) = bytes.iter().position(|byte| *byte == b'\n') {
                let rest = bytes.split_off(end + 1);
                self.line(name, &bytes, out)?;
                bytes = rest;
            }
            self.read.insert(name.to_owned(), (at, bytes));
        }
        Ok(())
    }

    /// Whether lines of this file may be among those that are wanted.
    fn is_wanted(&self, name: &str) -> bool {
        let Some(who) = Who::of(name) else {
            return false;
        };
        let agents = who == Who::Console && self.only.contains(&Who::Agent);
        self.only.is_empty() || self.only.contains(&who) || agents
    }

    fn line(&self, name: &str, line: &[u8], out: &mut impl Write) -> Result<()> {
        let text = String::from_utf8_lossy(line);
        let text = text.trim_end();
        let only_agent = !self.only.is_empty() && !self.only.contains(&Who::Console);
        if Who::of(name) == Some(Who::Console) && only_agent && !text.contains(AGENT) {
            return Ok(());
        }
        Ok(writeln!(out, "{name:<8} | {text}")?)
    }
}

fn read_from(path: &Path, at: u64) -> Result<Vec<u8>> {
    let read = || -> io::Result<Vec<u8>> {
        let mut file = File::open(path)?;
        file.seek(SeekFrom::Start(at))?;
        let mut bytes = Vec::new();
        file.read_to_end(&mut bytes)?;
        Ok(bytes)
    };
    read().with_context(|| format!("cannot read {}", path.display()))
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    fn printed(folder: &Path, only: &[Who]) -> String {
        let mut logs = Logs {
            folder,
            only,
            read: BTreeMap::new(),
        };
        let mut out = Vec::new();
        logs.print(false, &mut out).expect("printed");
        String::from_utf8(out).expect("text")
    }

    fn run_with_logs() -> tempfile::TempDir {
        let dir = tempfile::tempdir().expect("temporary folder");
        fs::create_dir(dir.path().join("plugged1")).expect("made");
        for (file, text) in [
            (
                "console.log",
                "[0.1] kernel\r\n[0.2] cdm-init: agent: x\n[0.3] cut",
            ),
            ("backend0.log", "device\n"),
            ("plugged1/backend1.log", "plugged\n"),
            ("qemu.log", "qemu\n"),
            ("commands.txt", "no log\n"),
            ("other.log", "nobody's\n"),
        ] {
            fs::write(dir.path().join(file), text).expect("written");
        }
        dir
    }

    #[test]
    fn every_line_has_the_name_of_who_said_it_and_one_without_an_end_is_not_lost() {
        let dir = run_with_logs();
        let mut lines: Vec<String> = printed(dir.path(), &[])
            .lines()
            .map(str::to_owned)
            .collect();
        lines.sort();
        assert_eq!(
            lines,
            [
                "backend0 | device",
                "console  | [0.1] kernel",
                "console  | [0.2] cdm-init: agent: x",
                "console  | [0.3] cut",
                "plugged1/backend1 | plugged",
                "qemu     | qemu",
            ]
        );
    }

    #[test]
    fn lines_of_one_are_printed_alone() {
        let dir = run_with_logs();
        let agent = "console  | [0.2] cdm-init: agent: x\n";
        assert_eq!(printed(dir.path(), &[Who::Agent]), agent);
        assert_eq!(printed(dir.path(), &[Who::Qemu]), "qemu     | qemu\n");
        let both = printed(dir.path(), &[Who::Qemu, Who::Agent]);
        assert_eq!(both.lines().count(), 2, "{both}");
    }

    #[test]
    fn lines_that_come_while_it_follows_are_printed_once_and_it_ends_with_the_run() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let ctx = Context::for_test(dir.path());
        let run = runs::folder(&ctx, runs::GUESTS, None).expect("a run under way");
        let console = run.join("console.log");
        fs::write(&console, "one\n").expect("written");
        let (folder, wrote) = (run.clone(), console.clone());
        let follower = thread::spawn(move || {
            let mut logs = Logs {
                folder: &folder,
                only: &[],
                read: BTreeMap::new(),
            };
            let mut out = Vec::new();
            logs.print(true, &mut out).expect("printed");
            String::from_utf8(out).expect("text")
        });
        thread::sleep(2 * LOOK_INTERVAL);
        let mut file = File::options().append(true).open(wrote).expect("there");
        file.write_all(b"tw").expect("written");
        thread::sleep(2 * LOOK_INTERVAL);
        file.write_all(b"o\n").expect("written");
        assert!(!follower.is_finished(), "it ended before its run");
        runs::release(&run);
        let said = follower.join().expect("it ends");
        assert_eq!(said, "console  | one\nconsole  | two\n");
    }
}
