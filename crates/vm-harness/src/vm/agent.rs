// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The host's end of the channel to the guest's agent.
//!
//! One thread reads the channel and never waits for anybody: output of a command
//! goes into its queue, which the protocol's window bounds. Whoever reads the queue
//! gives credit by doing so. Whatever ends the connection (the machine, a backend,
//! the guest itself) ends every command with the reason.

use std::collections::HashMap;
use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail, ensure};
use cdm_agent_protocol::{
    ChannelId, DATA_BYTES_MAX, Decoder, Ending, Exec, ExitStatus, Grants, GuestMessage,
    HostMessage, ModuleState, TtySize, VERSION, Window, encode,
};

/// Silence after which the guest is asked whether it lives.
const PING_INTERVAL: Duration = Duration::from_secs(20);
/// What a guest said when its agent started.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Greeting {
    /// Random number of this start.
    pub instance: u64,
    /// What became of the driver module.
    pub module: ModuleState,
}

/// How the connection to a guest ended.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Lost {
    /// The guest went in good order.
    Ended(Ending),
    /// Something broke, in one line.
    Broken(String),
}

/// What a command's channel brings.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Event {
    /// Bytes of standard output, or of the terminal.
    Stdout(Vec<u8>),
    /// Bytes of standard error.
    Stderr(Vec<u8>),
    /// The command ended; nothing follows.
    Exit(ExitStatus),
    /// The command could not be started; nothing follows.
    Failed(String),
    /// The guest is gone; nothing follows.
    Lost(Lost),
}

/// A connection to a guest's agent.
#[derive(Clone, Debug)]
pub struct Agent {
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    writer: Mutex<UnixStream>,
    state: Mutex<State>,
    /// A greeting, credit or the end has come.
    changed: Condvar,
}

#[derive(Debug)]
struct State {
    greeting: Option<Greeting>,
    /// Greetings so far; one more than reboots.
    greetings: u32,
    goodbye: Option<Ending>,
    broken: Option<String>,
    channels: HashMap<ChannelId, Channel>,
    next_channel: u32,
    heard: Instant,
}

#[derive(Debug)]
struct Channel {
    events: Sender<Event>,
    input: Window,
}

/// What a guest's coming and going means for its machine.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Notice {
    /// A guest has started.
    Greeted,
    /// The guest is about to go; it is let go when the listener returns.
    Goodbye(Ending),
}

/// Who hears of it.
pub type OnNotice = Box<dyn FnMut(Notice) + Send>;

impl Agent {
    /// Takes a connected socket and listens on it.
    pub fn new(socket: UnixStream, on_notice: OnNotice) -> Result<Self> {
        let reader = socket.try_clone()?;
        let agent = Self {
            shared: Arc::new(Shared {
                writer: Mutex::new(socket),
                state: Mutex::new(State {
                    greeting: None,
                    greetings: 0,
                    goodbye: None,
                    broken: None,
                    channels: HashMap::new(),
                    next_channel: 1,
                    heard: Instant::now(),
                }),
                changed: Condvar::new(),
            }),
        };
        let shared = Arc::clone(&agent.shared);
        thread::Builder::new()
            .name("agent".to_owned())
            .spawn(move || shared.listen(reader, on_notice))?;
        Ok(agent)
    }

    /// Ends the connection for a reason that lies outside of it. The first reason
    /// counts, and an orderly end is one.
    pub fn break_off(&self, reason: &str) {
        self.shared.break_off(reason);
    }

