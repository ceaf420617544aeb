// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guest's agent: runs commands for the host over one virtio-serial port.
//!
//! One thread and one poll loop. Nothing in it blocks: the port, the pipes and the
//! terminals are all non-blocking, and data waits in queues that the windows of
//! `cdm-agent-protocol` bound.

mod port;
mod session;
#[cfg(test)]
mod tests;

use std::collections::{BTreeMap, VecDeque};
use std::fs::File;
use std::io::{self, Read};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::process::{Child, ExitCode};
use std::thread::sleep;
use std::time::{Duration, Instant};

use cdm_agent_protocol::{
    ChannelId, Decoder, Ending, Exec, GuestMessage, HostMessage, ModuleState, PORT_NAME, VERSION,
    encode,
};
use nix::poll::{PollFd, PollFlags, PollTimeout, poll};
use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

use crate::init::{MODULE_NOT_WANTED, MODULE_VARIABLE};
use port::{Port, PortState};
use session::Session;

/// How long a dying guest waits for the host to be ready for it. A host that runs
/// answers at once; a stopped one must not keep the guest alive.
pub const FAREWELL_TIMEOUT: Duration = Duration::from_secs(2);
/// Between two looks whether somebody has opened the port on the host's side; the
/// driver has no way to wait for that.
const RECONNECT_INTERVAL: Duration = Duration::from_millis(50);
/// More commands at a time than any use of the guest needs; a bound on memory.
const SESSIONS_MAX: usize = 64;

/// The byte by which process 1 tells the agent how the guest ends.
pub fn announcement(ending: Ending) -> u8 {
    match ending {
        Ending::PowerOff => b'p',
        Ending::Reboot => b'r',
    }
}

/// Runs the agent as a child of process 1: announcements come on standard input.
pub fn run() -> ExitCode {
    // What ps(1) shows; a name that is too long or refused does no harm.
    let _ = nix::sys::prctl::set_name(c"cdm-agent");
    let module = match std::env::var(MODULE_VARIABLE) {
        Err(_) => ModuleState::Loaded,
        Ok(value) if value == MODULE_NOT_WANTED => ModuleState::NotWanted,
        Ok(reason) => ModuleState::Failed(reason),
    };
    let result = port::open(&format!("/dev/virtio-ports/{PORT_NAME}")).and_then(|port| {
        let control = io::stdin().as_fd().try_clone_to_owned()?;
        Agent::new(port, control, module, ask_first_process).run()
    });
    match result {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            crate::init::log(&format!("agent: {error}"));
            ExitCode::from(2)
        }
    }
}

/// Asks process 1 to end the guest, by the signals that it takes from anybody.
fn ask_first_process(ending: Ending) {
    let signal = match ending {
        Ending::PowerOff => Signal::SIGUSR2,
        Ending::Reboot => Signal::SIGTERM,
    };
    if let Err(error) = kill(Pid::from_raw(1), signal) {
        crate::init::log(&format!("agent: cannot signal process 1: {error}"));
    }
}

/// The agent at work.
pub struct Agent<F> {
    port: Port,
    control: Option<File>,
    module: ModuleState,
    request_end: F,
    decoder: Decoder<HostMessage>,
    out: VecDeque<u8>,
    sessions: BTreeMap<ChannelId, Session>,
    abandoned: Vec<Child>,
    instance: u64,
    welcomed: bool,
    leaving: Option<Instant>,
}

impl<F: FnMut(Ending)> Agent<F> {
    /// An agent on `port`. `control` gives announcements of process 1; `request_end`
    /// asks it to end the guest.
    pub fn new(port: OwnedFd, control: OwnedFd, module: ModuleState, request_end: F) -> Self {
        Self {
            port: Port::new(port),
            control: Some(File::from(control)),
            module,
            request_end,
            decoder: Decoder::new(),
            out: VecDeque::new(),
            sessions: BTreeMap::new(),
            abandoned: Vec::new(),
            instance: 0,
            welcomed: false,
            leaving: None,
        }
    }

