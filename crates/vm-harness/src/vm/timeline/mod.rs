// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One time line of a machine: what its devices did, and what its driver did.
//!
//! The devices write traces of their own. The guest's tracepoints go into an ftrace instance of
//! their own, on the clock `mono`, and are read while they come, so a guest that crashes leaves
//! what it did before. Two commands of the guest's agent do all of it: one reads `trace_pipe`, and
//! a shell makes the instance, answers exchanges of times (see [`clock`]) and ends it.

mod clock;
mod ftrace;
mod merge;

use std::fs::{self, File};
use std::io::Write;
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use cdm_agent_protocol::{Command, Exec, ExitStatus};
use nix::time::{ClockId, clock_gettime};

use super::agent::{Agent, Event, Input, Running};
use crate::progress::Progress;
use clock::Exchange;
use merge::{GuestPart, merge};

/// Name of the merged file, beside the logs.
pub const FILE: &str = "timeline.json";

/// The guest's buffer for each CPU: some ten thousand events, should the reader not keep up.
const BUFFER_KIB: u32 = 1024;
/// What is kept of one boot. The rest is counted.
const TEXT_BYTES_MAX: u64 = 512 << 20;
/// Between two rounds of exchanges.
const ROUND_INTERVAL: Duration = Duration::from_secs(1);
/// Exchanges of a round: the first ones of a while find caches cold.
const EXCHANGES: u64 = 4;
/// Of the first and the last round, whose error nothing makes up for.
const EXCHANGES_AT_THE_ENDS: u64 = 12;
/// What one answer of the guest may take, whatever else its CPUs do.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);
/// What may pass between the last event and the end of the guest's trace here.
const END_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks whether reading goes on.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// The guest's side. An answer follows what it answers; `clock` marks the trace in between, in one
/// write of a shell's own `echo`. The driver may come, go and come back: `watch` turns its events
/// on whenever they are off.
fn script(instance: &str) -> String {
    format!(
        "t={instance}\n\
         mkdir -p $t && echo 0 > $t/events/enable && echo mono > $t/trace_clock &&\n\
         echo {BUFFER_KIB} > $t/buffer_size_kb && echo > $t/trace && exec 3> $t/trace_marker ||\n\
         exit 1\n\
         echo ready\n\
         while read -r word number; do\n\
         case $word in\n\
         watch) if [ -e $t/events/cdm/enable ]; then\n\
         read -r on < $t/events/cdm/enable; [ \"$on\" = 1 ] || echo 1 > $t/events/cdm/enable; fi;;\n\
         clock) echo \"{CLOCK}$number\" >&3;;\n\
         off) echo 0 > $t/events/enable;;\n\
         end) echo {END} >&3;;\n\
         esac\n\
         echo $number\n\
         done\n",
        CLOCK = ftrace::CLOCK,
        END = ftrace::END,
    )
}

/// The instance of tracefs.
const INSTANCE: &str = "/sys/kernel/tracing/instances/cdm-timeline";

/// The time line of a machine. It is written when it is dropped, after the machine and its devices.
#[derive(Debug)]
pub struct Timeline {
    progress: Progress,
    logs: PathBuf,
    /// Number of the guest's process.
    guest: u32,
    boots: Vec<Boot>,
}

/// What is collected of one boot.
#[derive(Debug)]
struct Boot {
    shared: Arc<Mutex<GuestPart>>,
    /// Has the collection end, as its loss does.
    stop: Option<Sender<()>>,
    /// Closed when nothing follows.
    done: Receiver<()>,
}

impl Timeline {
    /// A time line for a guest that QEMU runs in the process `guest`, beside the logs.
    pub fn new(progress: &Progress, logs: &Path, guest: u32) -> Self {
        Self {
            progress: progress.clone(),
            logs: logs.to_owned(),
            guest,
            boots: Vec::new(),
        }
    }