    /// The guest's greeting once there were `count` of them; `None` after `timeout`.
    pub fn greeting(&self, count: u32, timeout: Duration) -> Option<Result<Greeting, Lost>> {
        let deadline = Instant::now() + timeout;
        let mut state = self.shared.state();
        loop {
            if state.greetings >= count
                && let Some(greeting) = &state.greeting
            {
                return Some(Ok(greeting.clone()));
            }
            if let Some(lost) = state.lost_for_good() {
                return Some(Err(lost));
            }
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                return None;
            }
            state = self
                .shared
                .changed
                .wait_timeout(state, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
    }

    /// How often a guest has greeted.
    pub fn greetings(&self) -> u32 {
        self.shared.state().greetings
    }

    /// How the connection ended, if it has.
    pub fn lost(&self) -> Option<Lost> {
        self.shared.state().lost_for_good()
    }

    /// When the guest last said anything.
    pub fn heard(&self) -> Instant {
        self.shared.state().heard
    }

    /// Asks the guest to end.
    pub fn end(&self, ending: Ending) -> Result<()> {
        self.shared.send(&HostMessage::End(ending))
    }

    /// Asks whether the guest lives.
    pub fn ping(&self) -> Result<()> {
        self.shared.send(&HostMessage::Ping)
    }

    /// Runs a command.
    pub fn start(&self, exec: Exec) -> Result<Running> {
        let (sender, events) = channel();
        let id = {
            let mut state = self.shared.state();
            if let Some(lost) = state.lost_for_good() {
                bail!("cannot run a command: {lost}");
            }
            ensure!(
                state.greeting.is_some(),
                "cannot run a command: the guest's agent is not there"
            );
            let id = ChannelId(state.next_channel);
            state.next_channel += 1;
            let channel = Channel {
                events: sender.clone(),
                input: Window::default(),
            };
            state.channels.insert(id, channel);
            id
        };
        let running = Running {
            shared: Arc::clone(&self.shared),
            id,
            events,
            own_events: sender,
            grants: Grants::default(),
        };
        self.shared.send(&HostMessage::Exec { channel: id, exec })?;
        Ok(running)
    }
}

/// A command that runs in the guest.
#[derive(Debug)]
pub struct Running {
    shared: Arc<Shared>,
    id: ChannelId,
    events: Receiver<Event>,
    own_events: Sender<Event>,
    grants: Grants,
}

impl Running {
    /// The next event; `None` when none came in time.
    pub fn next_event(&mut self, timeout: Duration) -> Option<Event> {
        match self.events.recv_timeout(timeout) {
            Ok(event) => {
                self.account(&event);
                Some(event)
            }
            Err(RecvTimeoutError::Timeout) => None,
            // `own_events` keeps the queue open.
            Err(RecvTimeoutError::Disconnected) => None,
        }
    }

    /// The next event; asks a silent guest whether it lives, and gives it up when it
    /// has been silent for longer than `limit`; `None` then, or when `left` is over.
    /// `console_grows` tells whether the guest's console has said anything since the last
    /// question.
    pub fn next_event_of_living_guest(
        &mut self,
        limit: Duration,
        left: Option<Duration>,
        mut console_grows: impl FnMut() -> bool,
    ) -> Option<Event> {
        let mut quiet_since = Instant::now();
        let end = left.and_then(|left| Instant::now().checked_add(left));
        loop {
            let left = end.map(|end| end.saturating_duration_since(Instant::now()));
            let turn = left.map_or(PING_INTERVAL, |left| left.min(PING_INTERVAL));
            if let Some(event) = self.next_event(turn) {
                return Some(event);
            }
            if left.is_some_and(|left| left.is_zero()) {
                return None;
            }
            let heard = self.shared.state().heard;
            if console_grows() {
                quiet_since = Instant::now();
            }
            if quiet_since.max(heard).elapsed() >= limit {
                return None;
            }
            // A connection that is gone says so in the next event.
            let _ = self.shared.send(&HostMessage::Ping);
        }
    }

    fn account(&mut self, event: &Event) {
        if let Event::Stdout(data) | Event::Stderr(data) = event
            && let Some(bytes) = self.grants.handed_on(data.len())
        {
            let channel = self.id;
            // A connection that is gone says so in the next event.
            let _ = self.shared.send(&HostMessage::Credit { channel, bytes });
        }
    }

