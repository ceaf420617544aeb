// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the two sides say to each other.

use serde::{Deserialize, Serialize};

/// Version of this protocol. Both sides are built from one tree, so a difference
/// means a stale initramfs and is an error, not something to negotiate.
pub const VERSION: u32 = 1;

/// Most bytes of data in one frame: the largest write that the guest's
/// virtio-serial driver takes in one piece.
pub const DATA_BYTES_MAX: usize = 32 << 10;

/// Number of a channel, picked by the host.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
pub struct ChannelId(pub u32);

/// Size of a terminal in character cells.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct TtySize {
    /// Height.
    pub rows: u16,
    /// Width.
    pub columns: u16,
}

/// What to run.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Command {
    /// A program with its arguments; the first is looked up in `PATH`.
    Argv(Vec<String>),
    /// A line for `/bin/sh -c`.
    Shell(String),
}

/// A command and its surroundings.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Exec {
    /// What to run.
    pub command: Command,
    /// With a terminal of this size, or with three pipes.
    pub tty: Option<TtySize>,
    /// Variables on top of the agent's own environment.
    pub env: Vec<(String, String)>,
    /// Folder to start in; the agent's own home if absent.
    pub cwd: Option<String>,
}

/// How a command ended.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ExitStatus {
    /// It returned this code.
    Code(i32),
    /// This signal killed it.
    Signal(i32),
}

impl ExitStatus {
    /// One number, as a shell gives it: the code, or 128 and the signal.
    pub fn shell_code(self) -> i32 {
        match self {
            ExitStatus::Code(code) => code,
            ExitStatus::Signal(signal) => 128 + signal,
        }
    }

    /// Whether the command returned zero.
    pub fn success(self) -> bool {
        self == ExitStatus::Code(0)
    }
}

/// How a guest ends in good order.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum Ending {
    /// It turns the machine off.
    PowerOff,
    /// It starts again.
    Reboot,
}

/// What became of the driver module at boot.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum ModuleState {
    /// It is loaded.
    Loaded,
    /// The kernel command line said `cdm.load=0`.
    NotWanted,
    /// The kernel refused it, or it is not there.
    Failed(String),
}

/// From the host to the guest.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum HostMessage {
    /// Answer to [`GuestMessage::Hello`].
    Welcome {
        /// [`VERSION`] of the host.
        version: u32,
        /// Instance that the guest said in its Hello.
        instance: u64,
    },
    /// Open a channel and run a command on it.
    Exec {
        /// A number that this instance has not seen yet.
        channel: ChannelId,
        /// What to run.
        exec: Exec,
    },
    /// Input for the command, within its window.
    Stdin {
        /// The command's channel.
        channel: ChannelId,
        /// At most [`DATA_BYTES_MAX`].
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// No more input follows.
    StdinEof {
        /// The command's channel.
        channel: ChannelId,
    },
    /// The host handed on this much of the command's output, both streams counted.
    Credit {
        /// The command's channel.
        channel: ChannelId,
        /// Bytes.
        bytes: u32,
    },
    /// Send a signal to the command and its process group.
    Signal {
        /// The command's channel.
        channel: ChannelId,
        /// Number of the signal, as Linux on x86-64 counts.
        signal: i32,
    },
    /// The terminal has another size.
    Resize {
        /// The command's channel.
        channel: ChannelId,
        /// The new size.
        size: TtySize,
    },
    /// End every process and turn the machine off, or start it again.
    End(Ending),
    /// Answer to [`GuestMessage::Goodbye`]: the host is ready for it.
    Farewell,
    /// A question whether the agent still runs.
    Ping,
}

/// From the guest to the host.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub enum GuestMessage {
    /// An agent has started.
    Hello {
        /// [`VERSION`] of the guest.
        version: u32,
        /// A random number of this start of the agent.
        instance: u64,
        /// What became of the driver module.
        module: ModuleState,
    },
    /// The command runs.
    Started {
        /// The command's channel.
        channel: ChannelId,
        /// Its process number in the guest.
        pid: u32,
    },
    /// The command could not be started; the channel is closed.
    Failed {
        /// The command's channel.
        channel: ChannelId,
        /// Why, in one line.
        reason: String,
    },
    /// Output of the command; all output when it has a terminal.
    Stdout {
        /// The command's channel.
        channel: ChannelId,
        /// At most [`DATA_BYTES_MAX`].
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// Error output of the command.
    Stderr {
        /// The command's channel.
        channel: ChannelId,
        /// At most [`DATA_BYTES_MAX`].
        #[serde(with = "serde_bytes")]
        data: Vec<u8>,
    },
    /// The command took this much of its input.
    Credit {
        /// The command's channel.
        channel: ChannelId,
        /// Bytes.
        bytes: u32,
    },
    /// The command ended and all its output is sent; the channel is closed.
    Exit {
        /// The command's channel.
        channel: ChannelId,
        /// How it ended.
        status: ExitStatus,
    },
    /// The guest is about to end in good order; it waits a moment for [`HostMessage::Farewell`].
    Goodbye(Ending),
    /// Answer to [`HostMessage::Ping`].
    Pong,
}
