// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm completions`: a recipe is a subcommand, so what completes `just` here is this tool.

use std::process::ExitCode;

use anyhow::{Context as _, Result};
use clap::{Args, CommandFactory};

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
    #[command(flatten)]
    shell: cdm_cli_completions::ShellArgs,
}

/// `cdm completions`.
pub fn run(args: &CompletionsArgs) -> Result<ExitCode> {
    args.shell
        .print(Cli::command(), TYPED)
        .context("cannot write to standard output")?;
    Ok(ExitCode::SUCCESS)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdm_cli_reference::completion;

    #[test]
    fn every_shell_learns_every_recipe() {
        for shell in ["bash", "zsh", "fish"] {
            let text = String::from_utf8(by_name(shell)).expect("text");
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
            ("just run-vm --kernel _ju", "_just"),
            ("ci/just resul", "results"),
        ];
        completion::check(TYPED, by_name, &lines).expect("completed");
    }

    #[test]
    fn no_files_are_offered_where_nothing_fits() {
        let lines = [
            ("just _ju", ""),
            ("just completions _ju", ""),
            ("just doctor _ju", ""),
            ("just run-vm --devices _ju", ""),
            ("just module _ju", "_just"),
        ];
        completion::check_fish(TYPED, &by_name("fish"), &lines).expect("completed");
    }

    fn by_name(shell: &str) -> Vec<u8> {
        cdm_cli_completions::script_for(shell, Cli::command(), TYPED)
    }
}
