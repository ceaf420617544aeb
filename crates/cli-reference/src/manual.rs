// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Manual pages, one for the program and one for each of its commands.

use clap::Command;
use clap_mangen::Man;

// REUSE-IgnoreStart: this is what pages get.
const LICENCE: &str = ".\\\" SPDX-License-Identifier: Apache-2.0 OR MIT\n";
// REUSE-IgnoreEnd

/// Names of files and what is in them.
pub fn of(program: &str, command: &Command) -> Vec<(String, String)> {
    let mut pages = vec![render(program, command)];
    for sub in command.get_subcommands() {
        pages.extend(of(&format!("{program}-{}", sub.get_name()), sub));
    }
    pages
}

fn render(name: &str, command: &Command) -> (String, String) {
    let mut text = Vec::new();
    // The date would be that of whoever ran this.
    Man::new(command.clone())
        .title(name.to_uppercase())
        .date("")
        .render(&mut text)
        .expect("memory takes everything that is written");
    let text = String::from_utf8_lossy(&text);
    let lines: Vec<&str> = text.lines().map(str::trim_end).collect();
    (
        format!("{name}.1"),
        format!("{LICENCE}{}\n", lines.join("\n")),
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_and_commands_have_a_page_each() {
        let sub = Command::new("turn").about("Turn it round");
        let command = Command::new("tool").bin_name("tool").subcommand(sub);
        let mut command = command.disable_help_subcommand(true);
        command.build();
        let pages = of("tool", &command);
        let names: Vec<&str> = pages.iter().map(|(name, _)| name.as_str()).collect();
        assert_eq!(names, ["tool.1", "tool-turn.1"]);
        assert!(pages[1].1.contains("Turn it round"), "{}", pages[1].1);
    }
}