    /// A way to send to the command from another thread.
    pub fn input(&self) -> Input {
        Input {
            shared: Arc::clone(&self.shared),
            id: self.id,
            events: self.own_events.clone(),
        }
    }
}

/// The way into a command.
#[derive(Clone, Debug)]
pub struct Input {
    shared: Arc<Shared>,
    id: ChannelId,
    events: Sender<Event>,
}

impl Input {
    /// Sends bytes, as the command's window allows. False once the command is gone.
    pub fn send(&self, mut data: &[u8]) -> bool {
        while !data.is_empty() {
            let mut state = self.shared.state();
            let room = loop {
                match state.channels.get(&self.id) {
                    None => return false,
                    Some(channel) if channel.input.available() == 0 => {
                        state = self
                            .shared
                            .changed
                            .wait(state)
                            .unwrap_or_else(PoisonError::into_inner);
                    }
                    Some(channel) => break channel.input.available(),
                }
            };
            let now = data.len().min(room).min(DATA_BYTES_MAX);
            if let Some(channel) = state.channels.get_mut(&self.id) {
                channel.input.spend(now);
            }
            drop(state);
            let message = HostMessage::Stdin {
                channel: self.id,
                data: data[..now].to_vec(),
            };
            if self.shared.send(&message).is_err() {
                return false;
            }
            data = &data[now..];
        }
        true
    }

    /// Says that no more bytes follow.
    pub fn end(&self) {
        self.tell(&HostMessage::StdinEof { channel: self.id });
    }

    /// Sends a signal to the command and its process group.
    pub fn signal(&self, signal: i32) {
        self.tell(&HostMessage::Signal {
            channel: self.id,
            signal,
        });
    }

    /// Gives the command's terminal another size.
    pub fn resize(&self, size: TtySize) {
        self.tell(&HostMessage::Resize {
            channel: self.id,
            size,
        });
    }

    /// Ends the command for its reader on this side, for a reason of this side.
    pub fn give_up(&self, reason: &str) {
        // A reader that is gone needs no reason.
        let _ = self
            .events
            .send(Event::Lost(Lost::Broken(reason.to_owned())));
    }

    fn tell(&self, message: &HostMessage) {
        // A connection that is gone tells the command's reader so.
        let _ = self.shared.send(message);
    }
}

impl std::fmt::Display for Lost {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        match self {
            Self::Ended(Ending::PowerOff) => f.write_str("the guest turned itself off"),
            Self::Ended(Ending::Reboot) => f.write_str("the guest reboots"),
            Self::Broken(reason) => f.write_str(reason),
        }
    }
}

impl State {
    /// How the connection ended, unless the guest comes back.
    fn lost_for_good(&self) -> Option<Lost> {
        match (self.goodbye, &self.broken) {
            (Some(Ending::PowerOff), _) => Some(Lost::Ended(Ending::PowerOff)),
            (_, Some(reason)) => Some(Lost::Broken(reason.clone())),
            _ => None,
        }
    }

    /// Ends every command.
    fn lose_channels(&mut self, lost: &Lost) {
        for (_, channel) in self.channels.drain() {
            // A reader that is gone needs no reason.
            let _ = channel.events.send(Event::Lost(lost.clone()));
        }
    }
}

impl Shared {
    fn state(&self) -> MutexGuard<'_, State> {
        // Each change is complete before anything that could panic.
        self.state.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn send(&self, message: &HostMessage) -> Result<()> {
        let mut bytes = Vec::new();
        encode(message, &mut bytes)?;
        let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
        writer.write_all(&bytes)?;
        Ok(())
    }

    fn break_off(&self, reason: &str) {
        let mut state = self.state();
        if state.broken.is_none() {
            state.broken = Some(reason.to_owned());
        }
        if let Some(lost) = state.lost_for_good() {
            state.lose_channels(&lost);
        }
        self.changed.notify_all();
    }

