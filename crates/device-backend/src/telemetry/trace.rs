// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A time line for Chrome's `about:tracing` and for Perfetto, in their trace-event JSON.
//!
//! One row a virtqueue, not one a thread: a RESET carries commands of all queues to their
//! end in the control worker, and the row of such a command is still its queue's. Workers
//! hand records to a writer and never wait for the file; what it is too slow for is
//! counted. Times are those of CLOCK_MONOTONIC, in microseconds.

use super::{Ended, status_name};
use crate::sandbox::{Role, Sandbox};
use cdm_protocol::{QUEUE_CONTROL, QUEUE_FIRST_COMMAND};
use nix::time::{ClockId, clock_gettime};
use serde::Serialize;
use serde_json::{Map, Value, json};
use std::fs::File;
use std::io::{self, BufWriter, Write};
use std::path::Path;
use std::sync::mpsc::{Receiver, SyncSender, TrySendError, sync_channel};
use std::sync::{Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::{Duration, Instant};
use tracing::warn;

/// Records that wait for the file. Some seconds of what a busy device does.
const WAITING_MAX: usize = 1 << 16;

/// The file of `--trace`, open and empty.
#[derive(Debug)]
pub struct TraceFile(File);

/// A trace that is being written.
#[derive(Debug)]
pub struct Trace {
    sender: SyncSender<Message>,
    writer: Mutex<Option<JoinHandle<()>>>,
    /// The same moment on both clocks.
    epoch: (Instant, Duration),
}

#[derive(Debug)]
enum Message {
    Record(Record),
    End,
}

/// One event of the format.
#[derive(Debug, Serialize)]
struct Record {
    name: &'static str,
    cat: &'static str,
    /// What kind: X has a duration, i is a moment, M names a row.
    ph: &'static str,
    /// Microseconds.
    ts: f64,
    #[serde(skip_serializing_if = "Option::is_none")]
    dur: Option<f64>,
    /// The scope of a moment: its row.
    #[serde(skip_serializing_if = "Option::is_none")]
    s: Option<&'static str>,
    pid: u32,
    tid: u16,
    args: Map<String, Value>,
}

impl TraceFile {
    /// Makes the file.
    pub fn create(path: &Path) -> io::Result<Self> {
        File::create(path).map(Self)
    }
}

impl Trace {
    /// Starts the thread that writes.
    pub fn start(file: TraceFile, num_queues: u16, sandbox: Sandbox) -> io::Result<Self> {
        let (sender, receiver) = sync_channel(WAITING_MAX);
        let epoch = (Instant::now(), monotonic()?);
        let writer = thread::Builder::new()
            .name("trace".to_owned())
            .spawn(move || {
                sandbox.enter(Role::Trace);
                if let Err(error) = write(file.0, num_queues, &receiver) {
                    warn!(%error, "the trace ends here");
                }
            })?;
        Ok(Self {
            sender,
            writer: Mutex::new(Some(writer)),
            epoch,
        })
    }

    /// Records a request; false if there was no room.
    pub fn request(&self, ended: &Ended<'_>) -> bool {
        let completion = ended.completion;
        let mut args = Map::new();
        args.insert("status".to_owned(), status_name(completion).into());
        args.insert("bytes".to_owned(), completion.bytes_done.get().into());
        if let Some(picoseconds) = ended.simulated {
            args.insert("simulated_us".to_owned(), (picoseconds as f64 / 1e6).into());
        }
        if !ended.hits.is_empty() {
            let hits: Vec<_> = ended.hits.iter().map(|kind| kind.name()).collect();
            args.insert("faults".to_owned(), hits.into());
        }
        self.send(Record {
            name: ended.opcode,
            cat: "request",
            ph: "X",
            ts: self.microseconds(ended.began),
            dur: Some(ended.began.elapsed().as_secs_f64() * 1e6),
            s: None,
            pid: std::process::id(),
            tid: ended.queue,
            args,
        })
    }

    /// Records a moment; false if there was no room.
    pub fn moment(&self, name: &'static str, queue: u16) -> bool {
        self.send(Record {
            name,
            cat: "device",
            ph: "i",
            ts: self.microseconds(Instant::now()),
            dur: None,
            s: Some("t"),
            pid: std::process::id(),
            tid: queue,
            args: Map::new(),
        })
    }

    /// Writes what waits and the end, and no more.
    pub fn finish(&self) {
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(writer) = writer.take() {
            // Fails if the writer has given up.
            let _ = self.sender.send(Message::End);
            let _ = writer.join();
        }
    }

    fn send(&self, record: Record) -> bool {
        match self.sender.try_send(Message::Record(record)) {
            Ok(()) => true,
            Err(TrySendError::Full(_) | TrySendError::Disconnected(_)) => false,
        }
    }

    fn microseconds(&self, instant: Instant) -> f64 {
        let (epoch, monotonic) = self.epoch;
        (monotonic + instant.saturating_duration_since(epoch)).as_secs_f64() * 1e6
    }
}

fn monotonic() -> io::Result<Duration> {
    Ok(clock_gettime(ClockId::CLOCK_MONOTONIC)?.into())
}

/// Writes until the end. A file that was cut off in between can be read too: the format
/// allows the last bracket to be missing.
fn write(file: File, num_queues: u16, receiver: &Receiver<Message>) -> io::Result<()> {
    let mut file = BufWriter::new(file);
    let row = |name: &str, tid: Option<u16>, value: String| json!({"name": name, "ph": "M", "pid": std::process::id(), "tid": tid.unwrap_or(0), "args": {"name": value}});
    write!(
        file,
        "[\n{}",
        row("process_name", None, "cdm-backend".to_owned())
    )?;
    for queue in (0..num_queues).filter(|&q| q == QUEUE_CONTROL || q >= QUEUE_FIRST_COMMAND) {
        let name = match queue {
            QUEUE_CONTROL => "control queue".to_owned(),
            _ => format!("command queue {queue}"),
        };
        write!(file, ",\n{}", row("thread_name", Some(queue), name))?;
    }
    loop {
        // While there is more to come, the buffer is left to fill.
        let message = match receiver.try_recv() {
            Ok(message) => message,
            Err(_) => {
                file.flush()?;
                match receiver.recv() {
                    Ok(message) => message,
                    Err(_) => Message::End,
                }
            }
        };
        match message {
            Message::Record(record) => {
                file.write_all(b",\n")?;
                serde_json::to_writer(&mut file, &record)?;
            }
            Message::End => {
                file.write_all(b"\n]\n")?;
                return file.flush();
            }
        }
    }
}
