// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where cdmctl speaks in colours: on a terminal, unless `NO_COLOR` says otherwise.

use std::fs::File;
use std::io::Read;
use std::process::{Command, Stdio};

use nix::pty::openpty;

/// Wrong in a way that is told in red, and help, whose headings are underlined.
const LINES: [&[&str]; 3] = [&["fly"], &["--help"], &["migrate", "--pid", "x"]];

fn cdmctl(arguments: &[&str], no_color: Option<&str>) -> Command {
    let mut command = Command::new(env!("CARGO_BIN_EXE_cdmctl"));
    command
        .args(arguments)
        .env("TERM", "xterm-256color")
        .env_remove("CLICOLOR")
        .env_remove("CLICOLOR_FORCE")
        .env_remove("NO_COLOR")
        .stdin(Stdio::null());
    if let Some(value) = no_color {
        command.env("NO_COLOR", value);
    }
    command
}

/// What is written on a terminal.
fn on_a_terminal(arguments: &[&str], no_color: Option<&str>) -> String {
    let pty = openpty(None, None).expect("a terminal");
    let mut command = cdmctl(arguments, no_color);
    command
        .stdout(pty.slave.try_clone().expect("a copy"))
        .stderr(pty.slave);
    let mut child = command.spawn().expect("started");
    // It has copies of the terminal, and who reads waits for all of them to be closed.
    drop(command);
    let mut text = Vec::new();
    // Nobody has the terminal open any more: EIO.
    let end = File::from(pty.master).read_to_end(&mut text);
    assert_eq!(
        end.map_err(|error| error.raw_os_error()),
        Err(Some(libc::EIO))
    );
    child.wait().expect("ended");
    String::from_utf8(text).expect("text")
}

/// What is written to a pipe.
fn to_a_pipe(arguments: &[&str]) -> String {
    let output = cdmctl(arguments, None).output().expect("started");
    String::from_utf8([output.stdout, output.stderr].concat()).expect("text")
}

#[test]
fn terminal_gets_colours() {
    for line in LINES {
        let text = on_a_terminal(line, None);
        assert!(text.contains("\x1b["), "{line:?}: {text:?}");
    }
}

#[test]
fn terminal_gets_none_with_no_color() {
    for line in LINES {
        let text = on_a_terminal(line, Some("1"));
        assert!(
            !text.is_empty() && !text.contains('\x1b'),
            "{line:?}: {text:?}"
        );
    }
}

#[test]
fn pipe_gets_none() {
    for line in LINES {
        let text = to_a_pipe(line);
        assert!(
            !text.is_empty() && !text.contains('\x1b'),
            "{line:?}: {text:?}"
        );
    }
}
