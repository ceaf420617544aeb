// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Lines of the guest's `trace_pipe` (Documentation/trace/ftrace.rst).

use serde_json::{Map, Value};

/// The event that a write to `trace_marker` makes.
const MARKER: &str = "tracing_mark_write";
/// Begins a marker of an exchange of times; the exchange's number follows.
pub const CLOCK: &str = "cdm-clock ";
/// The marker behind which nothing follows.
pub const END: &str = "cdm-end";

/// What a line says.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Line<'a> {
    /// An event.
    Event(Event<'a>),
    /// The marker of an exchange: its number, and the guest's time in microseconds.
    Clock(u64, u64),
    /// So many events were overwritten before anybody read them; not known how many.
    Lost(Option<u64>),
    /// Nothing of interest.
    Other,
}

/// One tracepoint that was hit.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Event<'a> {
    /// Name of the task, as long as the kernel knows it.
    pub task: &'a str,
    /// Its number.
    pub pid: u32,
    /// The CPU that it ran on.
    pub cpu: u32,
    /// Microseconds of the guest's CLOCK_MONOTONIC.
    pub at: u64,
    /// Name of the tracepoint.
    pub name: &'a str,
    /// Its fields, as it prints them.
    pub fields: &'a str,
}

impl Event<'_> {
    /// A field as the tracepoint prints it.
    pub fn field(&self, name: &str) -> Option<&str> {
        self.pairs()
            .find_map(|(key, value)| (key == name).then_some(value))
    }

    /// A field that is a number.
    pub fn number(&self, name: &str) -> Option<u64> {
        self.field(name)?.parse().ok()
    }

    /// All fields for the trace; decimal numbers as such.
    pub fn arguments(&self) -> Map<String, Value> {
        let value = |text: &str| match text.parse::<i64>() {
            Ok(number) => Value::from(number),
            Err(_) => Value::from(text),
        };
        self.pairs()
            .map(|(key, text)| (key.to_owned(), value(text)))
            .collect()
    }

    fn pairs(&self) -> impl Iterator<Item = (&str, &str)> {
        self.fields
            .split_ascii_whitespace()
            .filter_map(|word| word.split_once('='))
    }
}

/// Reads a line. One that a dying guest has not finished is [`Line::Other`].
pub fn parse(line: &str) -> Line<'_> {
    if let Some(lost) = lost(line) {
        return Line::Lost(lost);
    }
    let Some(event) = event(line) else {
        return Line::Other;
    };
    if event.name != MARKER {
        return Line::Event(event);
    }
    // Others may write markers too, and are none of ours.
    match event.fields.strip_prefix(CLOCK).map(str::parse) {
        Some(Ok(number)) => Line::Clock(number, event.at),
        _ => Line::Other,
    }
}

/// `CPU:1 [LOST 5 EVENTS]`, and without the number where the kernel does not know it.
fn lost(line: &str) -> Option<Option<u64>> {
    let (_, rest) = line.strip_prefix("CPU:")?.split_once(" [LOST ")?;
    let count = rest.strip_suffix("EVENTS]")?.trim_end();
    Some(count.parse().ok())
}

/// `  task-pid  [cpu] flags seconds.micros: name: fields`. A task's name may hold anything, so the
/// first place that the rest fits behind counts.
fn event(line: &str) -> Option<Event<'_>> {
    line.match_indices(" [").find_map(|(at, opening)| {
        let (cpu, rest) = line[at + opening.len()..].split_once("] ")?;
        let cpu = number(cpu)?;
        let (word, rest) = rest.trim_start().split_once(' ')?;
        let (at_us, rest) = match micros(word) {
            Some(time) => (time, rest),
            // Flags come first, unless they are turned off.
            None => {
                let (word, rest) = rest.trim_start().split_once(' ')?;
                (micros(word)?, rest)
            }
        };
        let (name, fields) = rest.split_once(':')?;
        let (task, pid) = line[..at].trim().rsplit_once('-')?;
        Some(Event {
            task,
            pid: number(pid)?,
            cpu,
            at: at_us,
            name: name.trim(),
            fields: fields.trim(),
        })
    })
}

