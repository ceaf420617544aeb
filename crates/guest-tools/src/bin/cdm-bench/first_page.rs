// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How long somebody waits for a single page of 4 KiB: each trip is a sample of its own, so that
//! the distribution is there to see.

use anyhow::Result;
use cdm_guest_tools::memory::PAGE_BYTES;

use crate::contest::{Contest, Setting, Turn};
use crate::memory::{Backing, PageSize};
use crate::movers::{ANONYMOUS, Make};
use crate::sample::{Measured, Unit};
use crate::trips::{Case, Trip, round_trips};

const TRIPS: usize = 200;
const QUICK_TRIPS: usize = 50;

/// The contest of the group.
pub fn contests(setting: &Setting) -> Vec<Contest> {
    let case = Case {
        backing: Backing::Anonymous,
        pages: PageSize::Small,
        bytes: PAGE_BYTES,
        threads: 1,
        trips: match setting.quick {
            true => QUICK_TRIPS,
            false => TRIPS,
        },
    };
    let turn = |(by, make): (&'static str, Make)| Turn {
        by,
        measure: Box::new(move || measure(case, by, make)),
    };
    vec![Contest {
        name: "4KiB".to_owned(),
        turns: ANONYMOUS.into_iter().map(turn).collect(),
    }]
}

fn measure(case: Case, by: &'static str, make: Make) -> Result<Vec<Measured>> {
    let trips = round_trips(case, make)?;
    Ok(trips.iter().flat_map(|trip| values(by, trip)).collect())
}

fn values(by: &'static str, trip: &Trip) -> [Measured; 2] {
    [("to-device", trip.there), ("to-system", trip.back)].map(|(way, time)| Measured {
        name: format!("first-page/{way}"),
        by,
        unit: Unit::Microseconds,
        value: time.as_secs_f64() * 1e6,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::time::Duration;

    #[test]
    fn each_trip_is_a_sample_of_each_way() {
        let trip = Trip {
            there: Duration::from_micros(12),
            back: Duration::from_nanos(3500),
            besides: None,
        };
        let values = values("cdm", &trip).map(|one| (one.name, one.value));
        assert_eq!(values[0], ("first-page/to-device".to_owned(), 12.0));
        assert_eq!(values[1], ("first-page/to-system".to_owned(), 3.5));
    }
}
