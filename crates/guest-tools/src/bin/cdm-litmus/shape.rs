// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a litmus test is: a few accesses by a few threads, and an outcome that tells
//! whether somebody saw them out of order.

use std::fmt::{self, Display};
use std::sync::atomic::{AtomicU64, Ordering};

/// Locations of one instance, at most.
pub const LOCATIONS_MAX: usize = 3;
/// Values that one thread reads, at most.
pub const READS_MAX: usize = 2;
/// Names of the locations.
const NAMES: [&str; LOCATIONS_MAX] = ["x", "y", "z"];

/// The first location.
pub const X: usize = 0;
/// The second one.
pub const Y: usize = 1;
/// The third one.
pub const Z: usize = 2;

/// What a thread does to memory. What an access reads goes into the thread's next read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Access {
    Load {
        location: usize,
        order: Ordering,
    },
    Store {
        location: usize,
        value: u64,
        order: Ordering,
    },
    Add {
        location: usize,
        addend: u64,
        order: Ordering,
    },
    Swap {
        location: usize,
        value: u64,
        order: Ordering,
    },
    CompareSwap {
        location: usize,
        expected: u64,
        new: u64,
        order: Ordering,
    },
    Fence {
        order: Ordering,
    },
}

impl Access {
    /// The location, unless it is a fence.
    pub fn location(self) -> Option<usize> {
        match self {
            Self::Load { location, .. }
            | Self::Store { location, .. }
            | Self::Add { location, .. }
            | Self::Swap { location, .. }
            | Self::CompareSwap { location, .. } => Some(location),
            Self::Fence { .. } => None,
        }
    }

    /// Whether it reads.
    pub fn reads(self) -> bool {
        !matches!(self, Self::Store { .. } | Self::Fence { .. })
    }
}

impl Display for Access {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let name = |location: usize| NAMES[location];
        let text = match *self {
            Self::Load { location, order } => format!("load {} {}", name(location), word(order)),
            Self::Store {
                location,
                value,
                order,
            } => format!("store {} {value} {}", name(location), word(order)),
            Self::Add {
                location,
                addend,
                order,
            } => format!("add {} {addend} {}", name(location), word(order)),
            Self::Swap {
                location,
                value,
                order,
            } => format!("swap {} {value} {}", name(location), word(order)),
            Self::CompareSwap {
                location,
                expected,
                new,
                order,
            } => format!(
                "compare-swap {} {expected} {new} {}",
                name(location),
                word(order)
            ),
            Self::Fence { order } => format!("barrier {}", word(order)),
        };
        f.write_str(&text)
    }
}

/// An order by its name in the device specification.
fn word(order: Ordering) -> &'static str {
    match order {
        Ordering::Relaxed => "relaxed",
        Ordering::Acquire => "acquire",
        Ordering::Release => "release",
        Ordering::AcqRel => "acquire-release",
        _ => "seq-cst",
    }
}

/// The locations of one instance.
pub type Places<'m> = [&'m AtomicU64; LOCATIONS_MAX];

/// What a thread has read.
#[derive(Default)]
pub struct Reads {
    values: [u64; READS_MAX],
    count: usize,
}

impl Reads {
    /// Takes the next value.
    #[inline(always)]
    pub fn push(&mut self, value: u64) {
        self.values[self.count] = value;
        self.count += 1;
    }

    /// All of them, in order.
    #[inline(always)]
    pub fn all(&self) -> &[u64; READS_MAX] {
        &self.values
    }
}

/// One thread, as data for the device, and as code for a CPU: the same accesses, by the same
/// macro.
#[derive(Clone, Copy, Debug)]
pub struct Thread {
    pub accesses: &'static [Access],
    pub on_cpu: fn(&Places<'_>) -> Reads,
}

impl Thread {
    /// How many values it reads.
    pub fn reads(&self) -> usize {
        self.accesses.iter().filter(|access| access.reads()).count()
    }
}

impl Display for Thread {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let accesses: Vec<String> = self.accesses.iter().map(Access::to_string).collect();
        f.write_str(&accesses.join("; "))
    }
}

