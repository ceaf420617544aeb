// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The machine's control channel: QEMU's QMP, as far as the harness uses it.

use std::collections::VecDeque;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;
use std::path::Path;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};
use serde_json::{Value, json};

/// QEMU answers from its main loop, which nothing holds for long; beyond this it
/// hangs.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(60);

/// A connection to QMP.
#[derive(Debug)]
pub struct Qmp {
    reader: BufReader<UnixStream>,
    events: VecDeque<Value>,
}

impl Qmp {
    /// Connects and leaves the negotiation behind.
    pub fn connect(socket: UnixStream) -> Result<Self> {
        socket.set_read_timeout(Some(ANSWER_TIMEOUT))?;
        let mut qmp = Self {
            reader: BufReader::new(socket),
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

    /// Waits for an event of this name and gives its data.
    pub fn wait_event(&mut self, name: &str, timeout: Duration) -> Result<Value> {
        let deadline = Instant::now() + timeout;
        loop {
            if let Some(at) = self.events.iter().position(|event| event["event"] == name) {
                let mut event = self.events.remove(at).unwrap_or_default();
                return Ok(event["data"].take());
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                bail!("QEMU reported no {name} within {} s", timeout.as_secs());
            }
            self.reader.get_ref().set_read_timeout(Some(left))?;
            let event = self.read();
            self.reader
                .get_ref()
                .set_read_timeout(Some(ANSWER_TIMEOUT))?;
            self.events
                .push_back(event.with_context(|| format!("waiting for {name}"))?);
        }
    }

    fn read(&mut self) -> Result<Value> {
        let mut line = String::new();
        let length = self
            .reader
            .read_line(&mut line)
            .context("cannot read from QEMU")?;
        if length == 0 {
            bail!("QEMU closed its control channel");
        }
        serde_json::from_str(&line).with_context(|| format!("QEMU said '{}'", line.trim_end()))
    }
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
        assert_eq!(data, json!({"guest": true}));
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
