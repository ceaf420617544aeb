// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The agent, with a socket in place of the port and real processes.

use std::io::{Read, Write};
use std::os::unix::net::UnixStream;
use std::sync::mpsc;
use std::thread::JoinHandle;

use cdm_agent_protocol::{Command, ExitStatus, TtySize, WINDOW_BYTES};

use super::*;

/// No answer within this time means that the agent is stuck.
const PATIENCE: Duration = Duration::from_secs(20);

struct Host {
    socket: UnixStream,
    control: Option<UnixStream>,
    decoder: Decoder<GuestMessage>,
    agent: JoinHandle<io::Result<()>>,
    requests: mpsc::Receiver<Ending>,
    instance: u64,
}

impl Host {
    /// An agent that has said Hello and was not answered.
    fn unwelcome() -> Self {
        let (socket, port) = UnixStream::pair().expect("socket pair");
        let (control, agent_control) = UnixStream::pair().expect("socket pair");
        let (request, requests) = mpsc::channel();
        let agent = std::thread::spawn(move || {
            let request = move |ending| request.send(ending).expect("the test listens");
            Agent::new(
                port.into(),
                agent_control.into(),
                ModuleState::NotWanted,
                request,
            )
            .run()
        });
        socket
            .set_read_timeout(Some(PATIENCE))
            .expect("a socket takes timeouts");
        let mut host = Self {
            socket,
            control: Some(control),
            decoder: Decoder::new(),
            agent,
            requests,
            instance: 0,
        };
        match host.next() {
            GuestMessage::Hello {
                version: VERSION,
                instance,
                module: ModuleState::NotWanted,
            } => host.instance = instance,
            other => panic!("expected a Hello, got {other:?}"),
        }
        host
    }

    fn new() -> Self {
        let mut host = Self::unwelcome();
        host.send(HostMessage::Welcome {
            version: VERSION,
            instance: host.instance,
        });
        host
    }

    fn send(&mut self, message: HostMessage) {
        let mut bytes = Vec::new();
        encode(&message, &mut bytes).expect("fits");
        self.socket.write_all(&bytes).expect("the agent reads");
    }

    fn next(&mut self) -> GuestMessage {
        loop {
            if let Some(message) = self.decoder.next_message() {
                return message.expect("the agent sends whole frames");
            }
            let mut buffer = [0; 4096];
            let length = self.socket.read(&mut buffer).expect("the agent answers");
            assert_ne!(length, 0, "the agent closed the port");
            self.decoder.push(&buffer[..length]);
        }
    }

    fn exec(&mut self, channel: u32, line: &str, tty: Option<TtySize>) -> ChannelId {
        self.start(channel, Command::Shell(line.to_owned()), tty)
    }

    fn start(&mut self, channel: u32, command: Command, tty: Option<TtySize>) -> ChannelId {
        let channel = ChannelId(channel);
        let exec = Exec {
            command,
            tty,
            env: vec![("NAME".into(), "value".into())],
            cwd: Some("/".into()),
        };
        self.send(HostMessage::Exec { channel, exec });
        match self.next() {
            GuestMessage::Started { channel: c, .. } if c == channel => channel,
            other => panic!("expected Started, got {other:?}"),
        }
    }

    /// Reads a channel to its end, giving credit for what comes.
    fn finish(&mut self, channel: ChannelId) -> (Vec<u8>, Vec<u8>, ExitStatus) {
        let (mut out, mut err) = (Vec::new(), Vec::new());
        loop {
            let bytes = match self.next() {
                GuestMessage::Stdout { channel: c, data } if c == channel => {
                    out.extend(&data);
                    data.len()
                }
                GuestMessage::Stderr { channel: c, data } if c == channel => {
                    err.extend(&data);
                    data.len()
                }
                GuestMessage::Exit { channel: c, status } if c == channel => {
                    return (out, err, status);
                }
                _ => 0,
            };
            if bytes > 0 {
                self.send(HostMessage::Credit {
                    channel,
                    bytes: bytes as u32,
                });
            }
        }
    }

    /// Announces as process 1 does, once the agent has taken the Welcome.
    fn announce(&mut self, ending: Ending) {
        let channel = self.exec(1000, "true", None);
        self.finish(channel);
        let control = self.control.as_mut().expect("not closed");
        control
            .write_all(&[announcement(ending)])
            .expect("the agent listens");
    }
}

impl Drop for Host {
    fn drop(&mut self) {
        self.control = None;
    }
}

const SIZE: TtySize = TtySize {
    rows: 33,
    columns: 77,
};

