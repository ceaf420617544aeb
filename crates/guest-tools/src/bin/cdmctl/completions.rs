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
    use std::process::Command;

    #[test]
    fn bash_completes_commands_and_options() {
        let path = std::env::temp_dir().join(format!("cdmctl-{}.bash", std::process::id()));
        std::fs::write(&path, script(Shell::Bash)).unwrap();
        for (words, expected) in [("resid", "residency"), ("hot --thr", "--threshold")] {
            let line = format!(
                "source {}; COMP_WORDS=(cdmctl {words}); COMP_CWORD=$((${{#COMP_WORDS[@]}} - 1)); \
                 _cdmctl cdmctl \"${{COMP_WORDS[COMP_CWORD]}}\" cdmctl; echo \"${{COMPREPLY[@]}}\"",
                path.display()
            );
            let output = Command::new("bash").args(["-c", &line]).output().unwrap();
            let said = String::from_utf8_lossy(&output.stdout);
            assert_eq!(said.trim(), expected, "{words}: {output:?}");
        }
        std::fs::remove_file(&path).unwrap();
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
