// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One file of trace events from those of the devices and the guest's trace.
//!
//! Nothing is held in memory but commands on their way: viewers sort by themselves.

use std::collections::{BTreeSet, HashMap};
use std::fs::File;
use std::io::{self, BufRead, BufReader, BufWriter, Write};
use std::path::{Path, PathBuf};

use cdm_protocol::{Opcode, Status};
use serde::de::IgnoredAny;
use serde_json::{Value, json};

use super::clock::{Clock, Exchange};
use super::ftrace::{self, Event, Line};

/// What was collected from one boot of the guest.
#[derive(Clone, Debug, Default)]
pub struct GuestPart {
    /// Its `trace_pipe`, as far as it came; there may be none.
    pub text: PathBuf,
    /// The exchanges of times.
    pub exchanges: Vec<Exchange>,
    /// Events beyond what is kept of one boot.
    pub cut: u64,
    /// Why it is not all of it.
    pub note: Option<String>,
}

/// What came out.
#[derive(Clone, Debug, Default, PartialEq)]
pub struct Summary {
    /// Records of devices.
    pub device_records: u64,
    /// Tracepoints of the guest.
    pub guest_events: u64,
    /// Tracepoints that nobody read in time.
    pub lost: u64,
    /// The largest error of a guest's clock, in microseconds.
    pub error: Option<f64>,
    /// What is missing, and why.
    pub notes: Vec<String>,
}

/// Writes the merged file. `guest` is the number of the guest's process in it.
pub fn merge(
    path: &Path,
    devices: &[PathBuf],
    boots: &[GuestPart],
    guest: u32,
) -> io::Result<Summary> {
    let mut out = Writer {
        file: BufWriter::new(File::create(path)?),
        is_first: true,
    };
    out.file.write_all(b"{\"traceEvents\":[\n")?;
    let mut summary = Summary::default();
    for device in devices {
        match copy_device(&mut out, device) {
            Ok(records) => summary.device_records += records,
            Err(Broken::Read(error)) => {
                let note = format!("{} cannot be read: {error}", device.display());
                summary.notes.push(note);
            }
            Err(Broken::Write(error)) => return Err(error),
        }
    }
    let mut told = Vec::new();
    out.record(&json!({
        "name": "process_name", "ph": "M", "pid": guest, "tid": 0, "args": {"name": "guest"},
    }))?;
    for (boot, part) in boots.iter().enumerate() {
        let drawn = draw_guest(&mut out, part, boot, guest);
        let (events, lost, clock) = match drawn {
            Ok(drawn) => drawn,
            Err(Broken::Read(error)) => {
                let note = format!("{} cannot be read: {error}", part.text.display());
                summary.notes.push(note);
                continue;
            }
            Err(Broken::Write(error)) => return Err(error),
        };
        summary.guest_events += events;
        summary.lost += lost;
        let error = clock.as_ref().map(Clock::error);
        summary.error = error.into_iter().chain(summary.error).reduce(f64::max);
        let mut notes: Vec<String> = part.note.iter().cloned().collect();
        if clock.is_none() {
            let note = "the guest's clock is not known, so none of its events is drawn";
            notes.push(note.to_owned());
        }
        told.push(json!({
            "boot": boot,
            "events": events,
            "events_lost": lost,
            "clock_error_us": error,
            "clock_exchanges": clock.map_or(0, |clock| clock.exchanges()),
            "incomplete": notes,
        }));
        summary.notes.extend(notes);
    }
    let other = json!({
        "clock": "microseconds of the host's CLOCK_MONOTONIC",
        "guest_pid": guest,
        "device_records": summary.device_records,
        "guest": told,
        "incomplete": summary.notes,
    });
    write!(out.file, "\n],\"otherData\":{other}}}\n")?;
    out.file.flush()?;
    Ok(summary)
}

/// Which side failed.
enum Broken {
    Read(io::Error),
    Write(io::Error),
}

struct Writer {
    file: BufWriter<File>,
    is_first: bool,
}

impl Writer {
    fn line(&mut self, record: &[u8]) -> io::Result<()> {
        if !std::mem::replace(&mut self.is_first, false) {
            self.file.write_all(b",\n")?;
        }
        self.file.write_all(record)
    }

    fn record(&mut self, record: &Value) -> io::Result<()> {
        self.line(record.to_string().as_bytes())
    }
}

