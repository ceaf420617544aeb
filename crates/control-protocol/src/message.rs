// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Requests and responses.

use crate::{Fault, FaultError, FaultState, State, VERSION};
use serde::{Deserialize, Serialize};

/// What can be asked.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Ask {
    /// The state of the device and its queues.
    State,
    /// All counters, in Prometheus' text format.
    Metrics,
    /// The faults that are set.
    Faults,
    /// One more fault.
    SetFault(Fault),
    /// One fault less.
    ClearFault(u64),
    /// No faults any more.
    ClearFaults,
}

/// One line of a client.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(deny_unknown_fields)]
pub struct Request {
    /// Version that the client speaks; this one if it does not say.
    #[serde(default = "current")]
    version: u32,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    get: Option<Get>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    set: Option<Set>,
    #[serde(default, skip_serializing_if = "Option::is_none")]
    clear: Option<Clear>,
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Get {
    State,
    Metrics,
    Faults,
}

#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Set {
    Fault(Fault),
}

#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
enum Clear {
    Fault(u64),
    Faults,
}

/// Why a line is no request.
#[derive(Debug, thiserror::Error)]
pub enum RequestError {
    /// It is not of the form.
    #[error("not understood: {0}")]
    Form(#[from] serde_json::Error),
    /// It is JSON at best, and no object.
    #[error("not understood: a request is a JSON object")]
    NoObject,
    /// It is of another version.
    #[error("version {0} is not spoken here; say \"version\":{VERSION}")]
    Version(u32),
    /// It asks for nothing, or for more than one thing.
    #[error("one of \"get\", \"set\" and \"clear\" must be there")]
    NotOne,
    /// The fault makes no sense.
    #[error(transparent)]
    Fault(#[from] FaultError),
}

fn current() -> u32 {
    VERSION
}

impl Ask {
    /// Reads a line, without the blanks around it.
    pub fn read(line: &str) -> Result<Self, RequestError> {
        // serde would take a list for an object whose fields have no names.
        if !line.starts_with('{') {
            return Err(RequestError::NoObject);
        }
        let request: Request = serde_json::from_str(line)?;
        if request.version != VERSION {
            return Err(RequestError::Version(request.version));
        }
        Ok(match (request.get, request.set, request.clear) {
            (Some(Get::State), None, None) => Self::State,
            (Some(Get::Metrics), None, None) => Self::Metrics,
            (Some(Get::Faults), None, None) => Self::Faults,
            (None, Some(Set::Fault(fault)), None) => {
                fault.check()?;
                Self::SetFault(fault)
            }
            (None, None, Some(Clear::Fault(id))) => Self::ClearFault(id),
            (None, None, Some(Clear::Faults)) => Self::ClearFaults,
            _ => return Err(RequestError::NotOne),
        })
    }
}

impl From<Ask> for Request {
    fn from(ask: Ask) -> Self {
        let mut request = Self {
            version: VERSION,
            get: None,
            set: None,
            clear: None,
        };
        match ask {
            Ask::State => request.get = Some(Get::State),
            Ask::Metrics => request.get = Some(Get::Metrics),
            Ask::Faults => request.get = Some(Get::Faults),
            Ask::SetFault(fault) => request.set = Some(Set::Fault(fault)),
            Ask::ClearFault(id) => request.clear = Some(Clear::Fault(id)),
            Ask::ClearFaults => request.clear = Some(Clear::Faults),
        }
        request
    }
}

/// One line of the device: `version`, and one more field.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
pub struct Response {
    /// Version that the device speaks.
    pub version: u32,
    /// The answer to [`Ask::State`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub state: Option<State>,
    /// The answer to [`Ask::Metrics`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub metrics: Option<String>,
    /// The answer to [`Ask::Faults`].
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub faults: Option<Vec<FaultState>>,
    /// The answer to [`Ask::SetFault`]: the fault's number.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub fault: Option<u64>,
    /// The answer to [`Ask::ClearFault`] and [`Ask::ClearFaults`]: how many went.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub cleared: Option<u64>,
    /// The answer to what was not understood or is not possible.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl Default for Response {
    fn default() -> Self {
        Self {
            version: VERSION,
            state: None,
            metrics: None,
            faults: None,
            fault: None,
            cleared: None,
            error: None,
        }
    }
}

impl Response {
    /// The answer to what cannot be answered.
    pub fn error(error: impl ToString) -> Self {
        Self {
            error: Some(error.to_string()),
            ..Self::default()
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::FaultKind;
    use serde_json::Value;

    #[test]
    fn every_request_reads_as_what_was_written() {
        for ask in [
            Ask::State,
            Ask::Metrics,
            Ask::Faults,
            Ask::SetFault(Fault::new(FaultKind::Drop)),
            Ask::ClearFault(3),
            Ask::ClearFaults,
        ] {
            let line = serde_json::to_string(&Request::from(ask.clone())).unwrap();
            assert_eq!(Ask::read(&line).unwrap(), ask, "{line}");
        }
    }

    #[test]
    fn what_is_no_request_is_refused_with_the_reason() {
        for (line, reason) in [
            ("", "not understood"),
            ("[]", "not understood"),
            ("{}", "must be there"),
            (r#"{"get":"state","clear":"faults"}"#, "must be there"),
            (r#"{"get":"weather"}"#, "weather"),
            (r#"{"get":"state","please":true}"#, "please"),
            (r#"{"version":2,"get":"state"}"#, "version 2"),
            (r#"{"set":{"fault":{"kind":"delay"}}}"#, "needs 'ms'"),
            (
                r#"{"set":{"fault":{"kind":"drop","x":1}}}"#,
                "unknown field",
            ),
        ] {
            let error = Ask::read(line).unwrap_err().to_string();
            assert!(error.contains(reason), "{line}: {error}");
        }
    }

    /// Lines of the specification that begin a JSON object, by who says them.
    fn examples() -> Vec<(bool, String)> {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/control-socket.md"
        );
        let text = std::fs::read_to_string(path).unwrap();
        text.lines()
            .filter_map(|line| {
                let line = line.trim_start();
                let said_by_client = line.strip_prefix("→ ").map(|json| (true, json));
                said_by_client.or(line.strip_prefix("← ").map(|json| (false, json)))
            })
            .map(|(is_request, json)| (is_request, json.to_owned()))
            .collect()
    }

    #[test]
    fn the_examples_of_the_specification_are_requests_and_responses() {
        let (requests, responses): (Vec<_>, Vec<_>) = examples()
            .into_iter()
            .partition(|(is_request, _)| *is_request);
        assert!(requests.len() >= 6 && responses.len() == requests.len());
        for (_, line) in &requests {
            Ask::read(line).unwrap_or_else(|error| panic!("{line}: {error}"));
        }
        for (_, line) in &responses {
            let response: Response = serde_json::from_str(line).unwrap();
            // Nothing in the example that the type does not have.
            let again = serde_json::to_value(&response).unwrap();
            assert_eq!(
                again,
                serde_json::from_str::<Value>(line).unwrap(),
                "{line}"
            );
        }
    }

    #[test]
    fn the_specification_describes_every_kind_of_fault() {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/control-socket.md"
        );
        let text = std::fs::read_to_string(path).unwrap();
        for kind in FaultKind::ALL {
            let row = format!("| `{kind}` |");
            assert!(text.contains(&row), "no row for {kind}");
        }
    }
}
