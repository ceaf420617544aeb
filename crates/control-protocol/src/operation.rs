// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Names of requests, by which a fault chooses among them.

use cdm_protocol::{ControlOpcode, Opcode, QUEUE_CONTROL, QUEUE_FIRST_COMMAND};
use serde::{Deserialize, Serialize};
use std::fmt::{self, Display};
use std::str::FromStr;

/// Which operation a request asks for. It is written by its name in the wire contract; no control
/// request has the name of a command.
#[derive(Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(try_from = "String", into = "String")]
pub enum Operation {
    /// On the control queue.
    Control(ControlOpcode),
    /// On a command queue.
    Command(Opcode),
}

/// There is no such name.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("'{0}' is no operation; one is written like INVALIDATE or COPY")]
pub struct UnknownOperation(String);

impl Operation {
    /// All of them.
    pub fn all() -> impl Iterator<Item = Self> {
        let control = ControlOpcode::ALL.iter().map(|&(of, _)| Self::Control(of));
        control.chain(Opcode::ALL.iter().map(|&(of, _)| Self::Command(of)))
    }

    /// What a request on a queue asks for with that number.
    pub fn on_queue(queue: u16, number: u16) -> Self {
        match queue {
            QUEUE_CONTROL => Self::Control(ControlOpcode(number.into())),
            _ => Self::Command(Opcode(number.into())),
        }
    }

    /// Whether requests on a queue can ask for it.
    pub fn is_on(self, queue: u16) -> bool {
        match self {
            Self::Control(_) => queue == QUEUE_CONTROL,
            Self::Command(_) => queue >= QUEUE_FIRST_COMMAND,
        }
    }

    fn name(self) -> Option<&'static str> {
        match self {
            Self::Control(of) => of.name(),
            Self::Command(of) => of.name(),
        }
    }
}

impl Display for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.name().unwrap_or("unknown"))
    }
}

impl fmt::Debug for Operation {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Control(of) => of.fmt(f),
            Self::Command(of) => of.fmt(f),
        }
    }
}

impl FromStr for Operation {
    type Err = UnknownOperation;

    fn from_str(name: &str) -> Result<Self, UnknownOperation> {
        Self::all()
            .find(|operation| operation.name() == Some(name))
            .ok_or_else(|| UnknownOperation(name.to_owned()))
    }
}

impl TryFrom<String> for Operation {
    type Error = UnknownOperation;

    fn try_from(name: String) -> Result<Self, UnknownOperation> {
        name.parse()
    }
}

impl From<Operation> for String {
    fn from(operation: Operation) -> Self {
        operation.to_string()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::collections::BTreeSet;

    #[test]
    fn a_name_means_one_operation_of_one_queue() {
        let names: BTreeSet<_> = Operation::all().map(|each| each.to_string()).collect();
        assert_eq!(names.len(), Operation::all().count());
        for operation in Operation::all() {
            assert_eq!(operation.to_string().parse(), Ok(operation));
            let on = [QUEUE_CONTROL, QUEUE_FIRST_COMMAND].map(|queue| operation.is_on(queue));
            assert!(on[0] != on[1], "{operation}");
        }
    }
}