/// Makes a [`Thread`] of its accesses.
macro_rules! thread {
    (@data load($at:expr, $order:ident)) => {
        Access::Load { location: $at, order: Ordering::$order }
    };
    (@data store($at:expr, $value:expr, $order:ident)) => {
        Access::Store { location: $at, value: $value, order: Ordering::$order }
    };
    (@data add($at:expr, $addend:expr, $order:ident)) => {
        Access::Add { location: $at, addend: $addend, order: Ordering::$order }
    };
    (@data swap($at:expr, $value:expr, $order:ident)) => {
        Access::Swap { location: $at, value: $value, order: Ordering::$order }
    };
    (@data compare_swap($at:expr, $expected:expr, $new:expr, $order:ident)) => {
        Access::CompareSwap {
            location: $at,
            expected: $expected,
            new: $new,
            order: Ordering::$order,
        }
    };
    (@data fence($order:ident)) => {
        Access::Fence { order: Ordering::$order }
    };
    (@code $places:ident $reads:ident load($at:expr, $order:ident)) => {
        $reads.push($places[$at].load(Ordering::$order))
    };
    (@code $places:ident $reads:ident store($at:expr, $value:expr, $order:ident)) => {
        $places[$at].store($value, Ordering::$order)
    };
    (@code $places:ident $reads:ident add($at:expr, $addend:expr, $order:ident)) => {
        $reads.push($places[$at].fetch_add($addend, Ordering::$order))
    };
    (@code $places:ident $reads:ident swap($at:expr, $value:expr, $order:ident)) => {
        $reads.push($places[$at].swap($value, Ordering::$order))
    };
    (@code $places:ident $reads:ident
        compare_swap($at:expr, $expected:expr, $new:expr, $order:ident)) => {{
        let outcome =
            $places[$at].compare_exchange($expected, $new, Ordering::$order, Ordering::Relaxed);
        let (Ok(found) | Err(found)) = outcome;
        $reads.push(found)
    }};
    (@code $places:ident $reads:ident fence($order:ident)) => {
        std::sync::atomic::fence(Ordering::$order)
    };
    ($($access:ident($($argument:tt)*)),+ $(,)?) => {
        Thread {
            accesses: &[$(thread!(@data $access($($argument)*))),+],
            on_cpu: |places| {
                #[allow(unused_mut, reason = "a thread that only writes reads nothing")]
                let mut reads = Reads::default();
                $(thread!(@code places reads $access($($argument)*));)+
                reads
            },
        }
    };
}
pub(crate) use thread;

/// Who runs a thread.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Agent {
    Cpu,
    Device,
}

/// A casting as one word: `CD` is a first thread on a CPU and a second one on the device.
pub fn casting_name(casting: &[Agent]) -> String {
    casting
        .iter()
        .map(|agent| match agent {
            Agent::Cpu => 'C',
            Agent::Device => 'D',
        })
        .collect()
}

/// Part of an outcome.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Value {
    /// A thread has read that value, counted from its first read.
    Read {
        thread: usize,
        read: usize,
        value: u64,
    },
    /// A location ends with that value.
    End { location: usize, value: u64 },
}

/// [`Value::Read`].
pub const fn read(thread: usize, read: usize, value: u64) -> Value {
    Value::Read {
        thread,
        read,
        value,
    }
}

/// [`Value::End`].
pub const fn end(location: usize, value: u64) -> Value {
    Value::End { location, value }
}

/// What the memory model says of an outcome that no interleaving of the accesses leads to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Rule {
    /// It must not be seen.
    Forbidden,
    /// It may be seen; that it is not, is no fault.
    Allowed,
    /// It may be seen, and it must be, or the threads never met.
    Expected,
}

impl Display for Rule {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Forbidden => "forbidden",
            Self::Allowed => "allowed",
            Self::Expected => "allowed, and seen",
        })
    }
}

/// A litmus test. All locations begin with zero.
#[derive(Clone, Copy, Debug)]
pub struct Test {
    pub name: &'static str,
    pub threads: &'static [Thread],
    /// Who may run the threads.
    pub castings: &'static [&'static [Agent]],
    /// Locations whose last value is part of the outcome.
    pub ends: &'static [usize],
    /// The outcome that the test is about. No interleaving leads to it.
    pub weak: &'static [Value],
    pub rule: Rule,
}

impl Test {
    /// How many locations it has.
    pub fn locations(&self) -> usize {
        let accesses = self.threads.iter().flat_map(|thread| thread.accesses);
        accesses
            .filter_map(|access| access.location())
            .max()
            .map_or(0, |last| last + 1)
    }

    /// What an outcome consists of: the reads, thread by thread, and then the last values.
    pub fn observed(&self) -> impl Iterator<Item = String> {
        let reads = self
            .threads
            .iter()
            .enumerate()
            .flat_map(|(number, thread)| {
                (0..thread.reads()).map(move |read| format!("{number}:r{read}"))
            });
        reads.chain(self.ends.iter().map(|&location| NAMES[location].to_owned()))
    }

    /// The place of a value in an outcome, and the value.
    fn place_of(&self, value: Value) -> (usize, u64) {
        let before = |thread| {
            self.threads[..thread]
                .iter()
                .map(Thread::reads)
                .sum::<usize>()
        };
        match value {
            Value::Read {
                thread,
                read,
                value,
            } => (before(thread) + read, value),
            Value::End { location, value } => {
                let place = self.ends.iter().position(|&known| known == location);
                let place = place.expect("the location is in the test's list of last values");
                (before(self.threads.len()) + place, value)
            }
        }
    }

    /// Whether an outcome is the one that the test is about.
    pub fn is_weak(&self, outcome: &[u64]) -> bool {
        self.weak.iter().all(|&value| {
            let (place, value) = self.place_of(value);
            outcome[place] == value
        })
    }

    /// An outcome as text.
    pub fn shown(&self, outcome: &[u64]) -> String {
        let parts: Vec<String> = self
            .observed()
            .zip(outcome)
            .map(|(name, value)| format!("{name}={value}"))
            .collect();
        parts.join(" ")
    }

    /// The outcome that the test is about, as text.
    pub fn shown_weak(&self) -> String {
        let parts: Vec<String> = self
            .weak
            .iter()
            .map(|&value| match value {
                Value::Read {
                    thread,
                    read,
                    value,
                } => format!("{thread}:r{read}={value}"),
                Value::End { location, value } => format!("{}={value}", NAMES[location]),
            })
            .collect();
        parts.join(" ")
    }
}
