// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The machine's control channel: QEMU's QMP, as far as the harness uses it.

use std::collections::VecDeque;
use std::io::{self, BufRead, BufReader, ErrorKind, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use serde_json::{Value, json};

/// QEMU answers from its main loop, which nothing holds for long; beyond this it
/// hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to QMP.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    /// The start of a line whose end had not come when a wait was over.
    partial: Vec<u8>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects and leaves the negotiation behind.
    pub fn connect(socket: UnixStream) -> Result<Self> {
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut qmp = Self {
            reader: BufReader::new(socket),
            partial: Vec::new(),
            events: VecDeque::new(),
        };
        let greeting = qmp.read()?;
        if greeting.get("QMP").is_none() {
            bail!("QEMU does not greet: {greeting}");
        }
        qmp.execute("qmp_capabilities", Value::Null)?;
        Ok(qmp)
    }

    /// Executes a command and gives its result. Events that come meanwhile are kept.
    pub fn execute(&mut self, command: &str, arguments: Value) -> Result<Value> {
        let mut request = json!({ "execute": command });
        if !arguments.is_null() {
            request["arguments"] = arguments;
        }
        let mut line = request.to_string();
        line.push('\n');
        self.reader
            .get_mut()
            .write_all(line.as_bytes())
            .with_context(|| format!("cannot send {command} to QEMU"))?;
        loop {
            let mut answer = self
                .read()
                .with_context(|| format!("no answer to {command}"))?;
            if let Some(result) = answer.get_mut("return") {
                return Ok(result.take());
            }
            if let Some(error) = answer.get("error") {
                bail!("QEMU refuses {command}: {}", error["desc"]);
            }
            self.events.push_back(answer);
        }
    }

    /// Waits for an event of this name and gives its data; `None` when it did not come
    /// in time.
    pub fn wait_event(&mut self, name: &str, timeout: Duration) -> Result<Option<Value>> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                let mut event = self.events.remove(at).unwrap_or_default();
                return Ok(Some(event["data"].take()));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return Ok(None);
            }
            self.reader.get_ref().set_read_timeout(Some(left))?;
            let line = self.read_line();
            self.reader
                .get_ref()
                .set_read_timeout(Some(ANSWER_TIMEOUT))?;
            match line {
                Ok(event) => self.events.push_back(event),
                Err(error) if timed_out(&error) => return Ok(None),
                Err(error) => return Err(error).with_context(|| format!("waiting for {name}")),
            }
        }
    }

    fn read(&mut self) -> Result<Value> {
        self.read_line().map_err(|error| match timed_out(&error) {
            true => anyhow!("QEMU hangs: no answer in {} s", ANSWER_TIMEOUT.as_secs()),
            false => error,
        })
    }

    fn read_line(&mut self) -> Result<Value> {
        let length = self
            .reader
            .read_until(b'\n', &mut self.partial)
            .context("cannot read from QEMU")?;
        if length == 0 {
            bail!("QEMU closed its control channel");
        }
        let line = std::mem::take(&mut self.partial);
        serde_json::from_slice(&line)
            .with_context(|| format!("QEMU said '{}'", String::from_utf8_lossy(&line).trim_end()))
    }
}

fn timed_out(error: &anyhow::Error) -> bool {
    error
        .downcast_ref::<io::Error>()
        .is_some_and(|error| error.kind() == ErrorKind::WouldBlock)
}

/// Sends a SysRq key to the guest's serial console: a break, then the key.
pub fn send_sysrq(qmp: &mut Qmp, console: &Path, key: u8) -> Result<()> {
    let mut socket = UnixStream::connect(console)
        .with_context(|| format!("cannot open {}", console.display()))?;
    qmp.execute("chardev-send-break", json!({ "id": "console" }))?;
    socket.write_all(&[key])?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::thread;

    /// A QEMU that says these lines, one for each line that it reads after the first.
    fn scripted(lines: &'static [&'static str]) -> UnixStream {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().expect("dup"));
            let mut writer = theirs;
            for line in lines {
                writer
                    .write_all(format!("{line}\n").as_bytes())
                    .expect("the test reads");
                let mut request = String::new();
                reader.read_line(&mut request).expect("the test writes");
            }
        });
        ours
    }

    const GREETING: &str = r#"{"QMP": {"version": {}}}"#;

    #[test]
    fn an_answer_is_found_among_events_and_the_events_are_kept() {
        let socket = scripted(&[
            GREETING,
            r#"{"return": {}}"#,
            "{\"event\": \"RESET\", \"data\": {\"guest\": true}}\n{\"return\": {\"a\": 1}}",
        ]);
        let mut qmp = Qmp::connect(socket).expect("connected");
        let result = qmp.execute("query-x", json!({"b": 2})).expect("answered");
        assert_eq!(result, json!({"a": 1}));
        let data = qmp
            .wait_event("RESET", Duration::from_secs(1))
            .expect("kept");
        assert_eq!(data, Some(json!({"guest": true})));
    }

    #[test]
    fn an_event_that_comes_in_pieces_over_two_waits_is_whole() {
        let (ours, mut theirs) = UnixStream::pair().expect("socket pair");
        let qemu = thread::spawn(move || {
            let mut reader = BufReader::new(theirs.try_clone().expect("dup"));
            let mut request = String::new();
            let answers = format!("{GREETING}\n{{\"return\": {{}}}}\n{{\"event\": ");
            theirs
                .write_all(answers.as_bytes())
                .expect("the test reads");
            reader.read_line(&mut request).expect("the test writes");
            theirs
        });
        let mut qmp = Qmp::connect(ours).expect("connected");
        let mut theirs = qemu.join().expect("no panic");
        let wait = |qmp: &mut Qmp, ms| {
            qmp.wait_event("RESET", Duration::from_millis(ms))
                .expect("connected")
        };
        assert_eq!(wait(&mut qmp, 20), None);
        theirs
            .write_all(b"\"RESET\", \"data\": 7}\n")
            .expect("the test reads");
        assert_eq!(wait(&mut qmp, 20_000), Some(json!(7)));
    }

    #[test]
    fn a_refusal_is_an_error_with_qemus_words() {
        let socket = scripted(&[
            GREETING,
            r#"{"return": {}}"#,
            r#"{"error": {"class": "GenericError", "desc": "no such thing"}}"#,
        ]);
        let mut qmp = Qmp::connect(socket).expect("connected");
        let error = qmp.execute("query-x", Value::Null).expect_err("refused");
        assert!(error.to_string().contains("no such thing"), "{error}");
    }

    #[test]
    fn a_qemu_that_goes_away_is_an_error() {
        let (ours, theirs) = UnixStream::pair().expect("socket pair");
        drop(theirs);
        let error = Qmp::connect(ours).expect_err("gone");
        assert!(error.to_string().contains("closed"), "{error}");
    }
}
