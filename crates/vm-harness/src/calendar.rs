// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Dates of the host, in UTC.

use std::time::{Duration, SystemTime, UNIX_EPOCH};

/// `20260131-235959`.
pub fn stamp(now: SystemTime) -> String {
    let since_epoch = since_epoch(now);
    let second = since_epoch.as_secs() % 86_400;
    let (year, month, day) = civil(since_epoch);
    format!(
        "{year:04}{month:02}{day:02}-{:02}{:02}{:02}",
        second / 3600,
        second / 60 % 60,
        second % 60
    )
}

/// `2026-01-31`.
pub fn date(now: SystemTime) -> String {
    let (year, month, day) = civil(since_epoch(now));
    format!("{year:04}-{month:02}-{day:02}")
}

fn since_epoch(now: SystemTime) -> Duration {
    now.duration_since(UNIX_EPOCH).unwrap_or_default()
}

/// Year, month and day.
fn civil(since_epoch: Duration) -> (u64, u64, u64) {
    let leap =
        |year: u64| year.is_multiple_of(4) && !year.is_multiple_of(100) || year.is_multiple_of(400);
    let (mut year, mut rest) = (1970, since_epoch.as_secs() / 86_400);
    while rest >= 365 + u64::from(leap(year)) {
        rest -= 365 + u64::from(leap(year));
        year += 1;
    }
    let february = 28 + u64::from(leap(year));
    let mut month = 1;
    for length in [31, february, 31, 30, 31, 30, 31, 31, 30, 31, 30, 31] {
        if rest < length {
            break;
        }
        rest -= length;
        month += 1;
    }
    (year, month, rest + 1)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn stamps_and_dates_are_those_of_utc() {
        for (seconds, expected, day) in [
            (0, "19700101-000000", "1970-01-01"),
            (951_782_400, "20000229-000000", "2000-02-29"),
            (1_735_689_599, "20241231-235959", "2024-12-31"),
            (1_709_251_199, "20240229-235959", "2024-02-29"),
        ] {
            let now = UNIX_EPOCH + Duration::from_secs(seconds);
            assert_eq!((stamp(now).as_str(), date(now).as_str()), (expected, day));
        }
    }
}