#[test]
fn a_command_gives_both_outputs_and_its_code() {
    let mut host = Host::new();
    let channel = host.exec(1, "echo $NAME; pwd; echo bad >&2; exit 3", None);
    let (out, err, status) = host.finish(channel);
    assert_eq!(out, b"value\n/\n");
    assert_eq!(err, b"bad\n");
    assert_eq!(status, ExitStatus::Code(3));
}

#[test]
fn a_command_that_a_signal_kills_says_which() {
    let mut host = Host::new();
    let channel = host.exec(1, "kill -USR1 $$", None);
    assert_eq!(host.finish(channel).2, ExitStatus::Signal(libc::SIGUSR1));
}

#[test]
fn a_signal_from_the_host_reaches_the_whole_group() {
    let mut host = Host::new();
    let channel = host.exec(1, "sleep 1000; echo not reached", None);
    host.send(HostMessage::Signal {
        channel,
        signal: libc::SIGTERM,
    });
    let (out, _, status) = host.finish(channel);
    assert_eq!(status, ExitStatus::Signal(libc::SIGTERM));
    assert!(out.is_empty());
}

#[test]
fn input_arrives_and_its_end_too() {
    let mut host = Host::new();
    let channel = host.exec(1, "cat", None);
    for data in [b"one\n".to_vec(), b"two\n".to_vec()] {
        host.send(HostMessage::Stdin { channel, data });
    }
    host.send(HostMessage::StdinEof { channel });
    let (out, _, status) = host.finish(channel);
    assert_eq!(out, b"one\ntwo\n");
    assert_eq!(status, ExitStatus::Code(0));
}

#[test]
fn output_waits_for_credit_and_nothing_of_it_is_lost() {
    let mut host = Host::new();
    let bytes = 3 * WINDOW_BYTES as usize;
    let channel = host.exec(1, &format!("head -c {bytes} /dev/zero"), None);
    let mut received = 0;
    while received < WINDOW_BYTES as usize {
        match host.next() {
            GuestMessage::Stdout { data, .. } => received += data.len(),
            other => panic!("expected output, got {other:?}"),
        }
    }
    assert_eq!(received, WINDOW_BYTES as usize, "more than the window");
    // A stalled channel does not stall another.
    let other = host.exec(2, "echo here", None);
    assert_eq!(host.finish(other).0, b"here\n");
    host.send(HostMessage::Credit {
        channel,
        bytes: WINDOW_BYTES,
    });
    let (rest, _, _) = host.finish(channel);
    assert_eq!(received + rest.len(), bytes);
}

#[test]
fn a_command_that_does_not_read_does_not_stall_the_others() {
    let mut host = Host::new();
    let deaf = host.exec(1, "sleep 1000", None);
    for _ in 0..8 {
        host.send(HostMessage::Stdin {
            channel: deaf,
            data: vec![b'x'; 32 << 10],
        });
    }
    let other = host.exec(2, "echo here", None);
    assert_eq!(host.finish(other).0, b"here\n");
    host.send(HostMessage::Signal {
        channel: deaf,
        signal: libc::SIGKILL,
    });
    assert_eq!(host.finish(deaf).2, ExitStatus::Signal(libc::SIGKILL));
}

#[test]
fn output_of_a_child_that_stays_behind_is_not_waited_for() {
    let mut host = Host::new();
    let channel = host.exec(1, "(sleep 1000) & echo $!", None);
    let (out, _, status) = host.finish(channel);
    assert_eq!(status, ExitStatus::Code(0));
    let pid: i32 = String::from_utf8(out)
        .expect("text")
        .trim()
        .parse()
        .expect("a number");
    kill(Pid::from_raw(pid), Signal::SIGKILL).expect("it still runs");
}

#[test]
fn a_terminal_has_the_size_of_the_hosts_and_follows_it() {
    let mut host = Host::new();
    let channel = host.exec(1, "stty size; read go; stty size; tty", Some(SIZE));
    let mut out = Vec::new();
    while !out.ends_with(b"33 77\r\n") {
        match host.next() {
            GuestMessage::Stdout { data, .. } => out.extend(data),
            other => panic!("expected output, got {other:?}"),
        }
    }
    host.send(HostMessage::Resize {
        channel,
        size: TtySize {
            rows: 11,
            columns: 22,
        },
    });
    host.send(HostMessage::Stdin {
        channel,
        data: b"\n".to_vec(),
    });
    let (out, err, status) = host.finish(channel);
    let out = String::from_utf8(out).expect("text");
    assert!(out.contains("11 22\r\n/dev/pts/"), "{out:?}");
    assert!(err.is_empty(), "a terminal has one output");
    assert_eq!(status, ExitStatus::Code(0));
}

