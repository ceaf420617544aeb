// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A backend's control socket, from the side of who asks (docs/reference/control-socket.md).

use std::io::{BufRead, BufReader, Read, Write};
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use cdm_control_protocol::{Ask, Request, Response, VERSION};

/// A backend answers from memory; this is for a host with every CPU taken.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(30);

/// Longest answer that is read: the counters of the largest device are a tenth of it.
const ANSWER_BYTES_MAX: u64 = 4 << 20;

/// Where a backend can be asked.
#[derive(Clone, Debug)]
pub struct Control {
    path: PathBuf,
}

impl Control {
    /// At this socket.
    pub fn at(path: PathBuf) -> Self {
        Self { path }
    }

    /// Path of the control socket of device `index` in a run's folder.
    pub fn path_in(run: &Path, index: u8) -> PathBuf {
        run.join(format!("cdm{index}.control"))
    }

    /// Where it is.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// Asks, and fails if the backend says that it cannot.
    pub fn ask(&self, ask: Ask) -> Result<Response> {
        let at = || format!("cannot ask the backend at {}", self.path.display());
        let stream = UnixStream::connect(&self.path).with_context(at)?;
        stream
            .set_read_timeout(Some(ANSWER_TIMEOUT))
            .with_context(at)?;
        let line = serde_json::to_string(&Request::from(ask))?;
        writeln!(&stream, "{line}").with_context(at)?;
        let mut answer = String::new();
        BufReader::new(stream.take(ANSWER_BYTES_MAX))
            .read_line(&mut answer)
            .with_context(at)?;
        let response: Response = serde_json::from_str(&answer)
            .with_context(|| format!("the backend at {} answers: {answer}", self.path.display()))?;
        if response.version != VERSION {
            bail!(
                "the backend at {} speaks version {}, and this program version {VERSION}",
                self.path.display(),
                response.version
            );
        }
        match response.error {
            Some(error) => bail!("the backend refuses: {error}"),
            None => Ok(response),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::net::UnixListener;
    use std::thread;

    /// What a client makes of an answer.
    fn ask_one_that_says(answer: &'static str) -> Result<Response> {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("control");
        let listener = UnixListener::bind(&path).expect("bound");
        let server = thread::spawn(move || {
            let (stream, _) = listener.accept().expect("a client");
            let mut line = String::new();
            BufReader::new(&stream)
                .read_line(&mut line)
                .expect("a request");
            assert_eq!(line, "{\"version\":1,\"get\":\"faults\"}\n");
            (&stream).write_all(answer.as_bytes()).expect("written");
        });
        let result = Control::at(path).ask(Ask::Faults);
        server.join().expect("the server ends");
        result
    }

    #[test]
    fn an_answer_is_read_and_fields_of_later_additions_are_ignored() {
        let answer = "{\"version\":1,\"faults\":[],\"weather\":\"fine\"}\n";
        let response = ask_one_that_says(answer).expect("an answer");
        assert_eq!(response.faults, Some(Vec::new()));
    }

    #[test]
    fn errors_other_versions_and_silence_are_told_apart() {
        for (answer, reason) in [
            ("{\"version\":1,\"error\":\"not today\"}\n", "not today"),
            ("{\"version\":2}\n", "version 2"),
            ("hello\n", "hello"),
            ("", "answers"),
        ] {
            let error = ask_one_that_says(answer).expect_err("no answer");
            assert!(format!("{error:#}").contains(reason), "{error:#}");
        }
    }
}
