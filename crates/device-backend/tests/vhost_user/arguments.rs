// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the program says about its command line, and its exit codes.

use super::process::{Backend, program};
use serde_json::Value;
use std::process::Output;

fn run(arguments: &[&str]) -> Output {
    program().args(arguments).output().unwrap()
}

/// Exit code and error text.
fn refusal(arguments: &[&str]) -> (i32, String) {
    let output = run(arguments);
    assert_eq!(String::from_utf8_lossy(&output.stdout), "");
    let text = String::from_utf8(output.stderr).unwrap();
    (output.status.code().unwrap(), text)
}

#[test]
fn capabilities_agree_with_the_description_for_management_programs() {
    let output = run(&["--print-capabilities"]);
    assert!(output.status.success());
    let printed: Value = serde_json::from_slice(&output.stdout).unwrap();
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../qemu/50-cdm-backend.json"
    );
    let described: Value = serde_json::from_slice(&std::fs::read(path).unwrap()).unwrap();
    assert_eq!(printed["type"], described["type"]);
    assert!(printed["features"].is_array());
    // The fields that QEMU's VhostUserBackend requires.
    for field in ["description", "type", "binary"] {
        assert!(described[field].is_string(), "{field}");
    }
    let binary = described["binary"].as_str().unwrap();
    assert!(binary.starts_with('/') && binary.ends_with("/cdm-backend"));
}

#[test]
fn without_a_socket_it_says_which_arguments_it_needs() {
    let (code, text) = refusal(&[]);
    assert_eq!(code, 2);
    assert!(
        text.contains("--socket-path") && text.contains("--fd"),
        "{text}"
    );
}

#[test]
fn two_sockets_are_refused() {
    let (code, text) = refusal(&["--socket-path", "/tmp/socket", "--fd", "3"]);
    assert_eq!(code, 2);
    assert!(text.contains("cannot be used with"), "{text}");
}

#[test]
fn a_memory_size_that_qemu_cannot_map_is_refused_with_the_nearest_that_it_can() {
    for (size, expected) in [("192M", "256M"), ("1000M", "1G"), ("128G", "64G")] {
        let (code, text) = refusal(&["--socket-path", "/tmp/socket", "--memory-size", size]);
        assert_eq!(code, 2);
        assert!(
            text.contains(size) && text.contains(&format!("the nearest that is: {expected}")),
            "{text}"
        );
    }
}

#[test]
fn numbers_out_of_range_are_refused_with_the_range() {
    for (option, value, expected) in [
        ("--command-queues", "0", "1..=8"),
        ("--command-queues", "9", "1..=8"),
        ("--link-speed", "32", "16, 25"),
        ("--link-width", "3", "1, 2, 4, 8, 16"),
        ("--atomics", "maybe", "link, exclusive"),
        ("--link-model", "maybe", "neither 'off' nor 'on'"),
        ("--link-model", "on,link-ns=9999999", "0 to 1000000"),
    ] {
        let (code, text) = refusal(&["--socket-path", "/tmp/socket", option, value]);
        assert_eq!(code, 2);
        assert!(text.contains(value) && text.contains(expected), "{text}");
    }
}

#[test]
fn a_socket_in_use_is_refused_and_its_owner_left_alone() {
    let mut backend = Backend::start();
    let path = backend.socket_path();
    let (code, text) = refusal(&["--socket-path", path.to_str().unwrap()]);
    assert_eq!(code, 3);
    assert!(
        text.contains(path.to_str().unwrap()) && text.contains("is in use"),
        "{text}"
    );
    assert!(backend.is_alive() && path.exists());
}

#[test]
fn a_path_that_is_no_socket_is_refused_and_kept() {
    let file = tempfile::NamedTempFile::new().unwrap();
    let path = file.path().to_str().unwrap();
    let (code, text) = refusal(&["--socket-path", path]);
    assert_eq!(code, 3);
    assert!(text.contains("is not a socket"), "{text}");
    assert!(file.path().exists());
}

#[test]
fn a_path_that_cannot_be_listened_at_is_refused_with_advice() {
    let long = format!("/tmp/{}", "x".repeat(120));
    for (path, advice) in [
        ("/nonexistent/folder/socket", "make the folder first"),
        (long.as_str(), "at most 107 bytes"),
    ] {
        let (code, text) = refusal(&["--socket-path", path]);
        assert_eq!(code, 3);
        assert!(text.contains(path) && text.contains(advice), "{text}");
    }
}

#[test]
fn an_fd_that_is_no_socket_is_refused() {
    for fd in ["0", "99"] {
        let (code, text) = refusal(&["--fd", fd]);
        assert_eq!(code, 3, "{text}");
        assert!(text.contains(&format!("--fd {fd}")), "{text}");
    }
}

#[test]
fn a_log_filter_that_cannot_be_read_is_refused() {
    let output = program()
        .env("CDM_LOG", "cdm_backend=loud")
        .args(["--socket-path", "/tmp/socket"])
        .output()
        .unwrap();
    assert_eq!(output.status.code(), Some(2));
    assert!(String::from_utf8_lossy(&output.stderr).contains("CDM_LOG"));
}

#[test]
fn help_names_every_exit_code() {
    let output = run(&["--help"]);
    assert!(output.status.success());
    let text = String::from_utf8(output.stdout).unwrap();
    for line in [
        "  0  ended as asked",
        "  1  failed while",
        "  2  wrong arg",
        "  3  could not start",
        "  4  ended by its own sandbox",
    ] {
        assert!(text.contains(line), "{text}");
    }
}

#[test]
fn log_lines_are_json_objects_when_asked_for() {
    let arguments = ["--memory-size", "256M", "--log-format", "json"];
    let (_, log) = Backend::start_with(&arguments).end_by("TERM");
    let lines: Vec<Value> = log
        .lines()
        .map(|line| serde_json::from_str(line).unwrap())
        .collect();
    let ready = lines
        .iter()
        .find(|line| line["fields"]["message"] == "the device is ready");
    assert_eq!(ready.unwrap()["fields"]["memory"], "256M");
}
