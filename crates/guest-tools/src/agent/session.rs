// SPDX-License-Identifier: Apache-2.0 OR MIT

//! One command: its process, and a terminal or three pipes to it.

use std::collections::VecDeque;
use std::fs::File;
use std::io::{self, ErrorKind, Read, Write};
use std::os::fd::{AsFd, BorrowedFd, FromRawFd, OwnedFd};
use std::os::unix::process::CommandExt;
use std::process::{Child, Command, Stdio};

use cdm_agent_protocol::{
    ChannelId, Command as Line, DATA_BYTES_MAX, Exec, ExitStatus, Grants, GuestMessage, TtySize,
    WINDOW_BYTES, Window,
};
use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::poll::PollFlags;
use nix::pty::{Winsize, openpty};
use nix::sys::signal::{SigHandler, SigSet, Signal, kill};
use nix::unistd::{Pid, setsid};

/// What a terminal takes for the end of input (Ctrl-D).
const END_OF_TRANSMISSION: u8 = 4;

nix::ioctl_write_int_bad!(make_controlling_terminal, libc::TIOCSCTTY);
nix::ioctl_write_ptr_bad!(set_window_size, libc::TIOCSWINSZ, Winsize);

/// A command that runs, or has ended with output still to send.
pub struct Session {
    child: Child,
    /// Readable once the process ended.
    process: OwnedFd,
    status: Option<ExitStatus>,
    input: Input,
    outputs: Vec<Output>,
    terminal: bool,
    window: Window,
    buffer: Vec<u8>,
}

/// The way to the command.
struct Input {
    file: Option<File>,
    queue: VecDeque<u8>,
    /// The host has no more; the file is closed when the queue is empty.
    ends: bool,
    grants: Grants,
}

/// A way from the command.
struct Output {
    file: File,
    error_stream: bool,
    ended: bool,
}

impl Session {
    /// Starts a command. The error is a line for the user.
    pub fn start(exec: &Exec) -> Result<Self, String> {
        let mut command = match &exec.command {
            Line::Shell(line) => {
                let mut command = Command::new("/bin/sh");
                command.arg("-c").arg(line);
                command
            }
            Line::Argv(argv) => {
                let [program, arguments @ ..] = argv.as_slice() else {
                    return Err("an empty command".to_owned());
                };
                let mut command = Command::new(program);
                command.args(arguments);
                command
            }
        };
        let program = command.get_program().display().to_string();
        command.envs(exec.env.iter().map(|(name, value)| (name, value)));
        if let Some(cwd) = &exec.cwd {
            command.current_dir(cwd);
        }
        let started = match exec.tty {
            Some(size) => Self::start_on_terminal(command, size),
            None => Self::start_on_pipes(command),
        };
        started.map_err(|error| match &exec.cwd {
            Some(cwd) => format!("cannot start {program} in {cwd}: {error}"),
            None => format!("cannot start {program}: {error}"),
        })
    }

