// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdmctl completions`.

use std::io::{self, Write};

use anyhow::Context;
use clap::CommandFactory;
use clap_complete::Shell;

use crate::{Cli, Verdict};

const EXAMPLES: &str = "\
Examples:
  source <(cdmctl completions bash)
  cdmctl completions zsh > ~/.zfunc/_cdmctl
  cdmctl completions fish > ~/.config/fish/completions/cdmctl.fish";

#[derive(clap::Args)]
#[command(after_long_help = EXAMPLES)]
pub struct Args {
    /// The shell that is to complete
    #[arg(value_name = "SHELL", value_parser = clap::builder::EnumValueParser::<Shell>::new())]
    shell: Shell,
}

pub fn run(args: &Args) -> anyhow::Result<Verdict> {
    io::stdout()
        .write_all(&script(args.shell))
        .context("cannot write to standard output")?;
    Ok(Verdict::Done)
}

fn script(shell: Shell) -> Vec<u8> {
    let mut text = Vec::new();
    clap_complete::generate(shell, &mut Cli::command(), "cdmctl", &mut text);
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shells_complete_commands_and_options() {
        let lines = [
            ("cdmctl resid", "residency"),
            ("cdmctl mi", "migrate"),
            ("cdmctl hot --thr", "--threshold"),
            ("cdmctl migrate --to dev", "device"),
        ];
        let by_name = |shell: &str| script(shell.parse().unwrap());
        cdm_cli_reference::completion::check("cdmctl", by_name, &lines).unwrap();
    }

    #[test]
    fn every_shell_learns_every_command_and_option() {
        for shell in [Shell::Bash, Shell::Zsh, Shell::Fish] {
            let text = String::from_utf8(script(shell)).unwrap();
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