#[test]
fn ctrl_c_on_the_terminal_interrupts_the_command() {
    let mut host = Host::new();
    // Started means that sleep is there: a shell in between has its own ideas.
    let sleep = Command::Argv(vec!["sleep".into(), "1000".into()]);
    let channel = host.start(1, sleep, Some(SIZE));
    host.send(HostMessage::Stdin {
        channel,
        data: vec![3],
    });
    assert_eq!(host.finish(channel).2, ExitStatus::Signal(libc::SIGINT));
}

#[test]
fn the_end_of_input_ends_a_reader_on_a_terminal() {
    let mut host = Host::new();
    let channel = host.exec(1, "cat >/dev/null; echo over", Some(SIZE));
    host.send(HostMessage::StdinEof { channel });
    let (out, _, _) = host.finish(channel);
    assert!(out.ends_with(b"over\r\n"), "{out:?}");
}

#[test]
fn a_program_that_is_not_there_is_refused_in_one_line() {
    let mut host = Host::new();
    let exec = Exec {
        command: Command::Argv(vec!["/no/such/program".into()]),
        tty: None,
        env: Vec::new(),
        cwd: None,
    };
    host.send(HostMessage::Exec {
        channel: ChannelId(5),
        exec,
    });
    match host.next() {
        GuestMessage::Failed { channel, reason } => {
            assert_eq!(channel, ChannelId(5));
            assert!(reason.contains("/no/such/program"), "{reason}");
        }
        other => panic!("expected Failed, got {other:?}"),
    }
}

#[test]
fn a_channel_in_use_is_refused() {
    let mut host = Host::new();
    let channel = host.exec(1, "sleep 1000", None);
    host.send(HostMessage::Exec {
        channel,
        exec: Exec {
            command: Command::Shell("true".into()),
            tty: None,
            env: Vec::new(),
            cwd: None,
        },
    });
    assert!(matches!(host.next(), GuestMessage::Failed { .. }));
    host.send(HostMessage::Signal {
        channel,
        signal: libc::SIGKILL,
    });
    host.finish(channel);
}

#[test]
fn nothing_is_obeyed_before_the_welcome_of_this_very_instance() {
    let mut host = Host::unwelcome();
    let end = HostMessage::End(Ending::Reboot);
    host.send(end.clone());
    host.send(HostMessage::Welcome {
        version: VERSION,
        instance: !host.instance,
    });
    host.send(end);
    host.send(HostMessage::Welcome {
        version: VERSION,
        instance: host.instance,
    });
    let channel = host.exec(1, "true", None);
    host.finish(channel);
    assert!(
        host.requests.try_recv().is_err(),
        "a stale frame was obeyed"
    );
}

#[test]
fn bytes_of_a_frame_that_was_cut_off_do_not_confuse_the_agent() {
    let mut host = Host::unwelcome();
    host.socket
        .write_all(&[0x20, 1, 2, 3, 0])
        .expect("the agent reads");
    host.send(HostMessage::Welcome {
        version: VERSION,
        instance: host.instance,
    });
    let channel = host.exec(1, "echo here", None);
    assert_eq!(host.finish(channel).0, b"here\n");
}

#[test]
fn a_ping_is_answered() {
    let mut host = Host::new();
    host.send(HostMessage::Ping);
    assert_eq!(host.next(), GuestMessage::Pong);
}

#[test]
fn an_end_that_the_host_asks_for_goes_to_process_one() {
    let mut host = Host::new();
    host.send(HostMessage::End(Ending::PowerOff));
    assert_eq!(host.requests.recv_timeout(PATIENCE), Ok(Ending::PowerOff));
}

#[test]
fn an_announced_end_is_told_to_the_host_and_its_answer_ends_the_agent() {
    let mut host = Host::new();
    host.announce(Ending::Reboot);
    assert_eq!(host.next(), GuestMessage::Goodbye(Ending::Reboot));
    host.send(HostMessage::Farewell);
    while !host.agent.is_finished() {
        sleep(Duration::from_millis(1));
    }
}

#[test]
fn an_announced_end_does_not_wait_for_ever_for_the_host() {
    let mut host = Host::new();
    host.announce(Ending::PowerOff);
    let started = Instant::now();
    while !host.agent.is_finished() {
        assert!(started.elapsed() < PATIENCE, "the agent still waits");
        sleep(Duration::from_millis(10));
    }
    assert!(started.elapsed() >= FAREWELL_TIMEOUT / 2);
}
