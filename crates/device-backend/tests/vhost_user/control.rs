// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control socket, and a client of it.

use super::guest::*;
use super::process::{Backend, TIMEOUT};
use cdm_control_protocol::{Ask, Fault, LINE_BYTES_MAX, Request, Response, State};
use cdm_protocol::*;
use std::io::{BufRead, BufReader, Write};
use std::os::unix::net::UnixStream;

/// A client of a backend's control socket.
pub struct Client(BufReader<UnixStream>);

impl Client {
    /// Connects.
    pub fn connect(backend: &Backend) -> Self {
        let stream = UnixStream::connect(backend.path("control")).unwrap();
        stream.set_read_timeout(Some(TIMEOUT)).unwrap();
        Self(BufReader::new(stream))
    }

    /// Sends a line and reads one.
    pub fn say(&mut self, line: &str) -> Response {
        writeln!(self.0.get_mut(), "{line}").unwrap();
        self.hear()
    }

    fn hear(&mut self) -> Response {
        let mut line = String::new();
        self.0.read_line(&mut line).unwrap();
        serde_json::from_str(&line).unwrap_or_else(|error| panic!("{line:?}: {error}"))
    }

    /// Asks, and expects no error.
    pub fn ask(&mut self, ask: Ask) -> Response {
        let line = serde_json::to_string(&Request::from(ask)).unwrap();
        let response = self.say(&line);
        assert_eq!(response.error, None, "{line}");
        response
    }

    /// Sets a fault.
    pub fn fault(&mut self, spec: &str) -> u64 {
        let fault: Fault = spec.parse().unwrap();
        self.ask(Ask::SetFault(fault)).fault.unwrap()
    }

    /// Asks for the state.
    pub fn state(&mut self) -> State {
        self.ask(Ask::State).state.unwrap()
    }
}

#[test]
fn state_follows_the_guest_and_its_requests() {
    let backend = Backend::start_controlled(&[]);
    let mut client = Client::connect(&backend);
    let before = client.state();
    assert_eq!(before.memory_bytes, 256 << 20);
    assert!(!before.is_mapped && !before.is_connected && before.guests == 0);
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    let src = [device(0, 100)];
    guest.command(1, header(Opcode::CHECKSUM), &src, &[]);
    let bad = guest.command(1, header(Opcode::CHECKSUM), &[device(1 << 40, 1)], &[]);
    assert_eq!(bad.status, Status::BAD_ADDRESS);
    let state = client.state();
    assert!(state.is_mapped && state.is_connected && state.guests == 1);
    let numbers: Vec<_> = state.queues.iter().map(|queue| queue.queue).collect();
    assert_eq!(numbers, [0, 2, 3]);
    let [control, idle, busy] = &state.queues[..] else {
        unreachable!("three queues");
    };
    assert_eq!((control.requests, control.errors), (1, 0));
    assert_eq!((idle.requests, idle.bytes), (0, 0));
    assert_eq!((busy.requests, busy.errors, busy.bytes), (2, 1, 100));
}

#[test]
fn lost_events_and_broken_chains_are_counted() {
    let backend = Backend::start_controlled(&[]);
    let mut client = Client::connect(&backend);
    let mut guest = Guest::connect(&backend.socket_path());
    // No room for a completion, and no buffer for the event about it.
    guest.queues[usize::from(QUEUE_FIRST_COMMAND)].submit(&[]);
    super::process::wait_until("the event is lost", || client.state().events_lost == 1);
    assert_eq!(client.state().queues[1].queue_errors, 1);
}

#[test]
fn what_is_no_request_gets_an_error_and_the_next_line_an_answer() {
    let backend = Backend::start_controlled(&[]);
    let mut client = Client::connect(&backend);
    for line in [
        "",
        "hello",
        "{}",
        "{\"get\":\"weather\"}",
        "{\"version\":9,\"get\":\"state\"}",
    ] {
        assert!(client.say(line).error.is_some(), "{line}");
    }
    client.0.get_mut().write_all(b"\xff\xfe\n").unwrap();
    assert!(client.hear().error.unwrap().contains("UTF-8"));
    client.state();
}

#[test]
fn a_line_that_is_too_long_is_the_last_and_other_clients_go_on() {
    let backend = Backend::start_controlled(&[]);
    let mut other = Client::connect(&backend);
    let mut client = Client::connect(&backend);
    let endless = vec![b' '; LINE_BYTES_MAX];
    client.0.get_mut().write_all(&endless).unwrap();
    assert!(client.hear().error.unwrap().contains("65536"));
    let mut rest = String::new();
    assert_eq!(client.0.read_line(&mut rest).unwrap(), 0);
    other.state();
}

#[test]
fn more_clients_than_there_are_places_wait_for_theirs() {
    let backend = Backend::start_controlled(&[]);
    let mut first: Vec<Client> = (0..8).map(|_| Client::connect(&backend)).collect();
    first.iter_mut().for_each(|client| drop(client.state()));
    let mut late = Client::connect(&backend);
    drop(first);
    late.state();
}

#[test]
fn both_sockets_go_with_the_backend() {
    let mut backend = Backend::start_controlled(&[]);
    Client::connect(&backend).state();
    let (status, log) = backend.end_by("TERM");
    assert!(status.success(), "{log}");
    assert!(!backend.path("control").exists() && !backend.socket_path().exists());
}

#[test]
fn faults_are_set_listed_and_cleared_and_those_that_make_no_sense_refused() {
    let backend = Backend::start_controlled(&["--fault", "drop,nth=1000,queue=3"]);
    let mut client = Client::connect(&backend);
    assert_eq!(client.fault("fail,status=20"), 1);
    let listed = client.ask(Ask::Faults).faults.unwrap();
    let specs: Vec<String> = listed.iter().map(|state| state.fault.to_string()).collect();
    assert_eq!(specs, ["drop,queue=3,nth=1000", "fail,status=20"]);
    let error = client
        .say(r#"{"set":{"fault":{"kind":"drop","queue":4}}}"#)
        .error;
    assert!(error.unwrap().contains("queue 4"));
    let error = client.say(r#"{"clear":{"fault":9}}"#).error;
    assert!(error.unwrap().contains("no fault 9"));
    assert_eq!(client.ask(Ask::ClearFault(1)).cleared, Some(1));
    assert_eq!(client.ask(Ask::ClearFaults).cleared, Some(1));
    assert_eq!(client.ask(Ask::Faults).faults.unwrap(), []);
}
