// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm shell`: one more shell in a guest that runs, or one command.

use std::process::ExitCode;

use anyhow::Result;
use cdm_agent_protocol::{Command, Ending, Exec};
use clap::Args;

use crate::context::Context;
use crate::vm::shell::{
    LEFT, Outcome, StandardInput, exit_code, forward, login_shell, on_terminal,
};
use crate::vm::visit::{Visit, Which, lost_during, next};
use crate::vm::{Lost, terminal};

/// Arguments of `cdm shell`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just shell
  just shell dmesg
  just shell 'cdmctl info --json' > info.json
  just shell --guest Xf3a1 -- ls -l /host")]
pub struct ShellArgs {
    #[command(flatten)]
    which: Which,

    /// Run this instead of a shell: one line of shell, or a program and its arguments
    #[arg(value_name = "CMD", trailing_var_arg = true)]
    command: Vec<String>,
}

/// `cdm shell`.
pub fn run(ctx: &Context, args: ShellArgs) -> Result<ExitCode> {
    let visit = Visit::to(&args.which)?;
    let interactive = args.command.is_empty() && terminal::is_interactive();
    let keys = StandardInput::new(interactive);
    let line = args.command.join(" ");
    let outcome = if interactive {
        let running = visit.start(login_shell(Some(terminal::size())))?;
        ctx.progress
            .say("cdm: 'exit' or Ctrl-] ends this shell; the guest goes on");
        on_terminal(running, &keys, |running| Ok(next(running)))?
    } else {
        let exec = match command_of(args.command) {
            Some(command) => Exec {
                command,
                tty: None,
                env: Vec::new(),
                cwd: Some("/root".to_owned()),
            },
            None => login_shell(None),
        };
        let mut running = visit.start(exec)?;
        keys.connect(running.input());
        forward(&mut running, |running| Ok(next(running)))?
    };
    match outcome {
        // The last command's status of somebody who typed is no result.
        Outcome::Exit(_) if interactive => Ok(ExitCode::SUCCESS),
        Outcome::Exit(status) => Ok(exit_code(status)),
        Outcome::Lost(Lost::Broken(reason)) if reason == LEFT => Ok(ExitCode::SUCCESS),
        Outcome::Lost(lost @ Lost::Ended(Ending::PowerOff | Ending::Reboot)) if interactive => {
            ctx.progress.say(format!("cdm: {lost}"));
            Ok(ExitCode::SUCCESS)
        }
        Outcome::Lost(lost) => Err(lost_during(&lost, &line)),
    }
}

/// One word is a line of shell, more are a program with its arguments.
fn command_of(mut words: Vec<String>) -> Option<Command> {
    match words.len() {
        0 => None,
        1 => words.pop().map(Command::Shell),
        _ => Some(Command::Argv(words)),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn one_word_is_a_line_of_shell_and_more_are_taken_as_they_are() {
        let words = |words: &[&str]| words.iter().map(|word| (*word).to_owned()).collect();
        assert_eq!(command_of(words(&[])), None);
        let line = Command::Shell("ls | wc".to_owned());
        assert_eq!(command_of(words(&["ls | wc"])), Some(line));
        let program = Command::Argv(words(&["ls", "a b"]));
        assert_eq!(command_of(words(&["ls", "a b"])), Some(program));
    }
}
