// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Bytes of a frame: a message as postcard writes it, COBS-encoded, ended by a zero.
//!
//! A zero never occurs inside a frame, so a reader that lost its place (the guest
//! was reset in the middle of a frame) is back in step at the next zero. Lengths
//! inside the message make a cut-off frame an error instead of a shorter message.

use std::collections::VecDeque;
use std::marker::PhantomData;

use serde::{Serialize, de::DeserializeOwned};

/// Most bytes of one frame, the ending zero included. Twice the data that a frame
/// may hold leaves room for a long command line with its environment.
pub const FRAME_BYTES_MAX: usize = 64 << 10;

/// Ends every frame.
const DELIMITER: u8 = 0;

/// Why a message did not become a frame.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum EncodeError {
    /// It is too long.
    #[error("message of {bytes} bytes is longer than a frame of {FRAME_BYTES_MAX} bytes")]
    TooLong {
        /// Bytes that it would take.
        bytes: usize,
    },
    /// serde could not write it.
    #[error("message cannot be serialised: {0}")]
    Serialize(postcard::Error),
}

/// Why bytes did not become a message. The decoder goes on after it.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum FrameError {
    /// No end of frame within the limit.
    #[error("frame is longer than {FRAME_BYTES_MAX} bytes")]
    TooLong,
    /// The bytes between two ends of frame are no message.
    #[error("frame of {bytes} bytes is not a message: {reason}")]
    Malformed {
        /// Bytes between the two ends.
        bytes: usize,
        /// What is wrong with them.
        reason: String,
    },
}

/// Appends the frame of `message` to `out`.
pub fn encode<T: Serialize>(message: &T, out: &mut impl Extend<u8>) -> Result<(), EncodeError> {
    let plain = postcard::to_allocvec(message).map_err(EncodeError::Serialize)?;
    let bytes = cobs::max_encoding_length(plain.len()) + 1;
    if bytes > FRAME_BYTES_MAX {
        return Err(EncodeError::TooLong { bytes });
    }
    out.extend(cobs::encode_vec(&plain));
    out.extend([DELIMITER]);
    Ok(())
}

/// Turns bytes into messages of type `T`, whatever pieces the bytes come in.
#[derive(Debug)]
pub struct Decoder<T> {
    /// Bytes of the frame that is being read, without its end.
    partial: Vec<u8>,
    /// The current frame is over the limit; its rest is dropped.
    overrun: bool,
    ready: VecDeque<Result<T, FrameError>>,
    message: PhantomData<fn() -> T>,
}

impl<T> Default for Decoder<T> {
    fn default() -> Self {
        Self {
            partial: Vec::new(),
            overrun: false,
            ready: VecDeque::new(),
            message: PhantomData,
        }
    }
}

impl<T: DeserializeOwned> Decoder<T> {
    /// A decoder at the start of a frame.
    pub fn new() -> Self {
        Self::default()
    }

    /// Takes bytes that were read.
    pub fn push(&mut self, mut bytes: &[u8]) {
        while let Some(end) = bytes.iter().position(|byte| *byte == DELIMITER) {
            self.append(&bytes[..end]);
            self.finish();
            bytes = &bytes[end + 1..];
        }
        self.append(bytes);
    }

    /// The next message, or what was wrong with the bytes in its place.
    pub fn next_message(&mut self) -> Option<Result<T, FrameError>> {
        self.ready.pop_front()
    }

    fn append(&mut self, bytes: &[u8]) {
        if self.overrun {
            return;
        }
        // The frame's end counts as well.
        if self.partial.len() + bytes.len() >= FRAME_BYTES_MAX {
            self.overrun = true;
            self.partial.clear();
            self.ready.push_back(Err(FrameError::TooLong));
            return;
        }
        self.partial.extend_from_slice(bytes);
    }

    fn finish(&mut self) {
        // Nothing between two ends is allowed: a sender may open with an end to
        // close what an earlier guest left unfinished.
        if !std::mem::take(&mut self.overrun) && !self.partial.is_empty() {
            let bytes = self.partial.len();
            let result =
                parse(&mut self.partial).map_err(|reason| FrameError::Malformed { bytes, reason });
            self.ready.push_back(result);
        }
        self.partial.clear();
    }
}

