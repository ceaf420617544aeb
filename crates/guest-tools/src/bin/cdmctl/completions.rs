// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl completions`.

use anyhow::Context;
use clap::CommandFactory;

use crate::{Cli, Verdict};

const EXAMPLES: &str = "\
Examples:
  source <(cdmctl completions bash)
  cdmctl completions zsh > ~/.zfunc/_cdmctl
  cdmctl completions fish > ~/.config/fish/completions/cdmctl.fish";

#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    #[command(flatten)]
    shell: cdm_cli_completions::ShellArgs,
}

pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    args.shell
        .print(Cli::command(), "cdmctl")
        .context("cannot write to standard output")?;
    Ok(Verdict::Done)
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdm_cli_reference::completion;

    fn by_name(shell: &str) -> Vec<u8> {
        cdm_cli_completions::script_for(shell, Cli::command(), "cdmctl")
    }

    #[test]
    fn shells_complete_commands_and_options() {
        let lines = [
            ("cdmctl resid", "residency"),
            ("cdmctl mi", "migrate"),
            ("cdmctl hot --thr", "--threshold"),
            ("cdmctl migrate --to dev", "device"),
            ("cdmctl completions zs", "zsh"),
            ("cdmctl run checksum --input _cdm", "_cdmctl"),
        ];
        completion::check("cdmctl", by_name, &lines).unwrap();
    }

    #[test]
    fn no_files_are_offered_for_numbers() {
        let lines = [
            ("cdmctl _cdm", ""),
            ("cdmctl info _cdm", ""),
            ("cdmctl migrate --pid _cdm", ""),
        ];
        completion::check_fish("cdmctl", &by_name("fish"), &lines).unwrap();
    }

    #[test]
    fn every_shell_learns_every_command_and_option() {
        for shell in ["bash", "zsh", "fish"] {
            let text = String::from_utf8(by_name(shell)).unwrap();
            for command in Cli::command().get_subcommands() {
                let name = command.get_name();
                assert!(text.contains(name), "{shell} does not know {name}");
            }
            for option in ["make-room", "populate", "threshold", "interval"] {
                assert!(text.contains(option), "{shell} does not know --{option}");
            }
        }
    }
}