    /// Serves until process 1 announces the end.
    pub fn run(mut self) -> io::Result<()> {
        self.say_hello()?;
        loop {
            if let Some(deadline) = self.leaving
                && Instant::now() >= deadline
            {
                return Ok(());
            }
            let ready = self.wait()?;
            if ready.control && self.announced()? {
                return Ok(());
            }
            if ready.port_in || ready.hung_up {
                match self.receive()? {
                    PortState::Open => {}
                    PortState::Closed => self.disconnected()?,
                }
            }
            if self.handle_messages()? {
                return self.flush_and_leave();
            }
            self.serve_sessions();
            self.port.write_from(&mut self.out)?;
        }
    }

    fn say_hello(&mut self) -> io::Result<()> {
        let mut instance = [0; 8];
        File::open("/dev/urandom")?.read_exact(&mut instance)?;
        self.instance = u64::from_le_bytes(instance);
        self.welcomed = false;
        // Ends whatever frame a guest before this one left unfinished.
        self.out.push_back(0);
        self.send(&GuestMessage::Hello {
            version: VERSION,
            instance: self.instance,
            module: self.module.clone(),
        });
        Ok(())
    }

    fn send(&mut self, message: &GuestMessage) {
        send(&mut self.out, message);
    }

    /// Waits until there is something to do.
    fn wait(&self) -> io::Result<Ready> {
        let mut port_events = PollFlags::POLLIN;
        if !self.out.is_empty() {
            port_events |= PollFlags::POLLOUT;
        }
        let mut fds = vec![PollFd::new(self.port.as_fd(), port_events)];
        if let Some(control) = &self.control {
            fds.push(PollFd::new(control.as_fd(), PollFlags::POLLIN));
        }
        let mut wanted: Vec<(BorrowedFd<'_>, PollFlags)> = Vec::new();
        for session in self.sessions.values() {
            session.interests(&mut wanted);
        }
        fds.extend(wanted.iter().map(|(fd, flags)| PollFd::new(*fd, *flags)));

        let timeout = match self.leaving {
            None => PollTimeout::NONE,
            Some(deadline) => {
                let left = deadline.saturating_duration_since(Instant::now());
                PollTimeout::try_from(left).unwrap_or(PollTimeout::MAX)
            }
        };
        match poll(&mut fds, timeout) {
            Ok(_) | Err(nix::errno::Errno::EINTR) => {}
            Err(error) => return Err(error.into()),
        }
        let events = |fd: &PollFd<'_>| fd.revents().unwrap_or(PollFlags::empty());
        let port = events(&fds[0]);
        Ok(Ready {
            port_in: port.contains(PollFlags::POLLIN),
            hung_up: port.intersects(PollFlags::POLLHUP | PollFlags::POLLERR),
            control: self.control.is_some() && !events(&fds[1]).is_empty(),
        })
    }

    /// Reads what process 1 announces. True if there is nobody to say goodbye to.
    fn announced(&mut self) -> io::Result<bool> {
        let Some(control) = &mut self.control else {
            return Ok(false);
        };
        let mut byte = [0];
        let length = control.read(&mut byte)?;
        self.control = None;
        let ending = match (length, byte[0]) {
            (1, b'r') => Ending::Reboot,
            (1, _) => Ending::PowerOff,
            // Process 1 never closes the pipe while it lives.
            _ => return Ok(true),
        };
        if !self.welcomed {
            return Ok(true);
        }
        self.send(&GuestMessage::Goodbye(ending));
        self.leaving = Some(Instant::now() + FAREWELL_TIMEOUT);
        Ok(false)
    }

    fn receive(&mut self) -> io::Result<PortState> {
        let decoder = &mut self.decoder;
        self.port.read_into(|bytes| decoder.push(bytes))
    }

    /// The host closed the port: its commands end, and whoever opens it next gets
    /// a Hello of a new instance.
    fn disconnected(&mut self) -> io::Result<()> {
        let sessions = std::mem::take(&mut self.sessions);
        self.abandoned
            .extend(sessions.into_values().filter_map(Session::abandon));
        self.abandoned
            .retain_mut(|child| matches!(child.try_wait(), Ok(None)));
        self.out.clear();
        self.decoder = Decoder::new();
        if self.leaving.is_some() {
            self.leaving = Some(Instant::now());
            return Ok(());
        }
        if !self.port.peer_is_there()? {
            self.welcomed = false;
            self.instance = 0;
            sleep(RECONNECT_INTERVAL);
        }
        if self.port.peer_is_there()? {
            self.say_hello()?;
        }
        Ok(())
    }

    /// Obeys the host. True once it said farewell.
    fn handle_messages(&mut self) -> io::Result<bool> {
        while let Some(message) = self.decoder.next_message() {
            match message {
                Ok(HostMessage::Welcome { version, instance }) if instance == self.instance => {
                    if version != VERSION {
                        return Err(io::Error::other(format!(
                            "the host speaks version {version} of the protocol, the guest {VERSION}"
                        )));
                    }
                    self.welcomed = true;
                }
                // Meant for the guest that was here before.
                _ if !self.welcomed => {}
                Ok(HostMessage::Farewell) if self.leaving.is_some() => return Ok(true),
                Ok(message) => self.obey(message),
                Err(error) => crate::init::log(&format!("agent: from the host: {error}")),
            }
        }
        Ok(false)
    }

    fn obey(&mut self, message: HostMessage) {
        match message {
            HostMessage::Welcome { .. } | HostMessage::Farewell => {}
            HostMessage::Exec { channel, exec } => self.open(channel, &exec),
            HostMessage::Stdin { channel, data } => {
                self.with_session(channel, |session| session.input(&data));
            }
            HostMessage::StdinEof { channel } => self.with_session(channel, Session::input_ends),
            HostMessage::Credit { channel, bytes } => {
                self.with_session(channel, |session| session.credit(bytes));
            }
            HostMessage::Signal { channel, signal } => {
                self.with_session(channel, |session| session.signal(signal));
            }
            HostMessage::Resize { channel, size } => {
                self.with_session(channel, |session| session.resize(size));
            }
            HostMessage::End(ending) => (self.request_end)(ending),
            HostMessage::Ping => self.send(&GuestMessage::Pong),
        }
    }

    /// A channel that is gone is no mistake: its end and the host's message crossed.
    fn with_session(&mut self, channel: ChannelId, act: impl FnOnce(&mut Session)) {
        if let Some(session) = self.sessions.get_mut(&channel) {
            act(session);
        }
    }

    fn open(&mut self, channel: ChannelId, exec: &Exec) {
        let opened = if self.sessions.contains_key(&channel) {
            Err(format!("channel {} is in use", channel.0))
        } else if self.sessions.len() == SESSIONS_MAX {
            Err(format!("{SESSIONS_MAX} commands run already"))
        } else {
            Session::start(exec)
        };
        match opened {
            Ok(session) => {
                let pid = session.pid();
                self.sessions.insert(channel, session);
                self.send(&GuestMessage::Started { channel, pid });
            }
            Err(reason) => self.send(&GuestMessage::Failed { channel, reason }),
        }
    }

    /// Moves data between commands and queues, and closes channels that are done.
    fn serve_sessions(&mut self) {
        let out = &mut self.out;
        self.sessions.retain(|channel, session| {
            match session.serve(*channel, &mut |message| send(out, &message)) {
                None => true,
                Some(status) => {
                    let channel = *channel;
                    send(out, &GuestMessage::Exit { channel, status });
                    false
                }
            }
        });
    }

    /// Farewell was the last that the host has to say; ours may still be queued.
    fn flush_and_leave(mut self) -> io::Result<()> {
        let deadline = Instant::now() + FAREWELL_TIMEOUT;
        while !self.out.is_empty() && Instant::now() < deadline {
            self.port.write_from(&mut self.out)?;
            sleep(Duration::from_millis(1));
        }
        Ok(())
    }
}

/// What a poll found.
struct Ready {
    port_in: bool,
    hung_up: bool,
    control: bool,
}

/// Queues a message. One that does not fit into a frame could only be a reason or
/// data that this side has not bounded: a bug, and no reason to die.
fn send(out: &mut VecDeque<u8>, message: &GuestMessage) {
    if let Err(error) = encode(message, out) {
        crate::init::log(&format!("agent: cannot send: {error}"));
    }
}
