// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How much data may be on the way: a sender's [`Window`], a receiver's [`Grants`].

/// Bytes that a receiver promises to hold for one channel and direction. Eight
/// full frames keep the port busy while credit travels back.
pub const WINDOW_BYTES: u32 = 256 << 10;

/// What a sender may still send on a channel.
#[derive(Debug)]
pub struct Window {
    left: u32,
}

impl Default for Window {
    fn default() -> Self {
        Self { left: WINDOW_BYTES }
    }
}

impl Window {
    /// Bytes that may be sent now.
    pub fn available(&self) -> usize {
        self.left as usize
    }

    /// Accounts for `bytes` that were sent.
    ///
    /// # Panics
    /// If they are more than [`Window::available`]: a bug of the caller's.
    pub fn spend(&mut self, bytes: usize) {
        assert!(bytes <= self.available(), "sent beyond the window");
        self.left -= bytes as u32;
    }

    /// Takes credit that the receiver gave. Credit beyond a full window is the
    /// receiver's mistake and is dropped.
    pub fn credit(&mut self, bytes: u32) {
        self.left = self.left.saturating_add(bytes).min(WINDOW_BYTES);
    }
}

/// What a receiver handed on and has not given credit for yet.
#[derive(Debug, Default)]
pub struct Grants {
    owed: u32,
}

impl Grants {
    /// Accounts for `bytes` that were handed on. Gives the credit to send when
    /// half a window has come together, so that not every byte costs a frame.
    pub fn handed_on(&mut self, bytes: usize) -> Option<u32> {
        self.owed = self
            .owed
            .saturating_add(u32::try_from(bytes).unwrap_or(u32::MAX));
        (self.owed >= WINDOW_BYTES / 2).then(|| std::mem::take(&mut self.owed))
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::collections::VecDeque;

    #[test]
    fn a_window_is_full_at_first_and_never_grows_beyond_that() {
        let mut window = Window::default();
        window.credit(1);
        assert_eq!(window.available(), WINDOW_BYTES as usize);
        window.spend(10);
        window.credit(u32::MAX);
        assert_eq!(window.available(), WINDOW_BYTES as usize);
    }

    #[test]
    #[should_panic(expected = "sent beyond the window")]
    fn spending_more_than_the_window_is_a_bug() {
        Window::default().spend(WINDOW_BYTES as usize + 1);
    }

    proptest! {
        /// Whatever sizes sender and receiver work in, everything arrives, and the
        /// receiver never holds more than it promised.
        #[test]
        fn a_stream_never_stalls_and_never_exceeds_the_promise(
            send_bytes in prop::collection::vec(1_usize..40_000, 1..80),
            take_bytes in 1_usize..100_000,
        ) {
            let mut window = Window::default();
            let mut grants = Grants::default();
            let mut held = 0;
            let mut to_send: VecDeque<usize> = send_bytes.into();
            while !to_send.is_empty() || held > 0 {
                if let Some(next) = to_send.front_mut() {
                    let now = (*next).min(window.available());
                    window.spend(now);
                    held += now;
                    *next -= now;
                    if *next == 0 {
                        to_send.pop_front();
                    } else {
                        prop_assert!(held > 0, "sender is stuck and nothing is on the way");
                    }
                }
                prop_assert!(held <= WINDOW_BYTES as usize);
                let taken = held.min(take_bytes);
                held -= taken;
                if let Some(credit) = grants.handed_on(taken) {
                    window.credit(credit);
                }
            }
        }
    }
}
