// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How long a command in a guest may take. A guest in which nothing answers is given up sooner
//! (`SILENT_GUEST_LIMIT`); these are for commands that hang, or go on for ever, in one that lives.

use std::time::{Duration, Instant};

/// What one command of a test may take: a hundred times as long as any does, on a busy host.
const COMMAND_LIMIT: Duration = Duration::from_secs(20 * 60);
/// What a program may take that says all the while how far it has come.
const PROGRAM_LIMIT: Duration = Duration::from_secs(3 * 3600);

/// Limits of one command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Limits {
    /// Longest time in which it writes nothing, where it is known to write.
    pub silence: Option<Duration>,
    /// From its start to its end; none for what people type.
    pub whole: Option<Duration>,
}

impl Limits {
    /// For whatever somebody else has asked for.
    pub const NONE: Self = Self {
        silence: None,
        whole: None,
    };
    /// For a command that may be quiet.
    pub const COMMAND: Self = Self {
        silence: None,
        whole: Some(COMMAND_LIMIT),
    };
    /// For a program that writes results, each of which may take as long as it does.
    pub const PROGRAM: Self = Self {
        silence: None,
        whole: Some(PROGRAM_LIMIT),
    };

    /// For a command that starts now.
    pub fn start(self) -> Clock {
        Clock {
            limits: self,
            // A time that no clock reaches is none.
            end: self
                .whole
                .and_then(|whole| Instant::now().checked_add(whole)),
        }
    }
}

/// A program that writes something at least every so often.
impl From<Duration> for Limits {
    fn from(silence: Duration) -> Self {
        Self {
            silence: Some(silence),
            ..Self::PROGRAM
        }
    }
}

/// Limits of a command that runs.
#[derive(Clone, Copy, Debug)]
pub struct Clock {
    limits: Limits,
    end: Option<Instant>,
}

impl Clock {
    /// Longest time to wait for the next event, where the guest need not be asked whether it lives.
    pub fn silence(&self) -> Option<Duration> {
        let silence = self.limits.silence?;
        Some(self.left().map_or(silence, |left| left.min(silence)))
    }

    /// What is left of the time for the whole command.
    pub fn left(&self) -> Option<Duration> {
        let end = self.end?;
        Some(end.saturating_duration_since(Instant::now()))
    }

    /// What to say of a command that is given up now.
    pub fn verdict(&self, line: &str) -> String {
        const WHERE: &str = "what the guest was doing is at the end of console.log";
        match (self.left(), self.limits) {
            (Some(Duration::ZERO), Limits { whole, .. }) => format!(
                "'{line}' still runs after {} s, which is its limit; {WHERE}",
                whole.unwrap_or_default().as_secs()
            ),
            (_, Limits { silence, .. }) => format!(
                "'{line}' has written nothing for {} s; {WHERE}",
                silence.unwrap_or_default().as_secs()
            ),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn time_for_the_whole_command_bounds_the_wait_for_its_next_line() {
        let limits = |whole| Limits {
            silence: Some(Duration::from_secs(60)),
            whole: Some(Duration::from_secs(whole)),
        };
        let clock = limits(3600).start();
        assert_eq!(clock.silence(), Some(Duration::from_secs(60)));
        assert!(clock.verdict("x").contains("written nothing for 60 s"));
        let late = limits(0).start();
        assert_eq!(late.silence(), Some(Duration::ZERO));
        assert!(late.verdict("x").contains("still runs after 0 s"));
    }

    #[test]
    fn command_without_limits_has_none() {
        let clock = Limits::NONE.start();
        assert_eq!((clock.silence(), clock.left()), (None, None));
        assert!(Limits::from(Duration::from_secs(1)).whole.is_some());
    }
}
