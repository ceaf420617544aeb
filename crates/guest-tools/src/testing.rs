// SPDX-License-Identifier: Apache-2.0 OR MIT

//! For unit tests that fork.

use std::process::Command;
use std::thread;

/// Says in the copy that it is one.
const ALONE: &str = "CDM_TEST_ALONE";

/// Runs the calling test again as the only one of a process, and `body` there. Beside other
/// tests a fork could copy a lock that another thread holds, or an end of a pipe whose closing
/// another test waits for, and wait for ever. Here the one other thread waits for the test.
pub fn alone(body: impl FnOnce()) {
    if std::env::var_os(ALONE).is_some() {
        return body();
    }
    let thread = thread::current();
    let test = thread.name().expect("a test's thread has its name");
    let output = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", test, "--test-threads=1", "--nocapture"])
        .env(ALONE, "1")
        .output()
        .unwrap();
    // Quoted, so that nobody takes them for results of the outer program.
    let said = format!("{:?}", String::from_utf8_lossy(&output.stdout));
    let why = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{said}\n{why}");
    assert!(said.contains("1 passed"), "{test} did not run: {said}");
}
