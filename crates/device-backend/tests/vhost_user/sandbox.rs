// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The sandbox of a backend that runs: it is on without being asked for, and each thread
//! that serves a guest has narrowed itself down.

use super::guest::*;
use super::process::Backend;
use cdm_protocol::*;
use std::collections::BTreeMap;
use std::fs;

/// Filters that every thread has: the allow list of all roles, and the answers to two calls.
const SHARED_FILTERS: u32 = 3;

fn field<'a>(status: &'a str, name: &str) -> &'a str {
    let line = status.lines().find(|line| line.starts_with(name));
    line.and_then(|line| line.split_whitespace().nth(1))
        .unwrap_or_else(|| panic!("no {name} in {status}"))
}

/// Number of seccomp filters of each thread, by the thread's name.
fn filters(backend: &Backend) -> BTreeMap<String, Vec<u32>> {
    let mut found: BTreeMap<String, Vec<u32>> = BTreeMap::new();
    for task in fs::read_dir(format!("/proc/{}/task", backend.pid())).unwrap() {
        let status = fs::read_to_string(task.unwrap().path().join("status")).unwrap();
        let count = field(&status, "Seccomp_filters:").parse().unwrap();
        let name = field(&status, "Name:").to_owned();
        found.entry(name).or_default().push(count);
    }
    found
}

fn with_a_busy_guest(arguments: &[&str]) -> (Backend, Guest) {
    let backend = Backend::start_with(arguments);
    let mut guest = Guest::connect(&backend.socket_path());
    guest.map();
    for index in 0..2 {
        let completion = guest.request(QUEUE_FIRST_COMMAND + index, &nop());
        assert_eq!(completion.status, Status::OK);
    }
    (backend, guest)
}

#[test]
fn every_thread_of_a_serving_backend_has_a_filter_of_its_own_by_default() {
    let arguments = ["--memory-size=256M", "--command-queues=2", "--engines=2"];
    let (backend, _guest) = with_a_busy_guest(&arguments);
    let found = filters(&backend);
    // Session, workers and engines are started by the serving thread, whose filter they inherit.
    let own = SHARED_FILTERS + 1;
    let expected = [
        ("cdm-backend", vec![own]),
        ("engine", vec![own + 1; 2]),
        ("serve", vec![own]),
        ("vhost-user", vec![own + 1]),
        ("vring_worker", vec![own + 1; 3]),
    ];
    assert_eq!(
        found,
        expected
            .map(|(name, counts)| (name.to_owned(), counts))
            .into()
    );
}

#[test]
fn one_line_of_the_log_says_what_is_on() {
    let (mut backend, guest) = with_a_busy_guest(&["--memory-size=256M", "--command-queues=2"]);
    drop(guest);
    let (status, log) = backend.end_by("TERM");
    assert!(status.success(), "{log}");
    let lines: Vec<_> = log
        .lines()
        .filter(|line| line.contains("sandbox"))
        .collect();
    assert_eq!(lines.len(), 1, "{log}");
    // Every host that we know of has these; what else is missing is named on the same line.
    assert!(
        lines[0].contains("no_new_privs") && lines[0].contains("seccomp"),
        "{log}"
    );
    for part in ["limits", "namespaces", "capabilities", "landlock"] {
        assert!(lines[0].contains(part), "{part}: {log}");
    }
}

#[test]
fn with_sandbox_none_nothing_is_given_up_and_the_device_is_the_same() {
    let arguments = ["--memory-size=256M", "--command-queues=2", "--sandbox=none"];
    let (mut backend, guest) = with_a_busy_guest(&arguments);
    let found = filters(&backend);
    // Filters that we came with are none of our doing.
    let own = fs::read_to_string("/proc/self/status").unwrap();
    let inherited: u32 = field(&own, "Seccomp_filters:").parse().unwrap();
    assert!(
        found.values().flatten().all(|&count| count == inherited),
        "{found:?}"
    );
    drop(guest);
    let (_, log) = backend.end_by("TERM");
    assert!(log.contains("nothing"), "{log}");
}

#[test]
fn with_sandbox_seccomp_system_calls_are_filtered_and_files_are_still_there() {
    let arguments = [
        "--memory-size=256M",
        "--command-queues=2",
        "--sandbox=seccomp",
    ];
    let (backend, _guest) = with_a_busy_guest(&arguments);
    let found = filters(&backend);
    assert!(
        found
            .values()
            .flatten()
            .all(|&count| count > SHARED_FILTERS),
        "{found:?}"
    );
    let pid = backend.pid();
    let namespace = |pid: &str| fs::read_link(format!("/proc/{pid}/ns/mnt")).unwrap();
    assert_eq!(namespace(&pid.to_string()), namespace("self"));
}
