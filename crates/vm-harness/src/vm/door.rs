// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The way into a guest that runs for other processes: a socket in the folder of the run.
//!
//! The guest's agent has one port, and whoever booted the guest holds it. Behind the door that
//! process plays the agent: it speaks the same protocol and starts each command on the real one.
//! A visitor that leaves ends its commands, as a terminal that goes away does.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::net::Shutdown;
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::sync::mpsc::{Receiver, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::Duration;

use anyhow::{Context as _, Result};
use cdm_agent_protocol::{
    ChannelId, Decoder, Exec, Grants, GuestMessage, HostMessage, VERSION, Window, encode,
};

use super::agent::{Agent, Event, Input, Lost, Running};

/// Name of the socket in the folder of a run.
const SOCKET: &str = "door.sock";
/// How long a visitor waits for a guest that is about to start again.
const GREETING_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two looks whether a visitor is gone whose command says nothing.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);

/// Path of the door of the guest whose run has this folder.
pub fn path_in(run: &Path) -> PathBuf {
    run.join(SOCKET)
}

/// Lets visitors into the guest of this agent, for as long as this process lives.
pub fn open(agent: &Agent, run: &Path) -> Result<()> {
    let path = path_in(run);
    let listener = UnixListener::bind(&path)
        .with_context(|| format!("cannot listen at {}", path.display()))?;
    let agent = agent.clone();
    thread::Builder::new()
        .name("door".to_owned())
        .spawn(move || {
            for visitor in listener.incoming().flatten() {
                let agent = agent.clone();
                // A visitor that cannot be served finds its connection closed.
                thread::spawn(move || serve(visitor, &agent));
            }
        })?;
    Ok(())
}

/// A visitor, as its commands' threads know it.
struct Visitor {
    writer: Mutex<UnixStream>,
    state: Mutex<State>,
    /// Credit has come, or the visitor has gone.
    changed: Condvar,
}

#[derive(Default)]
struct State {
    commands: HashMap<ChannelId, Command>,
    gone: bool,
}

/// A command of a visitor.
struct Command {
    input: Input,
    /// To the thread that hands its input on; `None` is the end of it.
    feed: Sender<Option<Vec<u8>>>,
    output: Window,
}

fn serve(stream: UnixStream, agent: &Agent) -> Option<()> {
    let Ok(greeting) = agent.greeting(1, GREETING_TIMEOUT)? else {
        return None;
    };
    let mut reader = stream.try_clone().ok()?;
    let visitor = Arc::new(Visitor {
        writer: Mutex::new(stream),
        state: Mutex::default(),
        changed: Condvar::new(),
    });
    visitor.send(&GuestMessage::Hello {
        version: VERSION,
        instance: greeting.instance,
        module: greeting.module,
    });
    let mut decoder = Decoder::new();
    let mut buffer = vec![0; 64 << 10];
    while let Ok(length @ 1..) = reader.read(&mut buffer) {
        decoder.push(&buffer[..length]);
        while let Some(Ok(message)) = decoder.next_message() {
            visitor.obey(agent, message);
        }
    }
    visitor.leave();
    Some(())
}

