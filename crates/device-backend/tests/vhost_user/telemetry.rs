// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Counters over HTTP, and the trace.

use super::control::Client;
use super::guest::*;
use super::process::Backend;
use cdm_control_protocol::Ask;
use cdm_protocol::*;
use serde_json::Value;
use std::io::{Read, Write};
use std::net::TcpStream;
use std::process::Command;

fn get(address: &str, request: &str) -> String {
    let mut stream = TcpStream::connect(address).unwrap();
    write!(stream, "{request} HTTP/1.1\r\nHost: localhost\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    text
}

/// A port of this machine's loopback that nobody uses at the moment.
fn free_address() -> String {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    listener.local_addr().unwrap().to_string()
}

#[test]
fn counters_are_the_same_over_http_and_at_the_control_socket() {
    let address = free_address();
    let backend = Backend::start_controlled(&["--metrics-listen", &address]);
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    assert_eq!(
        guest.request(QUEUE_FIRST_COMMAND, &nop()).status,
        Status::OK
    );
    let response = get(&address, "GET /metrics");
    let (head, body) = response.split_once("\r\n\r\n").unwrap();
    assert!(head.starts_with("HTTP/1.1 200 "), "{head}");
    assert!(head.contains("openmetrics-text"), "{head}");
    let line = "cdm_completions_total{queue=\"2\",opcode=\"NOP\",status=\"OK\"} 1";
    assert!(body.lines().any(|found| found == line), "{body}");
    let metrics = Client::connect(&backend).ask(Ask::Metrics).metrics.unwrap();
    // Families come in no certain order.
    let sorted = |text: &str| {
        let mut lines: Vec<_> = text.lines().map(str::to_owned).collect();
        lines.sort();
        lines
    };
    assert_eq!(sorted(body), sorted(&metrics));
}

#[test]
fn over_http_there_is_nothing_but_the_counters() {
    let address = free_address();
    let _backend = Backend::start_controlled(&["--metrics-listen", &address]);
    assert!(get(&address, "GET /").starts_with("HTTP/1.1 404 "));
    assert!(get(&address, "POST /metrics").starts_with("HTTP/1.1 405 "));
    let nonsense = get(&address, "nonsense");
    assert!(
        nonsense.is_empty() || nonsense.starts_with("HTTP/1.1 400 "),
        "{nonsense}"
    );
}

/// The events of a trace.
fn events(text: &str) -> Vec<Value> {
    match serde_json::from_str(text).unwrap() {
        Value::Array(events) => events,
        other => panic!("{other}"),
    }
}

#[test]
fn trace_shows_each_request_on_the_row_of_its_queue() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.json");
    let arguments = ["--trace", file.to_str().unwrap(), "--fault", "fail,queue=3"];
    let mut backend = Backend::start_controlled(&arguments);
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    guest.command(0, header(Opcode::CHECKSUM), &[device(0, 100)], &[]);
    guest.command(1, header(Opcode::NOP), &[], &[]);
    drop(guest);
    let (status, log) = backend.end_by("TERM");
    assert!(status.success(), "{log}");
    let events = events(&std::fs::read_to_string(file).unwrap());
    let of_kind = |kind: &'static str| events.iter().filter(move |event| event["ph"] == kind);
    let requests: Vec<_> = of_kind("X").collect();
    let expected = [
        (0, "MAP_MEMORY", "OK", 0),
        (2, "CHECKSUM", "OK", 100),
        (3, "NOP", "HOST_ERROR", 0),
    ];
    assert_eq!(requests.len(), expected.len(), "{events:?}");
    let mut last = 0.0;
    for (found, (queue, name, status, bytes)) in requests.iter().zip(expected) {
        assert_eq!(found["tid"], queue);
        assert_eq!(found["name"], name);
        assert_eq!(found["args"]["status"], status);
        assert_eq!(found["args"]["bytes"], bytes);
        let (begin, duration) = (
            found["ts"].as_f64().unwrap(),
            found["dur"].as_f64().unwrap(),
        );
        assert!(begin >= last && duration >= 0.0, "{events:?}");
        last = begin + duration;
    }
    assert_eq!(requests[2]["args"]["faults"][0], "fail");
    let moments: Vec<_> = of_kind("i").map(|event| &event["name"]).collect();
    assert_eq!(moments, ["guest connected", "guest gone"]);
    let rows: Vec<_> = of_kind("M").map(|event| &event["args"]["name"]).collect();
    assert_eq!(
        rows,
        [
            "cdm-backend",
            "control queue",
            "command queue 2",
            "command queue 3"
        ]
    );
}

#[test]
fn a_trace_that_was_cut_off_lacks_nothing_but_its_last_bracket() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("trace.json");
    let mut backend = Backend::start_controlled(&["--trace", file.to_str().unwrap()]);
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    let read = || std::fs::read_to_string(&file).unwrap();
    super::process::wait_until("it is written", || read().contains("MAP_MEMORY"));
    let killed = Command::new("kill")
        .args(["-KILL", &backend.pid().to_string()])
        .status();
    assert!(killed.unwrap().success());
    super::process::wait_until("it is dead", || !backend.is_alive());
    assert!(!events(&format!("{}]", read())).is_empty());
}

#[test]
fn a_trace_that_cannot_be_written_is_refused_at_the_start() {
    let output = super::process::program()
        .args([
            "--socket-path",
            "/tmp/socket",
            "--trace",
            "/nonexistent/trace",
        ])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(3));
    let text = String::from_utf8_lossy(&output.stderr);
    assert!(
        text.contains("/nonexistent/trace") && text.contains("--trace"),
        "{text}"
    );
}
