// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How long a scenario waits for something that must come.

use std::time::Duration;

/// After so long it is taken to hang. No measure of speed: on a debug kernel under TCG, on a machine with
/// other work, a minute of waiting is nothing. The frame's own limit is longer.
pub const HANGS: Duration = Duration::from_secs(600);
