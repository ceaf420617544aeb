// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Frames between the host tool `cdm` and the agent in its guest.
//!
//! Both sides speak over one virtio-serial port, [`PORT_NAME`]. The crate does no
//! I/O: [`encode`] gives bytes to write, [`Decoder`] takes bytes that were read.
//!
//! # A connection
//!
//! The guest says [`GuestMessage::Hello`] when its agent starts and the host
//! answers [`HostMessage::Welcome`] with the same instance number. Until then the
//! guest ignores whatever it reads: after a reboot the port may still hold bytes
//! that were meant for the guest before. A second `Hello` with another instance
//! number tells the host that every channel of the first is gone. Before an
//! orderly end the guest says [`GuestMessage::Goodbye`], so that the host can tell
//! a reboot that somebody asked for from a crash.
//!
//! # Channels
//!
//! A channel is one command that runs in the guest. The host picks its number and
//! never uses it twice within an instance. [`HostMessage::Exec`] opens it,
//! [`GuestMessage::Exit`] or [`GuestMessage::Failed`] is the last frame about it.
//!
//! # Why it cannot deadlock
//!
//! Each side must read the port whatever happens to what it writes, so nobody may
//! send more than the other side has promised to hold: data goes out only within
//! a [`Window`], and a receiver returns credit after it handed the data on. Slow
//! consumers therefore stall their own channel and nothing else.
//!
//! # What programs print
//!
//! [`Sample`] is no frame, but a line that a benchmark in the guest prints for the host tool.

mod flow;
mod frame;
mod message;
mod sample;

pub use flow::{Grants, WINDOW_BYTES, Window};
pub use frame::{Decoder, EncodeError, FRAME_BYTES_MAX, FrameError, encode};
pub use message::{
    ChannelId, Command, DATA_BYTES_MAX, Ending, Exec, ExitStatus, GuestMessage, HostMessage,
    ModuleState, TtySize, VERSION,
};
pub use sample::{SUBJECT, Sample, SampleError, Unit};

/// Name of the virtio-serial port that carries the frames.
pub const PORT_NAME: &str = "org.cdm.agent";