    /// Collects from a guest that has just booted, until [`Self::stop`]. If it cannot be, that is
    /// said, and the guest goes on without it.
    pub fn collect(&mut self, agent: &Agent) {
        self.stop();
        let text = self
            .logs
            .join(format!("trace-guest{}.txt", self.boots.len()));
        let shared = Arc::new(Mutex::new(GuestPart {
            text: text.clone(),
            ..GuestPart::default()
        }));
        let (stop, stopped) = channel();
        let (alive, done) = channel();
        let collector = Collector {
            shared: Arc::clone(&shared),
            stopped,
        };
        if let Err(error) = collector.start(agent, &text, alive) {
            let note = format!("the guest's tracepoints are not collected: {error:#}");
            self.progress.say(format!("cdm: {note}"));
            lock(&shared).note = Some(note);
        }
        self.boots.push(Boot {
            shared,
            stop: Some(stop),
            done,
        });
    }

    /// Ends the collection and waits for what is on its way. Whatever boots next is collected by
    /// another [`Self::collect`].
    pub fn stop(&mut self) {
        let Some(boot) = self.boots.last_mut() else {
            return;
        };
        if boot.stop.take().is_none() {
            return;
        }
        // Nothing is ever sent: threads that have ended drop their end.
        if boot.done.recv_timeout(END_TIMEOUT) == Err(RecvTimeoutError::Timeout) {
            let mut part = lock(&boot.shared);
            part.note = Some("the guest did not bring its trace to an end".to_owned());
        }
    }

    fn write(&mut self) -> Result<()> {
        self.stop();
        let boots: Vec<_> = self
            .boots
            .iter()
            .map(|boot| lock(&boot.shared).clone())
            .collect();
        let path = self.logs.join(FILE);
        let devices = device_traces(&self.logs)?;
        let summary = merge(&path, &devices, &boots, self.guest)
            .with_context(|| format!("cannot write {}", path.display()))?;
        let mut line = format!(
            "cdm: time line: {} ({} records of devices, {} events of the guest",
            path.display(),
            summary.device_records,
            summary.guest_events
        );
        if summary.lost > 0 {
            line += &format!(", {} lost", summary.lost);
        }
        if let Some(error) = summary.error {
            line += &format!(", clocks within {error:.0} us");
        }
        line.push(')');
        for note in &summary.notes {
            line += &format!("\ncdm: the time line is not complete: {note}");
        }
        self.progress.say(line);
        Ok(())
    }
}

impl Drop for Timeline {
    fn drop(&mut self) {
        if let Err(error) = self.write() {
            self.progress
                .say(format!("cdm: there is no time line: {error:#}"));
        }
    }
}

/// Traces of the devices, and of those that were plugged later.
fn device_traces(logs: &Path) -> Result<Vec<PathBuf>> {
    let list = |folder: &Path| -> Result<Vec<PathBuf>> {
        let entries = fs::read_dir(folder)
            .with_context(|| format!("cannot list {}", folder.display()))?
            .map(|entry| Ok(entry?.path()))
            .collect::<Result<Vec<_>>>()?;
        Ok(entries)
    };
    let named = |path: &Path, begin: &str, end: &str| {
        let name = path.file_name().unwrap_or_default().to_string_lossy();
        let number = name
            .strip_prefix(begin)
            .and_then(|rest| rest.strip_suffix(end));
        number.is_some_and(|number| number.parse::<u32>().is_ok())
    };
    let mut files = list(logs)?;
    for folder in files.clone() {
        if named(&folder, "plugged", "") {
            files.extend(list(&folder)?);
        }
    }
    files.retain(|path| named(path, "trace", ".json"));
    files.sort();
    Ok(files)
}

/// One boot's collection.
struct Collector {
    shared: Arc<Mutex<GuestPart>>,
    stopped: Receiver<()>,
}

