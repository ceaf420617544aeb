// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Faults that a device can be told to have.

use crate::Operation;
use serde::{Deserialize, Serialize};
use serde_json::{Map, Value};
use std::fmt::{self, Display};
use std::str::FromStr;

/// What goes wrong.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord, Serialize, Deserialize)]
#[serde(rename_all = "kebab-case")]
pub enum FaultKind {
    /// The queue takes no request any more, until it is reset.
    Hang,
    /// The request is taken late.
    Delay,
    /// The request is carried out and not given back.
    Drop,
    /// The request is given back twice.
    Duplicate,
    /// The request is given back after its successor.
    Reorder,
    /// Only the first bytes of the completion are written.
    Truncate,
    /// A byte of the completion is changed.
    Corrupt,
    /// The request is refused with a status, and not carried out.
    Fail,
    /// The completion is whole, but the used length is another.
    WrongLength,
    /// A page request is refused before the driver hears of it.
    RefusePage,
    /// An INVALIDATE is carried out and given back late.
    LateInvalidation,
    /// An access to memory of a process is carried out late, and its page is in use until then.
    LateAccess,
    /// Pages of device memory fail, at once and for good.
    Poison,
}

/// A fault, which requests it hits, and how.
///
/// [`FaultKind::Poison`] hits no request but pages, when it is set.
///
/// Requests are counted for each queue on its own, from the moment the fault is set, so what
/// is hit does not depend on how queues overtake each other.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Fault {
    /// What goes wrong.
    pub kind: FaultKind,
    /// Number of the virtqueue; without one all that have the requests of `opcode`, and without
    /// that all command queues.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub queue: Option<u16>,
    /// Only requests for this are counted and hit, on the queues that have them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub opcode: Option<Operation>,
    /// First request that can be hit, from 1.
    #[serde(default = "one")]
    pub nth: u64,
    /// One of so many is hit from then on, which ones follows from the seed.
    #[serde(default = "one")]
    pub every: u64,
    /// Hits on each queue before the fault is used up; 0 for no end. `poison`: pages.
    #[serde(default = "one")]
    pub count: u64,
    /// All that is left to chance follows from this.
    #[serde(default)]
    pub seed: u64,
    /// `delay`, `late-invalidation`, `late-access`: milliseconds.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub ms: Option<u64>,
    /// `truncate`: bytes that are written; `wrong-length`: bytes that are told. By the seed
    /// without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub bytes: Option<u32>,
    /// `corrupt`: which byte. By the seed without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub offset: Option<u32>,
    /// `fail`: the status, `HOST_ERROR` without it; `refuse-page`: the same, `PAGE_ERROR` without
    /// it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub status: Option<u16>,
    /// `poison`: number of the first page of 4096 bytes; others follow it. By the seed without it.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub page: Option<u64>,
}

/// Why a fault makes no sense.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FaultError {
    /// It does not have the form.
    #[error("{0}")]
    Form(String),
    /// A field has a value that it cannot have.
    #[error("'{field}' is {value}; {advice}")]
    Value {
        /// The field.
        field: &'static str,
        /// What was said.
        value: u64,
        /// What to say.
        advice: &'static str,
    },
    /// A field that the kind has no use for.
    #[error("'{kind}' has no '{field}'")]
    Unused {
        /// The kind.
        kind: FaultKind,
        /// The field.
        field: &'static str,
    },
    /// The queue has no such requests.
    #[error("'{opcode}' is no request of queue {queue}")]
    Elsewhere {
        /// The request.
        opcode: Operation,
        /// The queue.
        queue: u16,
    },
    /// A field that the kind cannot do without.
    #[error("'{kind}' needs '{field}'")]
    Missing {
        /// The kind.
        kind: FaultKind,
        /// The field.
        field: &'static str,
    },
}

/// Bytes of a completion.
const COMPLETION_BYTES: u64 = 24;

/// Longest delay: a day is longer than anybody waits.
const DELAY_MS_MAX: u64 = 86_400_000;

