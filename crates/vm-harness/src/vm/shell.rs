// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A command in a guest that has this process's standard streams, or its terminal.

use std::io::{self, IsTerminal, Read, Write};
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::thread;

use anyhow::{Context as _, Result, bail};
use cdm_agent_protocol::{Command, Exec, ExitStatus, TtySize};

use super::agent::{Event, Input, Lost, Running};
use super::terminal::{self, RawTerminal};

/// Reads of standard input; as much as one frame takes.
const INPUT_BYTES: usize = cdm_agent_protocol::DATA_BYTES_MAX;

/// How a command went.
pub enum Outcome {
    /// It ended.
    Exit(ExitStatus),
    /// Its guest did, or somebody gave it up.
    Lost(Lost),
}

/// Why a shell ends when the user leaves it with [`terminal::LEAVE`].
pub const LEFT: &str = "the user left";

/// The shell that a guest has for people: bash where somebody types, else busybox's.
const LOGIN: &str = "[ -x /bin/bash ] && exec /bin/bash -l; exec /bin/sh -l";

/// A shell to log in with, on a terminal of this size or on pipes.
pub fn login_shell(tty: Option<TtySize>) -> Exec {
    let terminal = std::env::var("TERM").unwrap_or_else(|_| "linux".to_owned());
    Exec {
        command: Command::Shell(LOGIN.to_owned()),
        tty,
        env: vec![("TERM".to_owned(), terminal)],
        cwd: Some("/root".to_owned()),
    }
}

/// Standard input, read by one thread that goes with the process. A guest's shell
/// may follow another one, so who gets the bytes changes.
pub struct StandardInput {
    shared: Arc<Mutex<Reader>>,
    interactive: bool,
}

#[derive(Default)]
struct Reader {
    target: Option<Input>,
    started: bool,
    ended: bool,
}

impl StandardInput {
    /// The terminal of a shell if `interactive`, else whatever this process reads.
    pub fn new(interactive: bool) -> Self {
        Self {
            shared: Arc::default(),
            interactive,
        }
    }

    /// Hands on to `input` from now on. Without a shell of its own a terminal is left
    /// alone: its keys belong to whoever started this.
    pub fn connect(&self, input: Input) {
        let mut reader = lock(&self.shared);
        if reader.ended || (!self.interactive && io::stdin().is_terminal()) {
            return input.end();
        }
        reader.target = Some(input);
        if !std::mem::replace(&mut reader.started, true) {
            let (shared, interactive) = (Arc::clone(&self.shared), self.interactive);
            thread::spawn(move || read_standard_input(&shared, interactive));
        }
    }
}

fn read_standard_input(shared: &Mutex<Reader>, interactive: bool) {
    let mut buffer = vec![0; INPUT_BYTES];
    loop {
        let length = io::stdin().read(&mut buffer).unwrap_or(0);
        let target = {
            let mut reader = lock(shared);
            reader.ended = length == 0;
            reader.target.clone()
        };
        let Some(input) = target else {
            return;
        };
        if length == 0 {
            return input.end();
        }
        let bytes = &buffer[..length];
        if interactive && bytes.contains(&terminal::LEAVE) {
            return input.give_up(LEFT);
        }
        // What came for a shell that is gone is nobody's.
        input.send(bytes);
    }
}

fn lock(reader: &Mutex<Reader>) -> MutexGuard<'_, Reader> {
    // Plain data: a panic elsewhere cannot have left it half changed.
    reader.lock().unwrap_or_else(PoisonError::into_inner)
}

/// Writes what the command writes, to where it writes it. `next` waits for its next event.
pub fn forward(
    running: &mut Running,
    mut next: impl FnMut(&mut Running) -> Result<Event>,
) -> Result<Outcome> {
    loop {
        match next(running)? {
            Event::Stdout(data) => {
                let mut stdout = io::stdout().lock();
                stdout
                    .write_all(&data)
                    .and_then(|()| stdout.flush())
                    .context("cannot write to standard output")?;
            }
            Event::Stderr(data) => {
                // Nobody could be told.
                let _ = io::stderr().write_all(&data);
            }
            Event::Exit(status) => return Ok(Outcome::Exit(status)),
            Event::Failed(reason) => bail!("{reason}"),
            Event::Lost(lost) => return Ok(Outcome::Lost(lost)),
        }
    }
}

/// [`forward`] for a command that has a terminal: it gets this one, with every key.
pub fn on_terminal(
    mut running: Running,
    keys: &StandardInput,
    next: impl FnMut(&mut Running) -> Result<Event>,
) -> Result<Outcome> {
    let resizer = running.input();
    let terminal = RawTerminal::enter(move || resizer.resize(terminal::size()))?;
    keys.connect(running.input());
    let outcome = forward(&mut running, next);
    drop(terminal);
    eprintln!();
    outcome
}

/// What a process returns for a command that ended so.
pub fn exit_code(status: ExitStatus) -> ExitCode {
    ExitCode::from(u8::try_from(status.shell_code()).unwrap_or(u8::MAX))
}