impl Collector {
    /// Makes the instance, finds out the time and turns events on, in this order. `alive` is held
    /// as long as something may follow.
    fn start(self, agent: &Agent, text: &Path, alive: Sender<()>) -> Result<()> {
        let file = File::create(text).with_context(|| format!("cannot make {}", text.display()))?;
        let mut shell = Shell::start(agent)?;
        let mut rounds = Rounds::default();
        // Without a reader its markers wait in the buffer.
        rounds.round(&mut shell, &self.shared, EXCHANGES_AT_THE_ENDS)?;
        let reader = agent.start(Exec {
            command: Command::Argv(
                ["dd", &format!("if={INSTANCE}/trace_pipe"), "bs=64k"]
                    .map(str::to_owned)
                    .to_vec(),
            ),
            tty: None,
            env: Vec::new(),
            cwd: None,
        })?;
        shell.ask("watch")?;
        let shared = Arc::clone(&self.shared);
        let still = alive.clone();
        thread::Builder::new()
            .name("trace-reader".to_owned())
            .spawn(move || {
                let note = match (Reader { file, bytes: 0 }).run(reader, &shared) {
                    Ok(()) => None,
                    Err(error) => Some(format!("the guest's trace ends early: {error:#}")),
                };
                let mut part = lock(&shared);
                part.note = note.or_else(|| part.note.take());
                drop(still);
            })?;
        thread::Builder::new()
            .name("trace-clock".to_owned())
            .spawn(move || {
                if let Err(error) = self.run(&mut shell, &mut rounds) {
                    // The reader's reason is the better one.
                    let note = format!("the guest's clock was lost: {error:#}");
                    lock(&self.shared).note.get_or_insert(note);
                }
                drop(alive);
            })?;
        Ok(())
    }

    /// A round each second until the end.
    fn run(&self, shell: &mut Shell, rounds: &mut Rounds) -> Result<()> {
        while self.stopped.recv_timeout(ROUND_INTERVAL) == Err(RecvTimeoutError::Timeout) {
            shell.ask("watch")?;
            rounds.round(shell, &self.shared, EXCHANGES)?;
        }
        shell.ask("off")?;
        rounds.round(shell, &self.shared, EXCHANGES_AT_THE_ENDS)?;
        shell.ask("end")?;
        Ok(())
    }
}

/// The shell in the guest.
struct Shell {
    running: Running,
    input: Input,
    asked: u64,
    /// What it said beyond the last line.
    said: Vec<u8>,
    /// What went wrong, in its words.
    errors: String,
}

impl Shell {
    fn start(agent: &Agent) -> Result<Self> {
        let running = agent.start(Exec {
            command: Command::Shell(script(INSTANCE)),
            tty: None,
            env: Vec::new(),
            cwd: None,
        })?;
        let mut shell = Self {
            input: running.input(),
            running,
            asked: 0,
            said: Vec::new(),
            errors: String::new(),
        };
        shell.wait_for("ready")?;
        Ok(shell)
    }

    /// Has it do something, and waits until it has. Gives the number.
    fn ask(&mut self, word: &str) -> Result<u64> {
        let number = self.asked;
        self.asked += 1;
        // A guest that is gone says so below.
        self.input.send(format!("{word} {number}\n").as_bytes());
        self.wait_for(&number.to_string())?;
        Ok(number)
    }

    fn wait_for(&mut self, answer: &str) -> Result<()> {
        let deadline = Instant::now() + ANSWER_TIMEOUT;
        loop {
            while let Some(end) = self.said.iter().position(|byte| *byte == b'\n') {
                let rest = self.said.split_off(end + 1);
                let line = std::mem::replace(&mut self.said, rest);
                if line.trim_ascii_end() == answer.as_bytes() {
                    return Ok(());
                }
            }
            let left = deadline.saturating_duration_since(Instant::now());
            match self.running.next_event(left) {
                Some(Event::Stdout(data)) => self.said.extend(data),
                Some(Event::Stderr(data)) => self.errors += &String::from_utf8_lossy(&data),
                Some(Event::Exit(status)) => {
                    bail!(ended("its shell", status, &self.errors))
                }
                Some(Event::Failed(reason)) => bail!(reason),
                Some(Event::Lost(lost)) => bail!("{lost}"),
                None => bail!("no answer for {} s", ANSWER_TIMEOUT.as_secs()),
            }
        }
    }
}

