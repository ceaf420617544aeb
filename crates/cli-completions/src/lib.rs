// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a shell needs to complete a program's arguments, from the definition that clap parses them
//! with.
//!
//! clap takes an argument that it knows nothing of for the name of a file, so that shells offer
//! files for numbers. Here an argument is a file if its type is a path, or its value is called one.

mod fish;

use std::io::{self, Write};

use clap::{Arg, Command, ValueHint};
use clap_complete::{Shell, generate};

/// What the value of an argument is called that is a file or folder.
const PATHS: [&str; 3] = ["FILE", "DIR", "PATH"];

/// Arguments of the subcommand `completions`.
#[derive(Debug, clap::Args)]
pub struct ShellArgs {
    /// The shell that is to complete
    #[arg(value_name = "SHELL", value_parser = clap::builder::EnumValueParser::<Shell>::new())]
    shell: Shell,
}

impl ShellArgs {
    /// Prints what the shell needs to complete lines that begin with `typed`.
    ///
    /// # Errors
    ///
    /// Standard output takes no more.
    pub fn print(&self, command: Command, typed: &str) -> io::Result<()> {
        io::stdout().write_all(&script(self.shell, command, typed))
    }
}

/// What the shell `name` needs to complete lines that begin with `typed`; nothing for a shell that
/// nobody knows.
pub fn script_for(name: &str, command: Command, typed: &str) -> Vec<u8> {
    name.parse()
        .map_or_else(|_| Vec::new(), |shell| script(shell, command, typed))
}

fn script(shell: Shell, command: Command, typed: &str) -> Vec<u8> {
    let mut command = hinted(command);
    let mut text = Vec::new();
    generate(shell, &mut command, typed, &mut text);
    if shell == Shell::Fish {
        text.extend(fish::words(&command, typed).into_bytes());
    }
    text
}

/// The same command, with each argument either a file or none.
fn hinted(command: Command) -> Command {
    command.mut_args(hint).mut_subcommands(hinted)
}

fn hint(arg: Arg) -> Arg {
    if arg.get_value_hint() != ValueHint::Unknown || !arg.get_action().takes_values() {
        return arg;
    }
    let names = arg.get_value_names().unwrap_or_default();
    let is_path = names
        .iter()
        .flat_map(|name| name.split(['|', ':']))
        .any(|name| PATHS.contains(&name));
    arg.value_hint(match is_path {
        true => ValueHint::AnyPath,
        false => ValueHint::Other,
    })
}

#[cfg(test)]
mod tests {
    use super::*;
    use cdm_cli_reference::completion;

    fn command() -> Command {
        let device = Arg::new("device").long("device").value_name("N");
        let to = Arg::new("to").value_parser(["here", "there"]);
        let input = Arg::new("input").long("input").value_name("FILE");
        let place = Arg::new("place").value_name("DIR");
        let deeper = Command::new("deeper").arg(Arg::new("deep").value_parser(["down", "up"]));
        Command::new("tool").subcommands([
            Command::new("go").args([device, to]),
            Command::new("read").args([input, place]),
            Command::new("dig").subcommand(deeper),
        ])
    }

    fn by_name(shell: &str) -> Vec<u8> {
        script_for(shell, command(), "tool")
    }

    #[test]
    fn words_of_an_argument_are_completed_by_every_shell() {
        let lines = [
            ("tool go th", "there"),
            ("tool dig dee", "deeper"),
            ("tool dig deeper do", "down"),
        ];
        completion::check("tool", by_name, &lines).expect("completed");
    }

    #[test]
    fn files_are_offered_for_options_that_are_files() {
        let lines = [("tool read --input _to", "_tool")];
        completion::check("tool", by_name, &lines).expect("completed");
    }

    #[test]
    fn fish_offers_files_for_words_that_are_files_and_for_nothing_else() {
        let lines = [
            ("tool read _to", "_tool"),
            ("tool _to", ""),
            ("tool go _to", ""),
            ("tool go --device _to", ""),
            ("tool dig deeper _to", ""),
        ];
        completion::check_fish("tool", &by_name("fish"), &lines).expect("completed");
    }

    #[test]
    fn shell_that_nobody_knows_gets_nothing() {
        assert!(by_name("command.com").is_empty());
    }
}