    fn listen(&self, mut socket: UnixStream, mut on_notice: OnNotice) {
        let mut decoder = Decoder::new();
        let mut buffer = vec![0; 64 << 10];
        loop {
            match socket.read(&mut buffer) {
                Ok(0) => return self.break_off("the machine is gone"),
                Ok(length) => decoder.push(&buffer[..length]),
                Err(error) if error.kind() == std::io::ErrorKind::Interrupted => continue,
                Err(error) => {
                    return self.break_off(&format!("the machine is gone: {error}"));
                }
            }
            self.state().heard = Instant::now();
            while let Some(message) = decoder.next_message() {
                // A frame that a reset cut off: the Hello that follows tells it.
                if let Ok(message) = message {
                    self.obey(message, &mut on_notice);
                }
            }
        }
    }

    fn obey(&self, message: GuestMessage, on_notice: &mut OnNotice) {
        match message {
            GuestMessage::Hello {
                version,
                instance,
                module,
            } => {
                on_notice(Notice::Greeted);
                self.greeted(version, Greeting { instance, module });
            }
            GuestMessage::Goodbye(ending) => {
                on_notice(Notice::Goodbye(ending));
                {
                    let mut state = self.state();
                    state.goodbye = Some(ending);
                    state.greeting = None;
                    state.lose_channels(&Lost::Ended(ending));
                    self.changed.notify_all();
                }
                // A guest that is gone already needs no answer.
                let _ = self.send(&HostMessage::Farewell);
            }
            // The process number is of no use to anybody here.
            GuestMessage::Started { .. } | GuestMessage::Pong => {}
            GuestMessage::Credit { channel, bytes } => {
                if let Some(channel) = self.state().channels.get_mut(&channel) {
                    channel.input.credit(bytes);
                }
                self.changed.notify_all();
            }
            GuestMessage::Stdout { channel, data } => self.event(channel, Event::Stdout(data)),
            GuestMessage::Stderr { channel, data } => self.event(channel, Event::Stderr(data)),
            GuestMessage::Exit { channel, status } => self.last_event(channel, Event::Exit(status)),
            GuestMessage::Failed { channel, reason } => {
                self.last_event(channel, Event::Failed(reason));
            }
        }
    }

    fn greeted(&self, version: u32, greeting: Greeting) {
        if version != VERSION {
            return self.break_off(&format!(
                "the guest's agent speaks version {version} of the protocol and this program \
                 {VERSION}: the initramfs is not of this tree"
            ));
        }
        let instance = greeting.instance;
        {
            let mut state = self.state();
            let announced = state.goodbye.take() == Some(Ending::Reboot);
            if state.greetings > 0 && !announced {
                state.lose_channels(&Lost::Broken(
                    "the guest's agent died and was started again".to_owned(),
                ));
            }
            state.greeting = Some(greeting);
            state.greetings += 1;
        }
        // Ends what was on its way to the guest before; then the answer.
        let welcome = HostMessage::Welcome { version, instance };
        let mut bytes = vec![0];
        if encode(&welcome, &mut bytes).is_ok() {
            let mut writer = self.writer.lock().unwrap_or_else(PoisonError::into_inner);
            // A machine that is gone says so on the reading side.
            let _ = writer.write_all(&bytes);
        }
        self.changed.notify_all();
    }

    fn event(&self, id: ChannelId, event: Event) {
        if let Some(channel) = self.state().channels.get(&id) {
            // A reader that is gone wants no output.
            let _ = channel.events.send(event);
        }
    }