/// Calls `each` with each line of a file; bytes that are no text become marks of it.
fn lines(path: &Path, mut each: impl FnMut(&str) -> Result<(), Broken>) -> Result<(), Broken> {
    let mut file = BufReader::new(File::open(path).map_err(Broken::Read)?);
    let mut line = Vec::new();
    loop {
        line.clear();
        if file.read_until(b'\n', &mut line).map_err(Broken::Read)? == 0 {
            return Ok(());
        }
        each(String::from_utf8_lossy(&line).trim_end())?;
    }
}

/// Takes over a device's records, one a line. The last one of a device that was killed may be cut
/// off.
fn copy_device(out: &mut Writer, path: &Path) -> Result<u64, Broken> {
    let stem = path.file_stem().unwrap_or_default().to_string_lossy();
    let device = stem.trim_start_matches("trace").to_owned();
    let mut records = 0;
    lines(path, |line| {
        let line = line.trim_end_matches(',');
        if serde_json::from_str::<IgnoredAny>(line).is_err() || !line.starts_with('{') {
            return Ok(());
        }
        if line.contains("\"process_name\"")
            && let Ok(mut record) = serde_json::from_str::<Value>(line)
        {
            record["args"]["name"] = format!("device {device} (cdm-backend)").into();
            return out.record(&record).map_err(Broken::Write);
        }
        if !line.contains("\"thread_name\"") {
            records += 1;
        }
        out.line(line.as_bytes()).map_err(Broken::Write)
    })?;
    Ok(records)
}

/// Draws a mark for each tracepoint on the row of its CPU, and a bar for each command from
/// `cdm_command_submit` to `cdm_command_done`. Gives events, lost events and the clock.
fn draw_guest(
    out: &mut Writer,
    part: &GuestPart,
    boot: usize,
    guest: u32,
) -> Result<(u64, u64, Option<Clock>), Broken> {
    if !part.text.exists() {
        return Ok((0, part.cut, None));
    }
    let (mut markers, mut events, mut lost) = (HashMap::new(), 0_u64, part.cut);
    lines(&part.text, |line| {
        match ftrace::parse(line) {
            Line::Event(_) => events += 1,
            Line::Clock(number, at) => {
                markers.insert(number, at);
            }
            // Without a number it is one at least.
            Line::Lost(count) => lost += count.unwrap_or(1),
            Line::Other => {}
        }
        Ok(())
    })?;
    let Some(clock) = Clock::new(&part.exchanges, &markers) else {
        return Ok((0, lost + events, None));
    };
    let mut commands = Commands::new(boot);
    let mut cpus = BTreeSet::new();
    lines(&part.text, |line| {
        let (event, at) = match ftrace::parse(line) {
            Line::Event(event) => {
                let at = clock.host(event.at);
                (event, at)
            }
            // What was lost may have been the end of anything.
            Line::Lost(_) | Line::Clock(..) | Line::Other => return Ok(()),
        };
        if cpus.insert(event.cpu) {
            let name = format!("CPU {}", event.cpu);
            out.record(&json!({
                "name": "thread_name", "ph": "M", "pid": guest, "tid": event.cpu,
                "args": {"name": name},
            }))
            .map_err(Broken::Write)?;
        }
        let mut arguments = event.arguments();
        arguments.insert("task".to_owned(), event.task.into());
        arguments.insert("task_pid".to_owned(), event.pid.into());
        out.record(&json!({
            "name": event.name, "cat": "guest", "ph": "i", "s": "t", "ts": at,
            "pid": guest, "tid": event.cpu, "args": arguments,
        }))
        .map_err(Broken::Write)?;
        match commands.bar(&event, at, guest) {
            Some(record) => out.record(&record).map_err(Broken::Write),
            None => Ok(()),
        }
    })?;
    Ok((events, lost, Some(clock)))
}

/// Commands on their way. A bar of one CPU's row could not overlap another one as commands do, and
/// a command ends on whatever CPU, so each is a row of its own as long as it needs one.
struct Commands {
    boot: usize,
    begun: u64,
    /// By device, queue and token: the bar's number and name.
    on_way: HashMap<(u64, u64, u64), (u64, &'static str)>,
}

/// What a number stands for that this program's protocol does not have.
const UNKNOWN: &str = "unknown";

impl Commands {
    fn new(boot: usize) -> Self {
        Self {
            boot,
            begun: 0,
            on_way: HashMap::new(),
        }
    }

