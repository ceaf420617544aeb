// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Words that are no options, for fish: clap's script leaves them out, and fish offers files.

use std::fmt::Write;

use clap::{Arg, Command, ValueHint};

/// Lines that offer the words of each subcommand, and files to nobody else.
pub fn words(command: &Command, typed: &str) -> String {
    let mut text = format!("complete -c {typed} -f\n");
    // The function of clap's script that knows which subcommand a line has.
    let begin = format!("__fish_{}_using_subcommand", typed.replace('-', "_"));
    for outer in command.get_subcommands() {
        let name = outer.get_name();
        add(&mut text, typed, &format!("{begin} {name}"), outer);
        for inner in outer.get_subcommands() {
            let inner_name = inner.get_name();
            let condition = format!("{begin} {name}; and __fish_seen_subcommand_from {inner_name}");
            add(&mut text, typed, &condition, inner);
        }
    }
    text
}

fn add(text: &mut String, typed: &str, condition: &str, command: &Command) {
    for offer in command.get_positionals().filter_map(offer) {
        let _ = writeln!(text, "complete -c {typed} -n \"{condition}\" {offer}");
    }
}

/// What is offered for a word.
fn offer(arg: &Arg) -> Option<String> {
    let values = arg.get_possible_values();
    if !values.is_empty() {
        let names: Vec<_> = values.iter().map(|value| value.get_name()).collect();
        return Some(format!("-f -a \"{}\"", names.join(" ")));
    }
    let is_path = matches!(
        arg.get_value_hint(),
        ValueHint::AnyPath | ValueHint::FilePath | ValueHint::DirPath
    );
    is_path.then(|| "-F".to_owned())
}