/// Most pages of one `poison`: each is chosen, and told, on its own.
const POISON_PAGES_MAX: u64 = 65536;

fn one() -> u64 {
    1
}

impl FaultKind {
    /// All of them.
    pub const ALL: [Self; 13] = [
        Self::Hang,
        Self::Delay,
        Self::Drop,
        Self::Duplicate,
        Self::Reorder,
        Self::Truncate,
        Self::Corrupt,
        Self::Fail,
        Self::WrongLength,
        Self::RefusePage,
        Self::LateInvalidation,
        Self::LateAccess,
        Self::Poison,
    ];

    /// As it is written.
    pub fn name(self) -> &'static str {
        match self {
            Self::Hang => "hang",
            Self::Delay => "delay",
            Self::Drop => "drop",
            Self::Duplicate => "duplicate",
            Self::Reorder => "reorder",
            Self::Truncate => "truncate",
            Self::Corrupt => "corrupt",
            Self::Fail => "fail",
            Self::WrongLength => "wrong-length",
            Self::RefusePage => "refuse-page",
            Self::LateInvalidation => "late-invalidation",
            Self::LateAccess => "late-access",
            Self::Poison => "poison",
        }
    }

    /// Whether it takes a time, and cannot do without.
    pub fn takes_time(self) -> bool {
        matches!(
            self,
            Self::Delay | Self::LateInvalidation | Self::LateAccess
        )
    }

    /// Whether it happens to requests as they are taken off a queue, of whatever operation.
    pub fn is_of_requests(self) -> bool {
        !matches!(
            self,
            Self::RefusePage | Self::LateInvalidation | Self::LateAccess | Self::Poison
        )
    }

    /// Whether it may be told what a request ends with.
    fn takes_status(self) -> bool {
        matches!(self, Self::Fail | Self::RefusePage)
    }
}

impl Display for FaultKind {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name())
    }
}

impl Fault {
    /// One of a kind that hits the next request of any command queue, once.
    pub fn new(kind: FaultKind) -> Self {
        Self {
            kind,
            queue: None,
            opcode: None,
            nth: 1,
            every: 1,
            count: 1,
            seed: 0,
            ms: None,
            bytes: None,
            offset: None,
            status: None,
            page: None,
        }
    }

    /// Whether it makes sense.
    pub fn check(&self) -> Result<(), FaultError> {
        let kind = self.kind;
        let bad = |field, value, advice| {
            Err(FaultError::Value {
                field,
                value,
                advice,
            })
        };
        let is_poison = kind == FaultKind::Poison;
        let uses = [
            ("page", self.page.is_some(), is_poison),
            ("queue", self.queue.is_some(), !is_poison),
            ("nth", self.nth != 1, !is_poison),
            ("every", self.every != 1, !is_poison),
            ("opcode", self.opcode.is_some(), kind.is_of_requests()),
            ("ms", self.ms.is_some(), kind.takes_time()),
            (
                "bytes",
                self.bytes.is_some(),
                matches!(kind, FaultKind::Truncate | FaultKind::WrongLength),
            ),
            ("offset", self.offset.is_some(), kind == FaultKind::Corrupt),
            ("status", self.status.is_some(), kind.takes_status()),
        ];
        for (field, is_there, has_use) in uses {
            if is_there && !has_use {
                return Err(FaultError::Unused { kind, field });
            }
        }
        if let (Some(opcode), Some(queue)) = (self.opcode, self.queue)
            && !opcode.is_on(queue)
        {
            return Err(FaultError::Elsewhere { opcode, queue });
        }
        if self.nth == 0 {
            return bad("nth", 0, "the first request is 1");
        }
        if self.every == 0 {
            return bad("every", 0, "1 hits each request");
        }
        if is_poison && !(1..=POISON_PAGES_MAX).contains(&self.count) {
            return bad("count", self.count, "poison hits 1 to 65536 pages");
        }
        match (kind, self.ms) {
            (kind, None) if kind.takes_time() => {
                return Err(FaultError::Missing { kind, field: "ms" });
            }
            (_, Some(ms)) if ms > DELAY_MS_MAX => {
                return bad("ms", ms, "a day is the longest delay; hang has no end");
            }
            _ => {}
        }
        match (kind, self.bytes.map(u64::from)) {
            (FaultKind::Truncate, Some(bytes)) if bytes >= COMPLETION_BYTES => {
                return bad(
                    "bytes",
                    bytes,
                    "a completion has 24, so less than that is cut",
                );
            }
            (FaultKind::WrongLength, Some(bytes)) if bytes == COMPLETION_BYTES => {
                return bad("bytes", bytes, "that is the right length");
            }
            _ => {}
        }
        match (self.offset.map(u64::from), self.status) {
            (Some(offset), _) if offset >= COMPLETION_BYTES => {
                bad("offset", offset, "a completion has the bytes 0 to 23")
            }
            (_, Some(0)) => bad("status", 0, "that is OK, and no failure"),
            _ => Ok(()),
        }
    }
}