    /// The begin or the end of a bar, if the event is one.
    fn bar(&mut self, event: &Event<'_>, at: f64, guest: u32) -> Option<Value> {
        let key = (
            event.number("device")?,
            event.number("queue")?,
            event.number("token")?,
        );
        let (ph, (number, name)) = match event.name {
            "cdm_command_submit" => {
                // Whoever had the token before has ended, and that was lost: its bar has no end.
                let bar = (self.begun, opcode(event));
                self.begun += 1;
                self.on_way.insert(key, bar);
                ("b", bar)
            }
            // Of one that began before the trace, or whose begin was lost, there is the mark.
            "cdm_command_done" => ("e", self.on_way.remove(&key)?),
            _ => return None,
        };
        let mut arguments = event.arguments();
        if ph == "e" {
            arguments.insert("status_name".to_owned(), status(event).into());
        }
        Some(json!({
            "name": name, "cat": "command", "ph": ph, "id": format!("{}.{number}", self.boot),
            "ts": at, "pid": guest, "tid": event.cpu, "args": arguments,
        }))
    }
}

fn opcode(event: &Event<'_>) -> &'static str {
    let number = event.number("opcode");
    let mut all = Opcode::ALL.iter();
    all.find(|(opcode, _)| Some(opcode.get().into()) == number)
        .map_or(UNKNOWN, |(_, name)| name)
}

fn status(event: &Event<'_>) -> &'static str {
    let number = event.number("status");
    let mut all = Status::ALL.iter();
    all.find(|(status, _)| Some(status.get().into()) == number)
        .map_or(UNKNOWN, |(_, name)| name)
}

#[cfg(test)]
mod tests {
    use std::fs;

    use proptest::prelude::*;
    use tempfile::TempDir;

    use super::*;

    const GUEST: u32 = 4000;
    const DEVICE: &str = "[\n\
        {\"name\":\"process_name\",\"ph\":\"M\",\"pid\":9,\"tid\":0,\"args\":{\"name\":\"cdm-backend\"}},\n\
        {\"name\":\"thread_name\",\"ph\":\"M\",\"pid\":9,\"tid\":2,\"args\":{\"name\":\"command queue 2\"}},\n\
        {\"name\":\"COPY\",\"cat\":\"request\",\"ph\":\"X\",\"ts\":1200.5,\"dur\":10.0,\"pid\":9,\"tid\":2,\"args\":{}}";

    fn copy_number() -> u16 {
        Opcode::COPY.get()
    }

    fn submit(at: u64, token: u64) -> String {
        let opcode = copy_number();
        format!(
            " a-1 [000] ..... 0.{at:06}: cdm_command_submit: device=0 queue=0 token={token} \
             opcode={opcode} ranges=2 bytes=8\n"
        )
    }

    fn done(at: u64, token: u64) -> String {
        format!(
            " b-2 [001] ..... 0.{at:06}: cdm_command_done: device=0 queue=0 token={token} \
             status=0 result=0x0 bytes=8\n"
        )
    }

    /// The host is 1000 µs ahead, and one exchange of 20 µs tells.
    fn guest_part(folder: &TempDir, events: &str) -> GuestPart {
        let text = folder.path().join("trace-guest0.txt");
        let marker = " sh-3 [000] ..... 0.000100: tracing_mark_write: cdm-clock 0\n";
        fs::write(&text, format!("{marker}{events}")).expect("written");
        GuestPart {
            text,
            exchanges: vec![Exchange {
                round: 0,
                number: 0,
                sent: 1090.0,
                heard: 1110.0,
            }],
            ..GuestPart::default()
        }
    }

    fn merged(folder: &TempDir, devices: &[PathBuf], boots: &[GuestPart]) -> (Summary, Value) {
        let path = folder.path().join("timeline.json");
        let summary = merge(&path, devices, boots, GUEST).expect("merged");
        let text = fs::read_to_string(path).expect("a file");
        (summary, serde_json::from_str(&text).expect("JSON"))
    }

    fn records<'a>(file: &'a Value, name: &str, ph: &str) -> Vec<&'a Value> {
        let all = file["traceEvents"].as_array().expect("an array");
        let fits = |record: &&Value| record["name"] == name && record["ph"] == ph;
        all.iter().filter(fits).collect()
    }

    #[test]
    fn command_of_the_guest_lies_around_the_bar_of_the_device() {
        let folder = TempDir::new().expect("a folder");
        let device = folder.path().join("trace0.json");
        fs::write(&device, format!("{DEVICE}\n]\n")).expect("written");
        let part = guest_part(&folder, &(submit(150, 7) + &done(300, 7)));
        let (summary, file) = merged(&folder, &[device], &[part]);
        assert_eq!((summary.device_records, summary.guest_events), (1, 2));
        assert_eq!(summary.notes, [] as [String; 0]);
        let begin = records(&file, "COPY", "b")[0];
        let end = records(&file, "COPY", "e")[0];
        let bar = records(&file, "COPY", "X")[0];
        assert_eq!((&begin["ts"], &end["ts"]), (&json!(1150.0), &json!(1300.0)));
        assert_eq!(begin["id"], end["id"]);
        assert_eq!(bar["ts"], 1200.5);
        assert_eq!(begin["pid"], GUEST);
        let mark = records(&file, "cdm_command_done", "i")[0];
        assert_eq!(
            (&mark["tid"], &mark["args"]["task"]),
            (&json!(1), &json!("b"))
        );
        let names = records(&file, "process_name", "M");
        let names: Vec<_> = names.iter().map(|r| &r["args"]["name"]).collect();
        assert_eq!(names, ["device 0 (cdm-backend)", "guest"]);
        let told = &file["otherData"]["guest"][0];
        assert_eq!(told["clock_error_us"], json!(summary.error));
        assert_eq!(told["events_lost"], 0);
    }

    #[test]
    fn token_that_is_used_again_makes_another_bar() {
        let folder = TempDir::new().expect("a folder");
        let events = submit(1, 7) + &done(2, 7) + &submit(3, 7) + &submit(4, 7) + &done(5, 7);
        let (_, file) = merged(&folder, &[], &[guest_part(&folder, &events)]);
        let ids = |ph| -> Vec<&Value> {
            let bars = records(&file, "COPY", ph);
            bars.iter().map(|record| &record["id"]).collect()
        };
        assert_eq!(ids("b"), ["0.0", "0.1", "0.2"]);
        // The end of the second one was lost.
        assert_eq!(ids("e"), ["0.0", "0.2"]);
    }

    #[test]
    fn device_that_was_killed_and_a_guest_that_crashed_leave_what_there_is() {
        let folder = TempDir::new().expect("a folder");
        let device = folder.path().join("trace0.json");
        fs::write(&device, format!("{DEVICE},\n{{\"name\":\"CO")).expect("written");
        let missing = folder.path().join("trace1.json");
        let cut = submit(150, 7);
        let events = format!("CPU:0 [LOST 5 EVENTS]\n{}", &cut[..40]);
        let part = GuestPart {
            note: Some("the guest crashed".to_owned()),
            cut: 2,
            ..guest_part(&folder, &events)
        };
        let (summary, file) = merged(&folder, &[device, missing], &[part]);
        assert_eq!((summary.device_records, summary.guest_events), (1, 0));
        assert_eq!(summary.lost, 7);
        assert_eq!(file["otherData"]["guest"][0]["events_lost"], 7);
        let said = &file["otherData"]["incomplete"];
        assert!(said[0].as_str().is_some_and(|note| note.contains("trace1")));
        assert_eq!(said[1], "the guest crashed");
    }

    #[test]
    fn guest_of_which_there_is_nothing_leaves_the_device_and_says_so() {
        let folder = TempDir::new().expect("a folder");
        let device = folder.path().join("trace0.json");
        fs::write(&device, format!("{DEVICE}\n]\n")).expect("written");
        let part = GuestPart {
            text: folder.path().join("trace-guest0.txt"),
            note: Some("no tracefs".to_owned()),
            ..GuestPart::default()
        };
        let (summary, file) = merged(&folder, &[device], &[part]);
        assert_eq!(records(&file, "COPY", "X").len(), 1);
        assert_eq!(summary.notes[0], "no tracefs");
        assert_eq!(summary.error, None);
        assert_eq!(file["otherData"]["guest"][0]["clock_error_us"], Value::Null);
    }

    proptest! {
        /// Whatever begins and ends, or is lost: each end has one begin before it.
        #[test]
        fn ends_have_begins(events in prop::collection::vec((any::<bool>(), 0_u64..4), 0..40)) {
            let folder = TempDir::new().expect("a folder");
            let mut text = String::new();
            for (at, (begins, token)) in events.iter().enumerate() {
                let at = at as u64 + 200;
                text += &if *begins { submit(at, *token) } else { done(at, *token) };
            }
            let (summary, file) = merged(&folder, &[], &[guest_part(&folder, &text)]);
            prop_assert_eq!(summary.guest_events, events.len() as u64);
            let mut begun = HashMap::new();
            for record in file["traceEvents"].as_array().expect("an array") {
                let id = record["id"].as_str().unwrap_or_default().to_owned();
                let ts = record["ts"].as_f64();
                match record["ph"].as_str() {
                    Some("b") => prop_assert!(begun.insert(id, ts).is_none(), "two begins"),
                    Some("e") => prop_assert!(begun.remove(&id).is_some_and(|began| began < ts)),
                    _ => {}
                }
            }
        }
    }
}
