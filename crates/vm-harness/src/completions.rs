// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm completions`: a recipe is a subcommand, so what completes `just` here is this tool.

use std::io::{self, Write};
use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory};
use clap_complete::Shell;

use crate::cli::Cli;

/// What people type. Shells look a command with a folder up by its name, too.
const TYPED: &str = "just";

/// Arguments of `cdm completions`.
#[derive(Debug, Args)]
#[command(after_help = "\
They are for recipes of this project: source them in shells where you work on it.

Examples:
  source <(ci/just completions bash)
  ci/just completions zsh > ~/.zfunc/_just
  ci/just completions fish | source")]
pub struct CompletionsArgs {
    /// The shell that is to complete
    #[arg(value_name = "SHELL", value_parser = clap::builder::EnumValueParser::<Shell>::new())]
    shell: Shell,
}

/// `cdm completions`.
pub fn run(args: &CompletionsArgs) -> Result<ExitCode> {
    io::stdout()
        .write_all(&script(args.shell))
        .context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

fn script(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), TYPED, &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_shell_learns_every_recipe() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = String::from_utf8(script(shell)).expect("text");
            for command in Cli::command().get_subcommands() {
                let name = command.get_name();
                assert!(text.contains(name), "{shell} does not know {name}");
            }
        }
    }

    #[test]
    fn shells_complete_recipes_and_their_options() {
        let lines = [
            ("just run-v", "run-vm"),
            ("just run-vm --device-m", "--device-memory"),
            ("just run-vm --memory-type coh", "coherent"),
            ("ci/just resul", "results"),
        ];
        cdm_cli_reference::completion::check(TYPED, by_name, &lines).expect("completed");
    }

    fn by_name(shell: &str) -> Vec<u8> {
        script(shell.parse().expect("a shell"))
    }
}