/// Counts the rounds.
#[derive(Default)]
struct Rounds(u32);

impl Rounds {
    fn round(&mut self, shell: &mut Shell, shared: &Mutex<GuestPart>, count: u64) -> Result<()> {
        let round = self.0;
        self.0 += 1;
        for _ in 0..count {
            let sent = monotonic()?;
            let number = shell.ask("clock")?;
            let exchange = Exchange {
                round,
                number,
                sent,
                heard: monotonic()?,
            };
            lock(shared).exchanges.push(exchange);
        }
        Ok(())
    }
}

/// Microseconds of the clock that the devices' traces have.
fn monotonic() -> Result<f64> {
    let now: Duration = clock_gettime(ClockId::CLOCK_MONOTONIC)?.into();
    Ok(now.as_secs_f64() * 1e6)
}

/// Writes what comes out of `trace_pipe`.
struct Reader {
    file: File,
    bytes: u64,
}

impl Reader {
    /// Reads until the last marker.
    fn run(&mut self, mut running: Running, shared: &Mutex<GuestPart>) -> Result<()> {
        let (mut line, mut errors) = (Vec::new(), String::new());
        loop {
            match running.next_event(LOOK_INTERVAL) {
                Some(Event::Stdout(data)) => {
                    for piece in data.split_inclusive(|byte| *byte == b'\n') {
                        line.extend_from_slice(piece);
                        if !line.ends_with(b"\n") {
                            continue;
                        }
                        let is_end = line.trim_ascii_end().ends_with(ftrace::END.as_bytes());
                        if !self.take(&line)? {
                            lock(shared).cut += 1;
                        }
                        line.clear();
                        if is_end {
                            // It waits for more, which never comes.
                            running.input().signal(libc::SIGKILL);
                            return Ok(());
                        }
                    }
                }
                Some(Event::Stderr(data)) => errors += &String::from_utf8_lossy(&data),
                Some(Event::Exit(status)) => {
                    bail!(ended("its reader", status, &errors))
                }
                Some(Event::Failed(reason)) => bail!(reason),
                Some(Event::Lost(lost)) => bail!("{lost}"),
                None => {}
            }
        }
    }

    /// Keeps a line; false if there is no room but for markers.
    fn take(&mut self, line: &[u8]) -> Result<bool> {
        let text = String::from_utf8_lossy(line);
        let is_event = matches!(ftrace::parse(text.trim_end()), ftrace::Line::Event(_));
        if is_event && self.bytes >= TEXT_BYTES_MAX {
            return Ok(false);
        }
        self.bytes += line.len() as u64;
        self.file
            .write_all(line)
            .context("cannot write the guest's trace")?;
        Ok(true)
    }
}

/// How a command ended that was to go on, with its own words if it has any.
fn ended(what: &str, status: ExitStatus, errors: &str) -> String {
    match errors.trim_end() {
        "" => format!("{what} ended with {status:?}"),
        errors => format!("{what} ended with {status:?}: {errors}"),
    }
}

