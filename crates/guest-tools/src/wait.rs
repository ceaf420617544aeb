// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Waiting for what the kernel brings about soon, and not at once.

use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, ensure};

/// Between two looks.
const PAUSE: Duration = Duration::from_millis(10);

/// Looks until there is nothing that `missing` says is missing; what it said last is the error
/// when `limit` is over.
pub fn wait_until_nothing(
    limit: Duration,
    mut missing: impl FnMut() -> Result<Option<String>>,
) -> Result<()> {
    let deadline = Instant::now() + limit;
    while let Some(missing) = missing()? {
        ensure!(Instant::now() < deadline, "{missing}, after {limit:?}");
        thread::sleep(PAUSE);
    }
    Ok(())
}

/// The same where there is but one thing to say.
pub fn wait_until(
    limit: Duration,
    what_else: &str,
    mut is_so: impl FnMut() -> Result<bool>,
) -> Result<()> {
    wait_until_nothing(limit, || Ok((!is_so()?).then(|| what_else.to_owned())))
}