    fn start_on_pipes(mut command: Command) -> io::Result<Self> {
        command
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped());
        in_new_session(&mut command, false);
        let mut child = command.spawn()?;
        let stdin = child.stdin.take().map(OwnedFd::from);
        let stdout = child.stdout.take().map(OwnedFd::from);
        let stderr = child.stderr.take().map(OwnedFd::from);
        let outputs = [(stdout, false), (stderr, true)]
            .into_iter()
            .filter_map(|(fd, error_stream)| Some(Output::new(non_blocking(fd?), error_stream)))
            .collect();
        Self::new(child, stdin.map(non_blocking), outputs, false)
    }

    fn start_on_terminal(mut command: Command, size: TtySize) -> io::Result<Self> {
        let pty = openpty(&window_size(size), None)?;
        // The copies close on exec, which openpty(3) does not do for its own.
        let (master, slave) = (pty.master.try_clone()?, pty.slave.try_clone()?);
        drop(pty);
        command
            .stdin(Stdio::from(slave.try_clone()?))
            .stdout(Stdio::from(slave.try_clone()?))
            .stderr(Stdio::from(slave));
        in_new_session(&mut command, true);
        let child = command.spawn()?;
        // Holds our copies of the slave: as long as they live, the terminal has no end.
        drop(command);
        let writer = non_blocking(master.try_clone()?);
        let output = Output::new(non_blocking(master), false);
        Self::new(child, Some(writer), vec![output], true)
    }

    fn new(
        mut child: Child,
        input: Option<File>,
        outputs: Vec<Output>,
        terminal: bool,
    ) -> io::Result<Self> {
        let process = match open_process(child.id()) {
            Ok(process) => process,
            Err(error) => {
                child.kill()?;
                child.wait()?;
                return Err(error);
            }
        };
        Ok(Self {
            child,
            process,
            status: None,
            input: Input {
                file: input,
                queue: VecDeque::new(),
                ends: false,
                grants: Grants::default(),
            },
            outputs,
            terminal,
            window: Window::default(),
            buffer: vec![0; DATA_BYTES_MAX],
        })
    }

    /// Process number of the command.
    pub fn pid(&self) -> u32 {
        self.child.id()
    }

    /// What to wait for.
    pub fn interests<'a>(&'a self, into: &mut Vec<(BorrowedFd<'a>, PollFlags)>) {
        if self.status.is_none() {
            into.push((self.process.as_fd(), PollFlags::POLLIN));
        }
        if let Some(file) = &self.input.file
            && !self.input.queue.is_empty()
        {
            into.push((file.as_fd(), PollFlags::POLLOUT));
        }
        if self.window.available() > 0 {
            for output in self.outputs.iter().filter(|output| !output.ended) {
                into.push((output.file.as_fd(), PollFlags::POLLIN));
            }
        }
    }

    /// Takes input from the host.
    pub fn input(&mut self, data: &[u8]) {
        // Beyond the window only a broken host sends; it must not fill the memory.
        let room = (WINDOW_BYTES as usize).saturating_sub(self.input.queue.len());
        self.input.queue.extend(&data[..data.len().min(room)]);
    }

    /// The host has no more input.
    pub fn input_ends(&mut self) {
        if !self.input.ends && self.terminal {
            self.input.queue.push_back(END_OF_TRANSMISSION);
        }
        self.input.ends = true;
    }

    /// The host handed on `bytes` of output.
    pub fn credit(&mut self, bytes: u32) {
        self.window.credit(bytes);
    }

    /// Sends a signal to the command's process group; an unknown number is ignored
    /// as kill(1) would refuse it.
    pub fn signal(&mut self, signal: i32) {
        if let Ok(signal) = Signal::try_from(signal)
            && self.status.is_none()
        {
            // Gone already is what a signal mostly wants.
            let _ = kill(Pid::from_raw(-(self.child.id() as i32)), signal);
        }
    }

    /// Gives the terminal another size.
    pub fn resize(&mut self, size: TtySize) {
        if let Some(file) = &self.input.file
            && self.terminal
        {
            use std::os::fd::AsRawFd;
            // SAFETY: the descriptor is open, and the call reads one Winsize.
            let _ = unsafe { set_window_size(file.as_raw_fd(), &window_size(size)) };
        }
    }

    /// Gives a command up whose host is gone. What is left of it is to be waited for.
    pub fn abandon(mut self) -> Option<Child> {
        self.signal(libc::SIGHUP);
        self.status.is_none().then_some(self.child)
    }

    /// Moves what can be moved now. Gives the status once the command has ended and
    /// everything it wrote is sent. What others write later into a pipe that they
    /// inherited is not waited for.
    pub fn serve(
        &mut self,
        channel: ChannelId,
        send: &mut dyn FnMut(GuestMessage),
    ) -> Option<ExitStatus> {
        if let Some(bytes) = self.input.write() {
            send(GuestMessage::Credit { channel, bytes });
        }
        // First the status, then the output: what the command wrote before it ended
        // is in the pipe then.
        if self.status.is_none()
            && let Ok(Some(status)) = self.child.try_wait()
        {
            self.status = Some(exit_status(status));
        }
        let mut drained = true;
        for output in &mut self.outputs {
            drained &= output.read(channel, &mut self.window, &mut self.buffer, send);
        }
        self.status.filter(|_| drained)
    }
}