    fn last_event(&self, id: ChannelId, event: Event) {
        if let Some(channel) = self.state().channels.remove(&id) {
            // A reader that is gone wants no end either.
            let _ = channel.events.send(event);
        }
        self.changed.notify_all();
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdm_agent_protocol::{Command, WINDOW_BYTES};

    /// Everything here is local and takes milliseconds.
    const PATIENCE: Duration = Duration::from_secs(20);

    /// A guest that the test plays.
    struct Guest {
        socket: UnixStream,
        decoder: Decoder<HostMessage>,
    }

    impl Guest {
        fn send(&mut self, message: &GuestMessage) {
            let mut bytes = Vec::new();
            encode(message, &mut bytes).expect("fits");
            self.socket.write_all(&bytes).expect("the host reads");
        }

        fn next(&mut self) -> HostMessage {
            loop {
                if let Some(message) = self.decoder.next_message() {
                    return message.expect("the host sends whole frames");
                }
                let mut buffer = [0; 4096];
                let length = self.socket.read(&mut buffer).expect("the host writes");
                assert_ne!(length, 0, "the host closed the channel");
                self.decoder.push(&buffer[..length]);
            }
        }

        fn hello(&mut self, instance: u64) {
            self.send(&GuestMessage::Hello {
                version: VERSION,
                instance,
                module: ModuleState::Loaded,
            });
        }
    }

    fn connect() -> (Agent, Guest, Receiver<Notice>) {
        let (ours, socket) = UnixStream::pair().expect("socket pair");
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket takes timeouts");
        let (said, notices) = channel();
        // A test that has ended needs no notice.
        let listener: OnNotice = Box::new(move |notice| {
            let _ = said.send(notice);
        });
        let agent = Agent::new(ours, listener).expect("a thread");
        let guest = Guest {
            socket,
            decoder: Decoder::new(),
        };
        (agent, guest, notices)
    }

    fn greeted() -> (Agent, Guest, Receiver<Notice>) {
        let (agent, mut guest, notices) = connect();
        guest.hello(7);
        assert!(matches!(
            guest.next(),
            HostMessage::Welcome { instance: 7, .. }
        ));
        assert_eq!(notices.recv_timeout(PATIENCE), Ok(Notice::Greeted));
        agent
            .greeting(1, PATIENCE)
            .expect("in time")
            .expect("not lost");
        (agent, guest, notices)
    }

    fn shell(line: &str) -> Exec {
        Exec {
            command: Command::Shell(line.to_owned()),
            tty: None,
            env: Vec::new(),
            cwd: None,
        }
    }

    fn start(agent: &Agent, guest: &mut Guest) -> (Running, ChannelId) {
        let running = agent.start(shell("x")).expect("connected");
        match guest.next() {
            HostMessage::Exec { channel, .. } => (running, channel),
            other => panic!("expected Exec, got {other:?}"),
        }
    }

    #[test]
    fn nothing_runs_before_the_guest_has_greeted() {
        let (agent, _guest, _) = connect();
        assert_eq!(agent.greeting(1, Duration::from_millis(10)), None);
        let error = agent.start(shell("x")).expect_err("nobody is there");
        assert!(error.to_string().contains("not there"), "{error}");
    }

    #[test]
    fn output_and_exit_arrive_in_order() {
        let (agent, mut guest, _) = greeted();
        let (mut running, channel) = start(&agent, &mut guest);
        guest.send(&GuestMessage::Stdout {
            channel,
            data: b"out".to_vec(),
        });
        guest.send(&GuestMessage::Exit {
            channel,
            status: ExitStatus::Code(3),
        });
        assert_eq!(
            running.next_event(PATIENCE),
            Some(Event::Stdout(b"out".to_vec()))
        );
        assert_eq!(
            running.next_event(PATIENCE),
            Some(Event::Exit(ExitStatus::Code(3)))
        );
    }

    #[test]
    fn credit_goes_back_for_what_was_taken_and_not_before() {
        let (agent, mut guest, _) = greeted();
        let (mut running, channel) = start(&agent, &mut guest);
        let half = vec![0; DATA_BYTES_MAX];
        for _ in 0..WINDOW_BYTES as usize / 2 / DATA_BYTES_MAX {
            guest.send(&GuestMessage::Stdout {
                channel,
                data: half.clone(),
            });
        }
        agent.ping().expect("connected");
        assert_eq!(
            guest.next(),
            HostMessage::Ping,
            "credit for what nobody took"
        );
        for _ in 0..WINDOW_BYTES as usize / 2 / DATA_BYTES_MAX {
            running.next_event(PATIENCE).expect("output");
        }
        let bytes = WINDOW_BYTES / 2;
        assert_eq!(guest.next(), HostMessage::Credit { channel, bytes });
    }

    #[test]
    fn input_waits_for_the_window_and_ends_with_the_command() {
        let (agent, mut guest, _) = greeted();
        let (running, channel) = start(&agent, &mut guest);
        let input = running.input();
        let sender = thread::spawn(move || input.send(&vec![1; WINDOW_BYTES as usize + 1]));
        let mut received = 0;
        while received < WINDOW_BYTES as usize {
            match guest.next() {
                HostMessage::Stdin { data, .. } => received += data.len(),
                other => panic!("expected input, got {other:?}"),
            }
        }
        assert_eq!(received, WINDOW_BYTES as usize);
        assert!(!sender.is_finished(), "sent beyond the window");
        guest.send(&GuestMessage::Exit {
            channel,
            status: ExitStatus::Code(0),
        });
        assert!(!sender.join().expect("no panic"), "nobody read the rest");
    }

    #[test]
    fn a_machine_that_goes_ends_its_commands_with_the_first_reason() {
        let (agent, mut guest, _) = greeted();
        let (mut running, _) = start(&agent, &mut guest);
        agent.break_off("the backend died");
        drop(guest);
        let lost = Lost::Broken("the backend died".into());
        assert_eq!(
            running.next_event(PATIENCE),
            Some(Event::Lost(lost.clone()))
        );
        assert_eq!(agent.lost(), Some(lost));
        assert!(agent.start(shell("x")).is_err());
    }

    #[test]
    fn a_guest_that_turns_itself_off_is_let_go_and_is_no_crash() {
        let (agent, mut guest, notices) = greeted();
        let (mut running, _) = start(&agent, &mut guest);
        guest.send(&GuestMessage::Goodbye(Ending::PowerOff));
        assert_eq!(guest.next(), HostMessage::Farewell);
        assert_eq!(
            notices.recv_timeout(PATIENCE),
            Ok(Notice::Goodbye(Ending::PowerOff))
        );
        drop(guest);
        let lost = Lost::Ended(Ending::PowerOff);
        assert_eq!(
            running.next_event(PATIENCE),
            Some(Event::Lost(lost.clone()))
        );
        assert_eq!(agent.lost(), Some(lost));
    }

    #[test]
    fn a_reboot_ends_the_commands_and_the_next_guest_is_greeted() {
        let (agent, mut guest, _) = greeted();
        let (mut running, _) = start(&agent, &mut guest);
        guest.send(&GuestMessage::Goodbye(Ending::Reboot));
        assert_eq!(guest.next(), HostMessage::Farewell);
        assert_eq!(
            running.next_event(PATIENCE),
            Some(Event::Lost(Lost::Ended(Ending::Reboot)))
        );
        assert!(
            agent.start(shell("x")).is_err(),
            "nobody is there to run it"
        );
        // What the reset cut off, then the new guest.
        guest
            .socket
            .write_all(&[9, 1, 2, 0])
            .expect("the host reads");
        guest.hello(8);
        let greeting = agent.greeting(2, PATIENCE).expect("in time");
        assert_eq!(greeting.expect("not lost").instance, 8);
        assert!(matches!(
            guest.next(),
            HostMessage::Welcome { instance: 8, .. }
        ));
        start(&agent, &mut guest);
    }

    #[test]
    fn an_agent_that_was_started_again_has_lost_its_commands() {
        let (agent, mut guest, _) = greeted();
        let (mut running, _) = start(&agent, &mut guest);
        guest.hello(8);
        match running.next_event(PATIENCE) {
            Some(Event::Lost(Lost::Broken(reason))) => {
                assert!(reason.contains("started again"), "{reason}");
            }
            other => panic!("expected Lost, got {other:?}"),
        }
    }

    #[test]
    fn a_guest_of_another_version_is_refused() {
        let (agent, mut guest, _) = connect();
        guest.send(&GuestMessage::Hello {
            version: VERSION + 1,
            instance: 1,
            module: ModuleState::Loaded,
        });
        match agent.greeting(1, PATIENCE) {
            Some(Err(Lost::Broken(reason))) => assert!(reason.contains("version"), "{reason}"),
            other => panic!("expected a refusal, got {other:?}"),
        }
    }
}
