// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Log lines on stderr.

use super::arguments::LogFormat;
use std::env;
use std::ffi::OsStr;
use std::io::{self, IsTerminal};
use std::panic;
use tracing::error;
use tracing_subscriber::EnvFilter;

/// Environment variable with the filter.
const FILTER_VARIABLE: &str = "CDM_LOG";

/// virtio-queue logs an error for each bad index or address that a guest writes: a guest
/// could fill the disk. What a guest gets wrong goes to the guest, not to the log.
const DEFAULT_FILTER: &str = "info,virtio_queue=off";

/// Starts logging; `Err` says what is wrong with the filter.
pub fn start(format: LogFormat) -> Result<(), String> {
    let filter = match env::var(FILTER_VARIABLE) {
        Ok(text) if !text.is_empty() => EnvFilter::try_new(&text)
            .map_err(|error| format!("cannot read {FILTER_VARIABLE}={text:?}: {error}"))?,
        _ => EnvFilter::new(DEFAULT_FILTER),
    };
    let builder = tracing_subscriber::fmt()
        .with_env_filter(filter)
        .with_writer(io::stderr)
        .with_ansi(
            io::stderr().is_terminal() && allows_colours(env::var_os("NO_COLOR").as_deref()),
        );
    match format {
        LogFormat::Text => builder.init(),
        LogFormat::Json => builder.json().init(),
    }
    // In the log's own format, and without a backtrace: the sandbox has no files to make it from.
    panic::set_hook(Box::new(|bug| error!("{bug}")));
    Ok(())
}

/// What <https://no-color.org> has that variable say: an empty one says nothing.
fn allows_colours(no_color: Option<&OsStr>) -> bool {
    no_color.is_none_or(OsStr::is_empty)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_a_variable_that_is_not_empty_takes_the_colours_away() {
        let allows = |value: Option<&str>| allows_colours(value.map(OsStr::new));
        assert!(allows(None) && allows(Some("")));
        assert!(!allows(Some("1")) && !allows(Some("0")));
    }
}