impl Input {
    /// Writes what the command takes now. Gives credit for the host if it is due.
    fn write(&mut self) -> Option<u32> {
        let mut taken = 0;
        while !self.queue.is_empty() {
            let Some(file) = &mut self.file else {
                // Nobody reads it any more; the host must not stall on it.
                taken += self.queue.len();
                self.queue.clear();
                break;
            };
            match file.write(self.queue.as_slices().0) {
                Ok(length) => {
                    self.queue.drain(..length);
                    taken += length;
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => break,
                    ErrorKind::Interrupted => {}
                    _ => self.file = None,
                },
            }
        }
        if self.ends && self.queue.is_empty() {
            self.file = None;
        }
        self.grants.handed_on(taken)
    }
}

impl Output {
    fn new(file: File, error_stream: bool) -> Self {
        Self {
            file,
            error_stream,
            ended: false,
        }
    }

    /// Reads within the window. True if nothing is left to read for now.
    fn read(
        &mut self,
        channel: ChannelId,
        window: &mut Window,
        buffer: &mut [u8],
        send: &mut dyn FnMut(GuestMessage),
    ) -> bool {
        while !self.ended {
            let room = window.available().min(buffer.len());
            if room == 0 {
                return false;
            }
            match self.file.read(&mut buffer[..room]) {
                Ok(0) => self.ended = true,
                Ok(length) => {
                    window.spend(length);
                    let data = buffer[..length].to_vec();
                    send(match self.error_stream {
                        false => GuestMessage::Stdout { channel, data },
                        true => GuestMessage::Stderr { channel, data },
                    });
                }
                Err(error) => match error.kind() {
                    ErrorKind::WouldBlock => return true,
                    ErrorKind::Interrupted => {}
                    // EIO: nobody has the terminal open any more.
                    _ => self.ended = true,
                },
            }
        }
        true
    }
}

/// Makes the command the leader of a session and process group of its own.
fn in_new_session(command: &mut Command, terminal: bool) {
    let prepare = move || {
        setsid()?;
        if terminal {
            // SAFETY: standard input is the terminal's slave, which no session owns.
            unsafe { make_controlling_terminal(libc::STDIN_FILENO, 0) }?;
        }
        // A signal that the agent's parent ignored would stay ignored for ever.
        for signal in [Signal::SIGHUP, Signal::SIGINT, Signal::SIGQUIT] {
            // SAFETY: the default action runs no code of this process.
            unsafe { nix::sys::signal::signal(signal, SigHandler::SigDfl) }?;
        }
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only, all of them
    // async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
}

/// A descriptor that becomes readable when the process ends.
fn open_process(pid: u32) -> io::Result<OwnedFd> {
    // SAFETY: pidfd_open(2) takes two integers.
    let fd = unsafe { libc::syscall(libc::SYS_pidfd_open, pid as libc::pid_t, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: pidfd_open(2) just returned this descriptor, and nobody else has it.
    Ok(unsafe { OwnedFd::from_raw_fd(fd as i32) })
}

fn non_blocking(fd: OwnedFd) -> File {
    // A descriptor that is open cannot refuse this flag.
    let _ = fcntl(&fd, FcntlArg::F_SETFL(OFlag::O_NONBLOCK));
    File::from(fd)
}

fn window_size(size: TtySize) -> Winsize {
    Winsize {
        ws_row: size.rows,
        ws_col: size.columns,
        ws_xpixel: 0,
        ws_ypixel: 0,
    }
}

fn exit_status(status: std::process::ExitStatus) -> ExitStatus {
    use std::os::unix::process::ExitStatusExt;
    match (status.code(), status.signal()) {
        (Some(code), _) => ExitStatus::Code(code),
        (None, Some(signal)) => ExitStatus::Signal(signal),
        (None, None) => ExitStatus::Code(255),
    }
}