/// Microseconds of `12.345678:`.
fn micros(word: &str) -> Option<u64> {
    let (seconds, fraction) = word.strip_suffix(':')?.split_once('.')?;
    if fraction.len() != 6 {
        return None;
    }
    let fraction: u32 = number(fraction)?;
    number::<u64>(seconds)?
        .checked_mul(1_000_000)?
        .checked_add(fraction.into())
}

/// Digits and nothing else.
fn number<T: std::str::FromStr>(text: &str) -> Option<T> {
    let is_digits = !text.is_empty() && text.bytes().all(|byte| byte.is_ascii_digit());
    is_digits.then(|| text.parse().ok())?
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    #[test]
    fn line_of_a_tracepoint_gives_task_cpu_time_and_fields() {
        let line = "          cdmctl-77      [001] d..2.     3.000250: cdm_migrate_batch: device=0 to=device address=0x7f00 pages=4 moved=4 there=0 failed=0 tries=1";
        let Line::Event(event) = parse(line) else {
            panic!("no event");
        };
        assert_eq!((event.task, event.pid, event.cpu), ("cdmctl", 77, 1));
        assert_eq!((event.at, event.name), (3_000_250, "cdm_migrate_batch"));
        assert_eq!(event.number("moved"), Some(4));
        assert_eq!(event.field("to"), Some("device"));
        assert_eq!(event.number("to"), None);
        let arguments = event.arguments();
        assert_eq!(arguments["address"], "0x7f00");
        assert_eq!(arguments["pages"], 4);
    }

    #[test]
    fn line_without_flags_is_read_too() {
        let line = " <idle>-0 [000] 12.000001: cdm_fault: device=0 address=0x1000 pages=1";
        assert!(matches!(parse(line), Line::Event(event) if event.at == 12_000_001));
    }

    #[test]
    fn name_of_a_task_may_look_like_the_columns() {
        let line = "  a [1] b-c: d-9 [003] ..... 1.000000: cdm_fault: device=0";
        let Line::Event(event) = parse(line) else {
            panic!("no event");
        };
        assert_eq!((event.task, event.pid, event.cpu), ("a [1] b-c: d", 9, 3));
    }

    #[test]
    fn markers_of_exchanges_are_told_from_those_of_others() {
        let marker = |text| format!("  sh-70 [000] ..... 2.500000: tracing_mark_write: {text}");
        assert_eq!(parse(&marker("cdm-clock 12")), Line::Clock(12, 2_500_000));
        assert_eq!(parse(&marker("cdm-clock x")), Line::Other);
        assert_eq!(parse(&marker("of somebody else")), Line::Other);
    }

    #[test]
    fn lost_events_are_counted_as_far_as_the_kernel_can() {
        assert_eq!(parse("CPU:1 [LOST 523 EVENTS]"), Line::Lost(Some(523)));
        assert_eq!(parse("CPU:0 [LOST EVENTS]"), Line::Lost(None));
    }

    #[test]
    fn line_that_is_cut_off_before_its_name_is_no_event() {
        let line = "  cdmctl-77 [001] d..2.     3.000250: cdm_fault: device=0";
        let end = line.find("cdm_fault:").expect("it is there") + "cdm_fault".len();
        for length in 0..=end {
            assert_eq!(parse(&line[..length]), Line::Other, "{length}");
        }
    }

    proptest! {
        #[test]
        fn no_text_is_too_odd(line in any::<String>()) {
            parse(&line);
        }

        #[test]
        fn what_the_kernel_prints_is_read_back(
            task in "[ -~]{0,14}[!-~]", pid in any::<u32>(), cpu in 0_u32..1000,
            at in 0_u64..1 << 50, flags in "[dN.]{5}",
        ) {
            // The one thing that a name could have in it and be misread for.
            prop_assume!(!task.contains(" ["));
            let (seconds, micros) = (at / 1_000_000, at % 1_000_000);
            let line = format!(
                "{task:>16}-{pid:<7} [{cpu:03}] {flags} {seconds:5}.{micros:06}: cdm_x: a=1 b=-2"
            );
            let Line::Event(event) = parse(&line) else {
                return Err(TestCaseError::fail(line));
            };
            prop_assert_eq!(event.task, task.trim());
            prop_assert_eq!((event.pid, event.cpu, event.at), (pid, cpu, at));
            prop_assert_eq!(event.number("a"), Some(1));
            prop_assert_eq!(&event.arguments()["b"], &Value::from(-2));
        }
    }
}