fn parse<T: DeserializeOwned>(frame: &mut [u8]) -> Result<T, String> {
    let bytes = cobs::decode_in_place(frame).map_err(|_| "it is cut off".to_owned())?;
    let (message, rest) =
        postcard::take_from_bytes(&frame[..bytes]).map_err(|error| error.to_string())?;
    match rest.len() {
        0 => Ok(message),
        extra => Err(format!("{extra} bytes follow the message")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::message::{
        ChannelId, Command, DATA_BYTES_MAX, Ending, Exec, ExitStatus, GuestMessage, HostMessage,
        ModuleState, TtySize, VERSION,
    };
    use proptest::prelude::*;

    fn frame(message: &GuestMessage) -> Vec<u8> {
        let mut bytes = Vec::new();
        encode(message, &mut bytes).expect("fits");
        bytes
    }

    fn decode_all<T: DeserializeOwned>(pieces: &[&[u8]]) -> Vec<Result<T, FrameError>> {
        let mut decoder = Decoder::new();
        for piece in pieces {
            decoder.push(piece);
        }
        std::iter::from_fn(|| decoder.next_message()).collect()
    }

    fn output(bytes: usize) -> GuestMessage {
        GuestMessage::Stdout {
            channel: ChannelId(3),
            data: (0..bytes).map(|index| index as u8).collect(),
        }
    }

    fn hello() -> GuestMessage {
        GuestMessage::Hello {
            version: VERSION,
            instance: 0x0123_4567_89ab_cdef,
            module: ModuleState::Loaded,
        }
    }

    /// Both sides come from one tree, but an initramfs may be older: these bytes
    /// may only change together with `VERSION`.
    #[test]
    fn frames_have_the_bytes_of_this_protocol_version() {
        let exit = GuestMessage::Exit {
            channel: ChannelId(7),
            status: ExitStatus::Code(0),
        };
        assert_eq!(frame(&exit), [0x03, 0x06, 0x07, 0x01, 0x01, 0x00]);
        let mut farewell = Vec::new();
        encode(&HostMessage::Farewell, &mut farewell).expect("fits");
        assert_eq!(farewell, [0x02, 0x08, 0x00]);
        assert_eq!(VERSION, 1);
    }

    #[test]
    fn a_frame_with_the_most_data_fits() {
        let message = output(DATA_BYTES_MAX);
        assert_eq!(decode_all(&[&frame(&message)]), [Ok(message)]);
    }

    #[test]
    fn a_message_beyond_the_limit_is_refused_by_the_sender() {
        let mut bytes = Vec::new();
        let refused = encode(&output(FRAME_BYTES_MAX), &mut bytes);
        assert!(matches!(refused, Err(EncodeError::TooLong { .. })));
        assert!(bytes.is_empty());
    }

    #[test]
    fn a_frame_beyond_the_limit_is_reported_once_and_the_next_is_read() {
        let endless = vec![0xff; 4 * FRAME_BYTES_MAX];
        let results = decode_all(&[&endless, &[0], &frame(&hello())]);
        assert_eq!(results, [Err(FrameError::TooLong), Ok(hello())]);
    }

    #[test]
    fn a_frame_cut_off_by_a_reset_is_an_error_and_the_next_is_read() {
        let whole = frame(&output(1000));
        for length in 1..whole.len() - 1 {
            let results = decode_all::<GuestMessage>(&[&whole[..length], &[0], &frame(&hello())]);
            assert_eq!(results.len(), 2, "cut after {length}");
            assert!(
                matches!(results[0], Err(FrameError::Malformed { .. })),
                "cut after {length}: {:?}",
                results[0]
            );
            assert_eq!(results[1], Ok(hello()), "cut after {length}");
        }
    }

    #[test]
    fn bytes_behind_a_message_are_an_error() {
        let mut plain = postcard::to_allocvec(&hello()).expect("serialises");
        plain.push(1);
        let mut bytes = cobs::encode_vec(&plain);
        bytes.push(0);
        assert!(matches!(
            decode_all::<GuestMessage>(&[&bytes])[..],
            [Err(FrameError::Malformed { .. })]
        ));
    }

    #[test]
    fn an_unknown_message_is_an_error_and_the_next_is_read() {
        let results = decode_all::<GuestMessage>(&[&[0x02, 0x7f, 0x00], &frame(&hello())]);
        assert!(matches!(results[0], Err(FrameError::Malformed { .. })));
        assert_eq!(results[1], Ok(hello()));
    }

    fn host_message() -> impl Strategy<Value = HostMessage> {
        let channel = any::<u32>().prop_map(ChannelId);
        let size = any::<(u16, u16)>().prop_map(|(rows, columns)| TtySize { rows, columns });
        let command = prop_oneof![
            prop::collection::vec(any::<String>(), 0..5).prop_map(Command::Argv),
            any::<String>().prop_map(Command::Shell),
        ];
        let exec = (
            command,
            prop::option::of(size.clone()),
            prop::collection::vec(any::<(String, String)>(), 0..4),
            prop::option::of(any::<String>()),
        )
            .prop_map(|(command, tty, env, cwd)| Exec {
                command,
                tty,
                env,
                cwd,
            });
        prop_oneof![
            any::<(u32, u64)>()
                .prop_map(|(version, instance)| HostMessage::Welcome { version, instance }),
            (channel.clone(), exec).prop_map(|(channel, exec)| HostMessage::Exec { channel, exec }),
            (channel.clone(), prop::collection::vec(any::<u8>(), 0..2000))
                .prop_map(|(channel, data)| HostMessage::Stdin { channel, data }),
            channel
                .clone()
                .prop_map(|channel| HostMessage::StdinEof { channel }),
            (channel.clone(), any::<u32>())
                .prop_map(|(channel, bytes)| HostMessage::Credit { channel, bytes }),
            (channel.clone(), any::<i32>())
                .prop_map(|(channel, signal)| HostMessage::Signal { channel, signal }),
            (channel, size).prop_map(|(channel, size)| HostMessage::Resize { channel, size }),
            Just(HostMessage::End(Ending::PowerOff)),
            Just(HostMessage::End(Ending::Reboot)),
            Just(HostMessage::Farewell),
            Just(HostMessage::Ping),
        ]
    }

    proptest! {
        #[test]
        fn every_message_comes_back_whatever_pieces_it_arrives_in(
            messages in prop::collection::vec(host_message(), 1..6),
            piece_bytes in 1_usize..300,
        ) {
            let mut bytes = Vec::new();
            for message in &messages {
                encode(message, &mut bytes).expect("fits");
            }
            let pieces: Vec<&[u8]> = bytes.chunks(piece_bytes).collect();
            let expected: Vec<_> = messages.into_iter().map(Ok).collect();
            prop_assert_eq!(decode_all(&pieces), expected);
        }

        #[test]
        fn whatever_bytes_came_before_a_hello_after_an_end_of_frame_is_read(
            noise in prop::collection::vec(any::<u8>(), 0..5000),
        ) {
            let results = decode_all::<GuestMessage>(&[&noise, &[0], &frame(&hello())]);
            prop_assert_eq!(results.last(), Some(&Ok(hello())));
        }
    }
}
