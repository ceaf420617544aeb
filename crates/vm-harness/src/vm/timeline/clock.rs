// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the host's clock showed at a moment of the guest's.
//!
//! In an exchange the host sends a line, the guest puts a marker into its trace and answers. The
//! marker was made between sending and hearing, so the middle of the two is wrong by no more than
//! half of the way. The clocks do not run equally fast (the guest measured its timer in a short
//! moment of its boot, and the host's is disciplined), so there is a round of exchanges every
//! second, and between two rounds the difference is taken to change evenly.

use std::collections::HashMap;

/// An exchange, in microseconds of the host's CLOCK_MONOTONIC.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Exchange {
    /// The best exchange of each round counts.
    pub round: u32,
    /// Its number in the marker.
    pub number: u64,
    /// Just before the line went out.
    pub sent: f64,
    /// When the answer was there.
    pub heard: f64,
}

/// A moment on both clocks.
#[derive(Clone, Copy, Debug, PartialEq)]
struct Anchor {
    guest: f64,
    /// Host less guest.
    offset: f64,
    /// Half of the way of the exchange.
    half: f64,
}

/// The guest's times on the host's clock.
#[derive(Clone, Debug, PartialEq)]
pub struct Clock {
    /// At least one, in the guest's order.
    anchors: Vec<Anchor>,
    exchanges: usize,
}

/// The trace cuts times off to microseconds, that of a marker and that of an event.
const RESOLUTION: f64 = 2.0;
/// Rounds are dropped until none is worse than its neighbours without it; a few passes do.
const PASSES: usize = 16;

impl Clock {
    /// Takes exchanges, and the guest's times of their markers. `None` without any.
    pub fn new(exchanges: &[Exchange], markers: &HashMap<u64, u64>) -> Option<Self> {
        let mut rounds: Vec<(u32, Anchor)> = Vec::new();
        let mut used = 0;
        for exchange in exchanges {
            // The marker may have been overwritten, or the guest may have died before.
            let Some(guest) = markers.get(&exchange.number) else {
                continue;
            };
            used += 1;
            let guest = *guest as f64;
            let half = (exchange.heard - exchange.sent) / 2.0;
            let anchor = Anchor {
                guest,
                offset: exchange.sent + half - guest,
                half,
            };
            match rounds.last_mut() {
                Some((round, best)) if *round == exchange.round => {
                    if half < best.half {
                        *best = anchor;
                    }
                }
                _ => rounds.push((exchange.round, anchor)),
            }
        }
        let mut anchors: Vec<Anchor> = rounds.into_iter().map(|(_, anchor)| anchor).collect();
        anchors.sort_by(|a, b| a.guest.total_cmp(&b.guest));
        for _ in 0..PASSES {
            if !drop_bad_rounds(&mut anchors) {
                break;
            }
        }
        (!anchors.is_empty()).then_some(Self {
            anchors,
            exchanges: used,
        })
    }

    /// The host's time of a moment of the guest's, both in microseconds.
    pub fn host(&self, guest: u64) -> f64 {
        let guest = guest as f64;
        let next = self.anchors.partition_point(|anchor| anchor.guest <= guest);
        let offset = match (
            next.checked_sub(1).map(|at| self.anchors[at]),
            self.anchors.get(next),
        ) {
            (Some(before), Some(after)) => {
                let share = (guest - before.guest) / (after.guest - before.guest);
                before.offset + share * (after.offset - before.offset)
            }
            (Some(only), None) => only.offset,
            (None, Some(only)) => only.offset,
            (None, None) => 0.0,
        };
        guest + offset
    }

    /// By how much [`Clock::host`] may be wrong between the first round and the last, in
    /// microseconds, if the difference of the clocks changes one way only between two rounds.
    pub fn error(&self) -> f64 {
        let alone = self.anchors.iter().map(|anchor| anchor.half);
        let between = self
            .anchors
            .windows(2)
            .map(|pair| error(&pair[0], &pair[1]));
        alone.chain(between).fold(0.0, f64::max) + RESOLUTION
    }

    /// How many exchanges it is made of.
    pub fn exchanges(&self) -> usize {
        self.exchanges
    }
}

/// What may be wrong between two rounds.
fn error(before: &Anchor, after: &Anchor) -> f64 {
    before.half.max(after.half) + (after.offset - before.offset).abs()
}

