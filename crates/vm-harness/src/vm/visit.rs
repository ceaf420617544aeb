// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A guest that another process booted: found by its door, and given commands.

use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result, bail};
use cdm_agent_protocol::{Command, DATA_BYTES_MAX, Exec, ExitStatus};
use clap::Args;

use super::agent::{Agent, Event, Lost, Running};
use super::door;
use super::rundir::RunDir;

/// A guest that runs greets at once; one that is about to start again does within this.
const GREETING_TIMEOUT: Duration = Duration::from_secs(90);
/// Between two looks for an event; nothing depends on it.
const LOOK_INTERVAL: Duration = Duration::from_secs(3600);

/// Which guest a command is about.
#[derive(Clone, Debug, Default, Args)]
pub struct Which {
    /// The guest, by the name that 'just run-vm' gave it [default: the one that runs]
    #[arg(long, value_name = "NAME")]
    guest: Option<String>,
}

/// A connection to a guest that runs.
#[derive(Debug)]
pub struct Visit {
    agent: Agent,
    socket: UnixStream,
}

impl Visit {
    /// Goes to the guest of this name, or to the only one that runs.
    pub fn to(which: &Which) -> Result<Self> {
        Self::at(&door_of(which.guest.as_deref(), &RunDir::living())?)
    }

    /// Goes to the guest behind this door.
    pub fn at(door: &Path) -> Result<Self> {
        let at = || format!("cannot get into the guest at {}", door.display());
        let socket = UnixStream::connect(door).with_context(at)?;
        let agent = Agent::new(socket.try_clone()?, Box::new(|_| {}))?;
        match agent.greeting(1, GREETING_TIMEOUT) {
            Some(Ok(_)) => Ok(Self { agent, socket }),
            Some(Err(lost)) => bail!("{}: {lost}", at()),
            None => bail!("{}: it does not start", at()),
        }
    }

    /// Starts a command.
    pub fn start(&self, exec: Exec) -> Result<Running> {
        self.agent.start(exec)
    }

    /// Runs a line of shell with these variables. Its output goes to `output`, and what it says
    /// about errors is given back with its status.
    pub fn run(
        &self,
        line: &str,
        variables: &[(&str, &str)],
        mut input: impl Read + Send,
        output: &mut impl Write,
    ) -> Result<(ExitStatus, String)> {
        let own = |(name, value): &(&str, &str)| ((*name).to_owned(), (*value).to_owned());
        let mut running = self.start(Exec {
            command: Command::Shell(line.to_owned()),
            tty: None,
            env: variables.iter().map(own).collect(),
            cwd: None,
        })?;
        let feed = running.input();
        let mut errors = Vec::new();
        thread::scope(|scope| {
            let fed = scope.spawn(move || -> Result<()> {
                let mut buffer = vec![0; DATA_BYTES_MAX];
                loop {
                    let length = input.read(&mut buffer).context("cannot read the input")?;
                    if length == 0 || !feed.send(&buffer[..length]) {
                        feed.end();
                        return Ok(());
                    }
                }
            });
            let status = loop {
                match next(&mut running) {
                    Event::Stdout(data) => {
                        if let Err(error) = output.write_all(&data) {
                            // Whoever feeds it would wait for it for ever.
                            running.input().signal(libc::SIGKILL);
                            return Err(error).context("cannot write the output");
                        }
                    }
                    Event::Stderr(data) => errors.extend_from_slice(&data),
                    Event::Exit(status) => break status,
                    Event::Failed(reason) => bail!("{reason}"),
                    Event::Lost(lost) => return Err(lost_during(&lost, line)),
                }
            };
            if let Ok(fed) = fed.join() {
                fed?;
            }
            Ok((
                status,
                String::from_utf8_lossy(&errors).trim_end().to_owned(),
            ))
        })
    }

    /// Ends the connection, and with it the commands that it has.
    pub fn leave(&self) {
        // One that has ended already is what this wants.
        let _ = self.socket.shutdown(Shutdown::Both);
    }
}

impl Drop for Visit {
    fn drop(&mut self) {
        // The agent's own thread holds the socket, too.
        self.leave();
    }
}

/// The next event of a command, however long it takes.
pub fn next(running: &mut Running) -> Event {
    loop {
        if let Some(event) = running.next_event(LOOK_INTERVAL) {
            return event;
        }
    }
}

/// The error for a guest that went while it ran something.
pub fn lost_during(lost: &Lost, line: &str) -> anyhow::Error {
    anyhow::anyhow!("{lost}, while it ran '{line}'; 'just logs' shows what it said")
}

/// The door of the guest that is meant.
fn door_of(name: Option<&str>, runs: &[PathBuf]) -> Result<PathBuf> {
    let guests: Vec<(String, PathBuf)> = runs
        .iter()
        .map(|run| (RunDir::name_of(run), door::path_in(run)))
        .filter(|(_, door)| door.exists())
        .collect();
    let names = || {
        let names: Vec<&str> = guests.iter().map(|(name, _)| name.as_str()).collect();
        names.join(", ")
    };
    match (name, &guests[..]) {
        (Some(name), guests) => match guests.iter().find(|(own, _)| own == name) {
            Some((_, door)) => Ok(door.clone()),
            None if guests.is_empty() => bail!("no guest runs; start one with 'just run-vm'"),
            None => bail!("no guest is called '{name}'; those that run: {}", names()),
        },
        (None, [(_, door)]) => Ok(door.clone()),
        (None, []) => bail!("no guest runs; start one with 'just run-vm'"),
        (None, _) => bail!(
            "more than one guest runs; name one with --guest: {}",
            names()
        ),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    #[test]
    fn only_guest_is_meant_without_a_name_and_of_many_the_named_one() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let run = |name: &str| dir.path().join(format!("cdm-run-{name}"));
        for name in ["a", "b", "other"] {
            fs::create_dir(run(name)).expect("made");
        }
        let runs = [run("a"), run("b"), run("other")];
        let error = |name| door_of(name, &runs).expect_err("none").to_string();
        assert!(error(None).contains("just run-vm"));
        assert!(error(Some("a")).contains("just run-vm"));
        fs::write(door::path_in(&run("a")), "").expect("written");
        let a = door::path_in(&run("a"));
        assert_eq!(door_of(None, &runs).expect("the only one"), a);
        fs::write(door::path_in(&run("b")), "").expect("written");
        let error_of_many = error(None);
        assert!(error_of_many.contains("--guest: a, b"), "{error_of_many}");
        assert_eq!(door_of(Some("a"), &runs).expect("named"), a);
        assert!(error(Some("c")).contains("'c'; those that run: a, b"));
    }
}
