// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A page of Markdown about a program: each command with its usage, its arguments as a table, and
//! the examples that its help shows.

use std::fmt::Write as _;

use clap::builder::StyledStr;
use clap::{Arg, Command};

// REUSE-IgnoreStart: this is what pages get.
const LICENCE: &str = "<!-- SPDX-License-Identifier: Apache-2.0 OR MIT -->";
// REUSE-IgnoreEnd

/// The page of a program whose definition has been built.
pub fn of(command: &Command) -> String {
    let name = command.get_name();
    let mut page = format!(
        "{LICENCE}\n# Command line: {name}\n\n\
         Written from the program's own definition by the command below; not by hand.\n\n    \
         just reference --record\n"
    );
    body(&mut page, command);
    for sub in command.get_subcommands() {
        section(&mut page, sub, 2);
    }
    page
}

fn section(page: &mut String, command: &Command, level: usize) {
    let name = command
        .get_bin_name()
        .unwrap_or_else(|| command.get_name())
        .to_owned();
    _ = write!(page, "\n{} {name}\n", "#".repeat(level));
    body(page, command);
    for sub in command.get_subcommands() {
        section(page, sub, level + 1);
    }
}

fn body(page: &mut String, command: &Command) {
    if let Some(about) = command.get_long_about().or(command.get_about()) {
        _ = write!(page, "\n{}.\n", text(about).trim_end_matches('.'));
    }
    let usage = command.clone().render_usage().to_string();
    let usage = usage.trim_start_matches("Usage:");
    let usage: Vec<&str> = usage.lines().map(str::trim).collect();
    _ = write!(page, "\n```text\n{}\n```\n", usage.join("\n").trim());
    arguments(page, command);
    if let Some(after) = command.get_after_long_help().or(command.get_after_help()) {
        _ = write!(page, "\n```text\n{}\n```\n", after.to_string().trim());
    }
}

fn arguments(page: &mut String, command: &Command) {
    let shown: Vec<&Arg> = command
        .get_arguments()
        .filter(|arg| !arg.is_hide_set())
        .filter(|arg| !["help", "version"].contains(&arg.get_id().as_str()))
        .collect();
    if shown.is_empty() {
        return;
    }
    page.push_str("\n| argument | meaning |\n|---|---|\n");
    for arg in shown {
        _ = writeln!(page, "| `{}` | {} |", cell(&written(arg)), meaning(arg));
    }
}

/// An argument as one writes it.
fn written(arg: &Arg) -> String {
    if arg.is_positional() {
        let many = arg.get_num_args().is_some_and(|num| num.max_values() > 1);
        return value(arg) + if many { "..." } else { "" };
    }
    let short = arg.get_short().map(|short| format!("-{short}"));
    let long = arg.get_long().map(|long| format!("--{long}"));
    let mut all = [short, long]
        .into_iter()
        .flatten()
        .collect::<Vec<_>>()
        .join(", ");
    if arg.get_action().takes_values() {
        all.push(' ');
        all.push_str(&value(arg));
    }
    all
}

fn value(arg: &Arg) -> String {
    match arg.get_value_names() {
        Some(names) => names.join(" "),
        None => arg.get_id().to_string().to_uppercase(),
    }
}

fn meaning(arg: &Arg) -> String {
    let help = arg.get_long_help().or(arg.get_help());
    let mut meaning = cell(&help.map(text).unwrap_or_default());
    if !arg.get_action().takes_values() {
        return meaning;
    }
    let possible = arg.get_possible_values();
    if !possible.is_empty() && !arg.is_hide_possible_values_set() {
        let values: Vec<String> = possible
            .iter()
            .filter(|value| !value.is_hide_set())
            .map(|value| match value.get_help() {
                Some(help) => format!("`{}` ({})", value.get_name(), cell(&text(help))),
                None => format!("`{}`", value.get_name()),
            })
            .collect();
        _ = write!(meaning, "; one of {}", values.join(", "));
    }
    if !arg.get_default_values().is_empty() && !arg.is_hide_default_value_set() {
        let values: Vec<_> = arg
            .get_default_values()
            .iter()
            .map(|value| value.to_string_lossy())
            .collect();
        _ = write!(meaning, "; default `{}`", values.join(" "));
    }
    meaning
}

/// Help without the codes that a terminal would get.
fn text(styled: &StyledStr) -> String {
    styled.to_string().trim().to_owned()
}

/// Text in a table's cell.
fn cell(text: &str) -> String {
    text.replace('|', "\\|").replace('\n', " ")
}

#[cfg(test)]
mod tests {
    use super::*;

    fn page(command: Command) -> String {
        let mut command = command.bin_name("tool");
        command.build();
        of(&command)
    }

    #[test]
    fn option_is_a_row_with_its_value_choices_and_default() {
        let arg = Arg::new("way")
            .short('w')
            .long("way")
            .value_name("WAY")
            .value_parser(["up", "down"])
            .default_value("up")
            .help("Go this way");
        let page = page(Command::new("tool").arg(arg));
        let row = "| `-w, --way WAY` | Go this way; one of `up`, `down`; default `up` |";
        assert!(page.contains(row), "{page}");
    }

    #[test]
    fn command_has_a_heading_its_usage_and_its_examples() {
        let sub = Command::new("turn")
            .about("Turn it")
            .after_help("Example:\n  tool turn");
        let page = page(Command::new("tool").subcommand(sub));
        for part in [
            "\n## tool turn\n",
            "\nTurn it.\n",
            "```text\ntool turn\n```",
            "Example:\n  tool turn",
        ] {
            assert!(page.contains(part), "{part:?} is not in\n{page}");
        }
    }

    #[test]
    fn upright_bars_do_not_end_a_cell() {
        let arg = Arg::new("k").long("k").value_name("a|b");
        assert!(page(Command::new("tool").arg(arg)).contains("| `--k a\\|b` |"));
    }
}