fn lock(part: &Mutex<GuestPart>) -> MutexGuard<'_, GuestPart> {
    // Each change is one assignment.
    part.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use std::io::Read;
    use std::os::unix::net::UnixStream;
    use std::process::{self, Stdio};

    use serde_json::Value;
    use tempfile::TempDir;

    use super::*;

    /// Runs the guest's script here, on a folder that stands for the instance. Gives whether it
    /// succeeded, and what it said.
    fn run_script(instance: &Path, input: &str) -> (bool, String) {
        let mut shell = process::Command::new("/bin/sh")
            .args(["-c", &script(&instance.display().to_string())])
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::null())
            .spawn()
            .expect("a shell");
        let mut stdin = shell.stdin.take().expect("a pipe");
        // A script that has ended reads nothing.
        let _ = stdin.write_all(input.as_bytes());
        drop(stdin);
        let mut said = String::new();
        let mut stdout = shell.stdout.take().expect("a pipe");
        stdout.read_to_string(&mut said).expect("text");
        (shell.wait().expect("it ends").success(), said)
    }

    fn instance() -> TempDir {
        let folder = TempDir::new().expect("a folder");
        fs::create_dir_all(folder.path().join("events/cdm")).expect("made");
        folder
    }

    #[test]
    fn guest_answers_each_request_and_marks_its_trace_for_times() {
        let folder = instance();
        let file = |name: &str| fs::read_to_string(folder.path().join(name)).expect(name);
        fs::write(folder.path().join("events/cdm/enable"), "0\n").expect("written");
        let (_, said) = run_script(folder.path(), "watch 0\nclock 1\nclock 2\noff 3\nend 4\n");
        assert_eq!(said, "ready\n0\n1\n2\n3\n4\n");
        assert_eq!(file("trace_marker"), "cdm-clock 1\ncdm-clock 2\ncdm-end\n");
        assert_eq!(file("trace_clock"), "mono\n");
        assert_eq!(file("events/cdm/enable"), "1\n");
        assert_eq!(file("events/enable"), "0\n");
    }

    #[test]
    fn guest_without_the_driver_answers_too() {
        let folder = TempDir::new().expect("a folder");
        fs::create_dir(folder.path().join("events")).expect("made");
        let (_, said) = run_script(folder.path(), "watch 0\nclock 1\n");
        assert_eq!(said, "ready\n0\n1\n");
    }

    #[test]
    fn guest_without_tracefs_is_never_ready() {
        let folder = TempDir::new().expect("a folder");
        let (success, said) = run_script(folder.path(), "clock 0\n");
        assert_eq!((success, said.as_str()), (false, ""));
    }

    #[test]
    fn guest_that_cannot_be_collected_from_leaves_the_devices_and_says_so() {
        let folder = TempDir::new().expect("a folder");
        let logs = folder.path();
        fs::create_dir(logs.join("plugged1")).expect("made");
        let record =
            "[\n{\"name\":\"COPY\",\"ph\":\"X\",\"ts\":1.0,\"dur\":1.0,\"pid\":9,\"tid\":2}";
        for name in ["trace0.json", "trace1.json", "plugged1/trace0.json"] {
            fs::write(logs.join(name), record).expect("written");
        }
        // Others' files.
        fs::write(logs.join("tracer.json"), "{}").expect("written");
        let (socket, peer) = UnixStream::pair().expect("a pair");
        let agent = Agent::new(socket, Box::new(|_| {})).expect("an agent");
        drop(peer);
        let mut timeline = Timeline::new(&Progress::silent(), logs, 4000);
        timeline.collect(&agent);
        drop(timeline);
        let text = fs::read_to_string(logs.join(FILE)).expect("a time line");
        let file: Value = serde_json::from_str(&text).expect("JSON");
        let other = &file["otherData"];
        assert_eq!(other["device_records"], 3);
        let said = other["incomplete"][0].as_str().expect("a reason");
        assert!(said.contains("not collected"), "{said}");
    }

    #[test]
    fn events_beyond_what_is_kept_are_refused_and_markers_are_not() {
        let folder = TempDir::new().expect("a folder");
        let path = folder.path().join("trace-guest0.txt");
        let mut reader = Reader {
            file: File::create(&path).expect("made"),
            bytes: TEXT_BYTES_MAX,
        };
        let event = b" a-1 [000] ..... 0.000001: cdm_fault: device=0\n";
        let marker = b" a-1 [000] ..... 0.000002: tracing_mark_write: cdm-clock 1\n";
        assert!(!reader.take(event).expect("nothing to write"));
        assert!(reader.take(marker).expect("written"));
        assert_eq!(fs::read(&path).expect("a file"), marker);
    }
}