/// Drops rounds in the middle of which less is known than without them: the guest was busy.
fn drop_bad_rounds(anchors: &mut Vec<Anchor>) -> bool {
    let mut kept: Vec<Anchor> = Vec::with_capacity(anchors.len());
    for (at, anchor) in anchors.iter().enumerate() {
        if let (Some(before), Some(after)) = (kept.last(), anchors.get(at + 1)) {
            let with = error(before, anchor).max(error(anchor, after));
            if error(before, after) < with {
                continue;
            }
        }
        kept.push(*anchor);
    }
    let dropped = kept.len() < anchors.len();
    *anchors = kept;
    dropped
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn exchange(round: u32, number: u64, sent: f64, heard: f64) -> Exchange {
        Exchange {
            round,
            number,
            sent,
            heard,
        }
    }

    #[test]
    fn best_exchange_of_a_round_counts_and_half_of_its_way_is_the_error() {
        let exchanges = [
            exchange(0, 0, 1000.0, 1900.0),
            exchange(0, 1, 2000.0, 2100.0),
            exchange(0, 2, 3000.0, 3400.0),
        ];
        let markers = HashMap::from([(0, 10), (1, 1050), (2, 2100)]);
        let clock = Clock::new(&exchanges, &markers).expect("there are exchanges");
        assert_eq!(clock.host(1050), 2050.0);
        assert_eq!(clock.host(0), 1000.0);
        assert_eq!(clock.error(), 50.0 + RESOLUTION);
        assert_eq!(clock.exchanges(), 3);
    }

    #[test]
    fn exchange_whose_marker_is_lost_does_not_count() {
        let exchanges = [exchange(0, 0, 0.0, 2.0), exchange(0, 1, 2000.0, 2100.0)];
        let clock = Clock::new(&exchanges, &HashMap::from([(1, 50)])).expect("there is one");
        assert_eq!(clock.host(50), 2050.0);
        assert_eq!(Clock::new(&exchanges, &HashMap::new()), None);
    }

    #[test]
    fn round_of_a_busy_guest_is_dropped_for_its_neighbours() {
        let exchanges = [
            exchange(0, 0, 0.0, 100.0),
            exchange(1, 1, 1_000_000.0, 1_090_000.0),
            exchange(2, 2, 2_000_000.0, 2_000_100.0),
        ];
        let markers = HashMap::from([(0, 50), (1, 1_000_100), (2, 2_000_050)]);
        let clock = Clock::new(&exchanges, &markers).expect("there are exchanges");
        assert_eq!(clock.error(), 50.0 + RESOLUTION);
        assert_eq!(clock.host(1_000_100), 1_000_100.0);
    }

    proptest! {
        /// The guest's clock starts anywhere and runs up to half a percent too fast or too slow;
        /// exchanges take anything, and so do the two ways of each.
        #[test]
        fn no_moment_is_further_off_than_the_stated_error(
            start in 0_u64..1 << 40,
            rate in 0.995_f64..1.005,
            rounds in prop::collection::vec(
                prop::collection::vec((1.0_f64..20_000.0, 0.0_f64..1.0), 1..4), 1..12),
            at in 0.0_f64..1.0,
        ) {
            // Host's time of a moment, and what the guest's trace tells for it.
            let guest = |host: f64| start + (host * rate) as u64;
            let (mut exchanges, mut markers) = (Vec::new(), HashMap::new());
            let mut now = 0.0;
            for (round, tries) in rounds.iter().enumerate() {
                for (way, share) in tries {
                    let number = exchanges.len() as u64;
                    markers.insert(number, guest(now + way * share));
                    exchanges.push(exchange(round as u32, number, now, now + way));
                    now += way;
                }
                now += 1e6;
            }
            let clock = Clock::new(&exchanges, &markers).expect("there are exchanges");
            let first = exchanges.iter().filter(|e| e.round == 0).map(|e| e.heard);
            let first = first.fold(0.0, f64::max);
            let last = exchanges.iter().filter(|e| e.round as usize == rounds.len() - 1);
            let last = last.map(|e| e.sent).fold(f64::MAX, f64::min);
            if first <= last {
                let moment = first + at * (last - first);
                let off = (clock.host(guest(moment)) - moment).abs();
                prop_assert!(off <= clock.error(), "{off} of {}", clock.error());
            }
        }

        /// A guest's order of events stays, whatever its clock does.
        #[test]
        fn order_stays(
            offsets in prop::collection::vec(-1000.0_f64..1000.0, 1..10),
            mut moments in prop::collection::vec(0_u64..20_000_000, 2..20),
        ) {
            let (mut exchanges, mut markers) = (Vec::new(), HashMap::new());
            for (number, offset) in offsets.iter().enumerate() {
                let guest = number as f64 * 1e6 + 5e6;
                markers.insert(number as u64, guest as u64);
                exchanges.push(exchange(number as u32, number as u64, guest + offset, guest + offset));
            }
            let clock = Clock::new(&exchanges, &markers).expect("there are exchanges");
            moments.sort_unstable();
            for pair in moments.windows(2) {
                prop_assert!(clock.host(pair[0]) <= clock.host(pair[1]));
            }
        }
    }
}