impl Visitor {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// False once the visitor is gone.
    fn send(&self, message: &GuestMessage) -> bool {
        let mut bytes = Vec::new();
        if encode(message, &mut bytes).is_err() {
            return false;
        }
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&bytes).is_ok()
    }

    fn obey(self: &Arc<Self>, agent: &Agent, message: HostMessage) {
        match message {
            HostMessage::Exec { channel, exec } => self.start(agent, channel, exec),
            HostMessage::Stdin { channel, data } => self.feed(channel, Some(data)),
            HostMessage::StdinEof { channel } => self.feed(channel, None),
            HostMessage::Credit { channel, bytes } => {
                self.with(channel, |command| command.output.credit(bytes));
                self.changed.notify_all();
            }
            HostMessage::Signal { channel, signal } => {
                self.with(channel, |command| command.input.signal(signal));
            }
            HostMessage::Resize { channel, size } => {
                self.with(channel, |command| command.input.resize(size));
            }
            HostMessage::Ping => {
                self.send(&GuestMessage::Pong);
            }
            // The guest belongs to who booted it; a visitor that wants its end runs poweroff.
            HostMessage::Welcome { .. } | HostMessage::Farewell | HostMessage::End(_) => {}
        }
    }

    /// A command that has ended needs no message; both were under way.
    fn with(&self, channel: ChannelId, act: impl FnOnce(&mut Command)) {
        if let Some(command) = self.state().commands.get_mut(&channel) {
            act(command);
        }
    }

    fn feed(&self, channel: ChannelId, data: Option<Vec<u8>>) {
        self.with(channel, |command| {
            // Its thread ends only with the command.
            let _ = command.feed.send(data);
        });
    }

    fn start(self: &Arc<Self>, agent: &Agent, channel: ChannelId, exec: Exec) {
        let running = match agent.start(exec) {
            Ok(running) => running,
            Err(error) => {
                let reason = format!("{error:#}");
                self.send(&GuestMessage::Failed { channel, reason });
                return;
            }
        };
        let (feed, fed) = self::channel();
        let input = running.input();
        self.state().commands.insert(
            channel,
            Command {
                input: input.clone(),
                feed,
                output: Window::default(),
            },
        );
        let visitor = Arc::clone(self);
        thread::spawn(move || visitor.hand_input_on(channel, &input, &fed));
        let visitor = Arc::clone(self);
        thread::spawn(move || visitor.hand_output_on(channel, running));
    }

    fn hand_input_on(&self, channel: ChannelId, input: &Input, fed: &Receiver<Option<Vec<u8>>>) {
        let mut grants = Grants::default();
        while let Ok(Some(data)) = fed.recv() {
            if !input.send(&data) {
                return;
            }
            if let Some(bytes) = grants.handed_on(data.len()) {
                self.send(&GuestMessage::Credit { channel, bytes });
            }
        }
        input.end();
    }

    fn hand_output_on(&self, channel: ChannelId, mut running: Running) {
        loop {
            let event = running.next_event(LOOK_INTERVAL);
            if self.state().gone {
                return;
            }
            let message = match event {
                None => continue,
                Some(Event::Stdout(data)) => GuestMessage::Stdout { channel, data },
                Some(Event::Stderr(data)) => GuestMessage::Stderr { channel, data },
                Some(Event::Exit(status)) => GuestMessage::Exit { channel, status },
                Some(Event::Failed(reason)) => GuestMessage::Failed { channel, reason },
                Some(Event::Lost(lost)) => return self.lose_guest(&lost),
            };
            let ended = match &message {
                GuestMessage::Stdout { data, .. } | GuestMessage::Stderr { data, .. } => {
                    if !self.take_room(channel, data.len()) {
                        return;
                    }
                    false
                }
                _ => true,
            };
            self.send(&message);
            if ended {
                self.state().commands.remove(&channel);
                return;
            }
        }
    }

    /// Waits until the visitor has room for output. False once it is gone.
    fn take_room(&self, channel: ChannelId, bytes: usize) -> bool {
        let mut state = self.state();
        loop {
            if state.gone {
                return false;
            }
            match state.commands.get_mut(&channel) {
                Some(command) if command.output.available() >= bytes => {
                    command.output.spend(bytes);
                    return true;
                }
                Some(_) => {}
                None => return false,
            }
            state = self
                .changed
                .wait(state)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }

    /// The guest went: the visitor hears how, and that there is nothing more.
    fn lose_guest(&self, lost: &Lost) {
        if let Lost::Ended(ending) = lost {
            self.send(&GuestMessage::Goodbye(*ending));
        }
        let writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        // One that is closed already is what this wants.
        let _ = writer.shutdown(Shutdown::Both);
    }

    /// The visitor went: so do its commands.
    fn leave(&self) {
        let mut state = self.state();
        state.gone = true;
        for (_, command) in state.commands.drain() {
            command.input.signal(libc::SIGHUP);
        }
        drop(state);
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::visit::Visit;
    use cdm_agent_protocol::{
        Command as Line, Ending, ExitStatus, ModuleState, TtySize, WINDOW_BYTES,
    };

    /// Everything here is local and takes milliseconds.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A guest's agent that the test plays, and a visitor behind the door of its host.
    struct House {
        guest: UnixStream,
        decoder: Decoder<HostMessage>,
        visit: Visit,
        _host: Agent,
        _run: tempfile::TempDir,
    }

    fn house() -> House {
        let (ours, guest) = UnixStream::pair().expect("socket pair");
        guest.set_read_timeout(Some(PATIENCE)).expect("a timeout");
        let host = Agent::new(ours, Box::new(|_| {})).expect("a thread");
        let run = tempfile::tempdir().expect("temporary folder");
        open(&host, run.path()).expect("opened");
        let mut decoder = Decoder::new();
        let hello = GuestMessage::Hello {
            version: VERSION,
            instance: 7,
            module: ModuleState::NotWanted,
        };
        send(&guest, &hello);
        let welcome = next(&guest, &mut decoder);
        assert!(matches!(welcome, HostMessage::Welcome { instance: 7, .. }));
        let visit = Visit::at(&path_in(run.path())).expect("let in");
        House {
            guest,
            decoder,
            visit,
            _host: host,
            _run: run,
        }
    }

    fn send(mut guest: &UnixStream, message: &GuestMessage) {
        let mut bytes = Vec::new();
        encode(message, &mut bytes).expect("fits");
        guest.write_all(&bytes).expect("the host reads");
    }

    fn next(mut guest: &UnixStream, decoder: &mut Decoder<HostMessage>) -> HostMessage {
        loop {
            if let Some(message) = decoder.next_message() {
                return message.expect("whole frames");
            }
            let mut buffer = [0; 4096];
            let length = guest.read(&mut buffer).expect("the host writes");
            assert_ne!(length, 0, "the host closed the channel");
            decoder.push(&buffer[..length]);
        }
    }

    impl House {
        fn next(&mut self) -> HostMessage {
            next(&self.guest, &mut self.decoder)
        }

        /// Starts a command through the door; gives it and its number on the guest's side.
        fn start(&mut self) -> (Running, ChannelId) {
            let running = self.visit.start(exec("x")).expect("connected");
            match self.next() {
                HostMessage::Exec { channel, exec: got } => {
                    assert_eq!(got, exec("x"));
                    (running, channel)
                }
                other => panic!("not a command: {other:?}"),
            }
        }
    }

    fn exec(line: &str) -> Exec {
        Exec {
            command: Line::Shell(line.to_owned()),
            tty: None,
            env: Vec::new(),
            cwd: None,
        }
    }

    #[test]
    fn visitor_gets_what_a_command_says_and_how_it_ended() {
        let mut house = house();
        let (mut running, channel) = house.start();
        let data = b"hello".to_vec();
        send(&house.guest, &GuestMessage::Stdout { channel, data });
        let event = running.next_event(PATIENCE);
        assert_eq!(event, Some(Event::Stdout(b"hello".to_vec())));
        let status = ExitStatus::Code(3);
        send(&house.guest, &GuestMessage::Exit { channel, status });
        assert_eq!(running.next_event(PATIENCE), Some(Event::Exit(status)));
    }

    #[test]
    fn what_a_visitor_types_signals_and_resizes_reaches_the_command() {
        let mut house = house();
        let (running, guests) = house.start();
        let input = running.input();
        assert!(input.send(b"in"));
        input.end();
        input.signal(libc::SIGINT);
        let size = TtySize {
            rows: 5,
            columns: 6,
        };
        input.resize(size);
        let mut got: Vec<HostMessage> = (0..4).map(|_| house.next()).collect();
        let data = b"in".to_vec();
        let channel = guests;
        for expected in [
            HostMessage::Stdin { channel, data },
            HostMessage::StdinEof { channel },
            HostMessage::Signal {
                channel,
                signal: libc::SIGINT,
            },
            HostMessage::Resize { channel, size },
        ] {
            // Input has a thread of its own, so only its own order is certain.
            let at = got.iter().position(|message| *message == expected);
            got.remove(at.unwrap_or_else(|| panic!("no {expected:?} in {got:?}")));
        }
    }

    #[test]
    fn more_output_than_windows_hold_arrives() {
        let mut house = house();
        let (mut running, channel) = house.start();
        let piece = vec![b'x'; 32 << 10];
        let windows = 2 * WINDOW_BYTES as usize;
        let mut guest = Window::default();
        let (mut sent, mut got) = (0, 0);
        // As much as the guest's window allows, then what the visitor's reading allows.
        while got < 3 * windows {
            while guest.available() >= piece.len() && sent < 3 * windows {
                let data = piece.clone();
                guest.spend(data.len());
                sent += data.len();
                send(&house.guest, &GuestMessage::Stdout { channel, data });
            }
            match running.next_event(PATIENCE) {
                Some(Event::Stdout(data)) => got += data.len(),
                other => panic!("{other:?} after {got} bytes"),
            }
            house.guest.set_nonblocking(true).expect("set");
            let mut buffer = [0; 4096];
            if let Ok(length) = (&house.guest).read(&mut buffer) {
                house.decoder.push(&buffer[..length]);
            }
            house.guest.set_nonblocking(false).expect("set");
            while let Some(Ok(message)) = house.decoder.next_message() {
                match message {
                    HostMessage::Credit { bytes, .. } => guest.credit(bytes),
                    other => panic!("{other:?}"),
                }
            }
        }
    }

    #[test]
    fn command_of_a_visitor_who_leaves_is_hung_up() {
        let mut house = house();
        let (running, channel) = house.start();
        drop(running);
        house.visit.leave();
        let signal = libc::SIGHUP;
        assert_eq!(house.next(), HostMessage::Signal { channel, signal });
    }

    #[test]
    fn visitor_is_told_how_the_guest_went() {
        let mut house = house();
        let (mut running, _) = house.start();
        send(&house.guest, &GuestMessage::Goodbye(Ending::Reboot));
        let lost = Lost::Ended(Ending::Reboot);
        assert_eq!(running.next_event(PATIENCE), Some(Event::Lost(lost)));
    }
}