/// `kind,field=value,...`, as the command line has it: numbers, but for the name of an operation.
impl FromStr for Fault {
    type Err = FaultError;

    fn from_str(text: &str) -> Result<Self, FaultError> {
        let mut words = text.split(',');
        let mut object = Map::new();
        let kind = words.next().unwrap_or_default();
        object.insert("kind".to_owned(), Value::from(kind));
        for word in words {
            let form = || FaultError::Form(format!("'{word}' is not of the form field=number"));
            let (field, value) = word.split_once('=').ok_or_else(form)?;
            let value = match field {
                "opcode" => Value::from(value),
                _ => Value::from(value.parse::<u64>().map_err(|_| form())?),
            };
            if object.insert(field.to_owned(), value).is_some() {
                return Err(FaultError::Form(format!("'{field}' is there twice")));
            }
        }
        let fault: Self = serde_json::from_value(Value::Object(object))
            .map_err(|error| FaultError::Form(error.to_string()))?;
        fault.check()?;
        Ok(fault)
    }
}

/// As [`FromStr`] reads it.
impl Display for Fault {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}", self.kind)?;
        if let Some(opcode) = self.opcode {
            write!(f, ",opcode={opcode}")?;
        }
        let selection = [
            ("queue", self.queue.map(u64::from)),
            ("nth", Some(self.nth).filter(|&nth| nth != 1)),
            ("every", Some(self.every).filter(|&every| every != 1)),
            ("count", Some(self.count).filter(|&count| count != 1)),
            ("seed", Some(self.seed).filter(|&seed| seed != 0)),
            ("ms", self.ms),
            ("bytes", self.bytes.map(u64::from)),
            ("offset", self.offset.map(u64::from)),
            ("status", self.status.map(u64::from)),
            ("page", self.page),
        ];
        for (field, value) in selection {
            if let Some(value) = value {
                write!(f, ",{field}={value}")?;
            }
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;

    fn any_fault() -> impl Strategy<Value = Fault> {
        let kind = prop::sample::select(FaultKind::ALL.to_vec());
        let numbers = (
            prop::option::of(any::<u16>()),
            1u64..,
            1u64..,
            any::<u64>(),
            any::<u64>(),
        );
        let parameter = prop::option::of(1u32..24);
        let opcode = prop::option::of(prop::sample::select(Operation::all().collect::<Vec<_>>()));
        (kind, numbers, parameter, opcode).prop_map(
            |(kind, (queue, nth, every, count, seed), parameter, opcode)| {
                let only = |wanted| parameter.filter(|_| kind == wanted);
                let bytes = only(FaultKind::Truncate).or(only(FaultKind::WrongLength));
                let is_poison = kind == FaultKind::Poison;
                let opcode = opcode.filter(|_| kind.is_of_requests());
                Fault {
                    kind,
                    queue: queue
                        .filter(|_| !is_poison)
                        .filter(|&queue| opcode.is_none_or(|opcode| opcode.is_on(queue))),
                    opcode,
                    nth: if is_poison { 1 } else { nth },
                    every: if is_poison { 1 } else { every },
                    count: if is_poison { 1 + count % 65536 } else { count },
                    page: only(FaultKind::Poison).map(u64::from),
                    seed,
                    ms: kind.takes_time().then_some(seed % 1000),
                    bytes,
                    offset: only(FaultKind::Corrupt),
                    status: only(FaultKind::Fail)
                        .or(only(FaultKind::RefusePage))
                        .map(|status| status as u16),
                }
            },
        )
    }

    proptest! {
        #[test]
        fn what_is_written_reads_as_the_same_on_the_command_line_and_as_json(fault in any_fault()) {
            prop_assert_eq!(fault.check(), Ok(()));
            prop_assert_eq!(&fault.to_string().parse::<Fault>().unwrap(), &fault);
            let json = serde_json::to_string(&fault).unwrap();
            prop_assert_eq!(serde_json::from_str::<Fault>(&json).unwrap(), fault);
        }

        #[test]
        fn any_text_is_a_fault_or_an_error(text in ".{0,60}") {
            let _ = text.parse::<Fault>();
        }
    }

    #[test]
    fn a_kind_alone_hits_the_next_request_once() {
        for kind in FaultKind::ALL.into_iter().filter(|kind| !kind.takes_time()) {
            assert_eq!(kind.name().parse(), Ok(Fault::new(kind)));
        }
    }

    #[test]
    fn what_makes_no_sense_is_refused_with_the_reason() {
        for (text, reason) in [
            ("", "unknown variant"),
            ("explode", "unknown variant"),
            ("delay", "'delay' needs 'ms'"),
            ("late-invalidation", "'late-invalidation' needs 'ms'"),
            ("late-access", "'late-access' needs 'ms'"),
            ("late-access,ms=1,opcode=COPY", "has no 'opcode'"),
            ("refuse-page,ms=5", "'refuse-page' has no 'ms'"),
            ("delay,ms=86400001", "a day"),
            ("drop,ms=5", "'drop' has no 'ms'"),
            ("drop,nth", "'nth' is not of the form field=number"),
            ("drop,nth=x", "'nth=x' is not of the form field=number"),
            ("drop,nth=0", "the first request is 1"),
            ("drop,every=0", "1 hits each request"),
            ("drop,nth=1,nth=2", "'nth' is there twice"),
            ("drop,kind=3", "'kind' is there twice"),
            ("drop,wheel=3", "unknown field"),
            ("drop,queue=70000", "70000"),
            ("truncate,bytes=24", "less than that"),
            ("wrong-length,bytes=24", "the right length"),
            ("corrupt,offset=24", "0 to 23"),
            ("fail,status=0", "that is OK"),
            ("drop,page=1", "'drop' has no 'page'"),
            ("poison,queue=2", "'poison' has no 'queue'"),
            ("poison,opcode=COPY", "'poison' has no 'opcode'"),
            ("poison,nth=3", "'poison' has no 'nth'"),
            ("poison,every=2", "'poison' has no 'every'"),
            ("poison,count=0", "1 to 65536 pages"),
            ("poison,count=65537", "1 to 65536 pages"),
            ("drop,opcode=8", "'8' is no operation"),
            ("drop,opcode=invalidate", "'invalidate' is no operation"),
            ("drop,opcode=BIND,opcode=BIND", "'opcode' is there twice"),
            ("refuse-page,opcode=COPY", "'refuse-page' has no 'opcode'"),
            (
                "late-invalidation,ms=1,opcode=INVALIDATE",
                "has no 'opcode'",
            ),
            (
                "drop,opcode=INVALIDATE,queue=2",
                "'INVALIDATE' is no request of queue 2",
            ),
            ("drop,opcode=COPY,queue=0", "no request of queue 0"),
        ] {
            let error = text.parse::<Fault>().unwrap_err().to_string();
            assert!(error.contains(reason), "{text}: {error}");
        }
    }
}
