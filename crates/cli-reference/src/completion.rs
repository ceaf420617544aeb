// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What shells make of a program's completions: each is asked to complete lines.

use std::fs;
use std::path::Path;
use std::process::{Command, Output};

/// Completes the last of `$2`'s words by the functions in `$1`, as bash itself would.
const BASH: &str = "source \"$1\"; read -ra COMP_WORDS <<< \"$2\"; \
                    COMP_CWORD=$((${#COMP_WORDS[@]} - 1)); \
                    spec=($(complete -p \"${COMP_WORDS[0]##*/}\")); \
                    while [ \"${spec[0]:--F}\" != -F ]; do spec=(\"${spec[@]:1}\"); done; \
                    \"${spec[1]}\" \"${COMP_WORDS[0]}\" \"${COMP_WORDS[COMP_CWORD]}\" \
                    \"${COMP_WORDS[COMP_CWORD - 1]}\"; \
                    echo \"${COMPREPLY[@]}\"";
const ZSH: &str = include_str!("completion.zsh");
/// Each candidate has a line, with what it is behind a tabulator, if that is known: without any,
/// `string` takes itself for failed.
const FISH: &str = "source $argv[1]; complete -C $argv[2] | string split -f 1 \\t; true";

/// Longest that a shell may take, in seconds: far below one, where the machine is free.
const LIMIT_SECONDS: &str = "60";

/// Has bash, zsh and fish complete lines: each line's last word becomes the word beside it, and
/// nothing else. `script` gives the definitions for a shell.
///
/// # Errors
///
/// Which shell makes what of which line.
pub fn check(
    program: &str,
    script: impl Fn(&str) -> Vec<u8>,
    lines: &[(&str, &str)],
) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
    let mut wrong = Vec::new();
    for shell in ["bash", "zsh", "fish"] {
        // zsh knows a command's file by its name.
        let file = dir.path().join(format!("_{program}"));
        fs::write(&file, script(shell)).map_err(|error| format!("cannot write: {error}"))?;
        for (line, expected) in lines {
            let completed = complete(shell, &file, line)?;
            if completed != *expected {
                wrong.push(format!(
                    "{shell} makes '{completed}' of '{line}', not '{expected}'"
                ));
            }
        }
    }
    match wrong.is_empty() {
        true => Ok(()),
        false => Err(wrong.join("\n")),
    }
}

/// Has fish complete lines as [`check`] does. Where nothing is expected it must offer nothing, no
/// file either: the file `_PROGRAM` is there to tempt it.
///
/// # Errors
///
/// What fish makes of which line.
pub fn check_fish(program: &str, script: &[u8], lines: &[(&str, &str)]) -> Result<(), String> {
    let dir = tempfile::tempdir().map_err(|error| format!("no temporary folder: {error}"))?;
    let file = dir.path().join(format!("_{program}"));
    fs::write(&file, script).map_err(|error| format!("cannot write: {error}"))?;
    for (line, expected) in lines {
        let output = asked("fish", &file, line)?;
        let said = String::from_utf8_lossy(&output.stdout);
        if !output.status.success() || said.trim() != *expected {
            let errors = String::from_utf8_lossy(&output.stderr);
            return Err(format!(
                "fish makes '{}' of '{line}', not '{expected}': {errors}",
                said.trim()
            ));
        }
    }
    Ok(())
}

/// The last word of a line when it was completed; all of them where there are several.
fn complete(shell: &str, file: &Path, line: &str) -> Result<String, String> {
    let output = asked(shell, file, line)?;
    let said = String::from_utf8_lossy(&output.stdout);
    if !output.status.success() || said.trim().is_empty() {
        let errors = String::from_utf8_lossy(&output.stderr);
        return Err(format!(
            "{shell}, which the toolbox should have, does not complete '{line}': {}: {errors}",
            output.status
        ));
    }
    Ok(match shell {
        // The whole line, with what divides its last word from the next one.
        "zsh" => {
            let line = said.trim_end().trim_end_matches('=');
            line.rsplit(' ').next().unwrap_or_default().to_owned()
        }
        _ => said.split_whitespace().collect::<Vec<_>>().join(" "),
    })
}

/// What a shell says that is asked to complete a line in the folder of the definitions.
fn asked(shell: &str, file: &Path, line: &str) -> Result<Output, String> {
    let folder = file.parent().unwrap_or(file);
    let (options, text, place): (&[&str], _, _) = match shell {
        "bash" => (&["--norc", "-c"], BASH, file),
        "zsh" => (&["-f", "-c"], ZSH, folder),
        _ => (&["--no-config", "-c"], FISH, file),
    };
    let mut command = Command::new("timeout");
    command
        .args(["--kill-after=5", LIMIT_SECONDS, shell])
        .args(options)
        .arg(text);
    if shell != "fish" {
        // What they count as the name of the script.
        command.arg(shell);
    }
    command
        .arg(place)
        .arg(line)
        .current_dir(folder)
        .env("HOME", folder)
        .env("TERM", "dumb")
        .output()
        .map_err(|error| format!("cannot start timeout: {error}"))
}

#[cfg(test)]
mod tests {
    use super::*;

    /// Completions of a program that has two words.
    fn script(shell: &str) -> Vec<u8> {
        let text = match shell {
            "bash" => {
                "_it() { COMPREPLY=($(compgen -W 'take tell' -- \"$2\")); }; complete -F _it it"
            }
            "zsh" => "#compdef it\ncompadd take tell",
            _ => "complete -c it -f -a 'take tell'",
        };
        text.into()
    }

    #[test]
    fn each_shell_completes_a_word_that_is_clear() {
        check("it", script, &[("it ta", "take"), ("it te", "tell")]).expect("clear");
    }

    #[test]
    fn who_completes_to_something_else_is_named_with_what_it_made() {
        let error = check("it", script, &[("it ta", "tell")]).expect_err("no");
        for shell in ["bash", "zsh", "fish"] {
            let words = format!("{shell} makes 'take' of 'it ta', not 'tell'");
            assert!(error.contains(&words), "{error}");
        }
    }

    #[test]
    fn file_that_is_offered_where_nothing_fits_is_named() {
        let lines = [("it _i", "")];
        check_fish("it", b"complete -c it -f", &lines).expect("nothing");
        let error = check_fish("it", b"complete -c it -l x", &lines).expect_err("a file");
        assert!(error.contains("'_it' of 'it _i'"), "{error}");
    }

    #[test]
    fn shell_that_knows_nothing_of_the_program_is_an_error() {
        let error = check("it", |_| Vec::new(), &[("it ta", "take")]).expect_err("no");
        assert!(
            error.contains("bash") && error.contains("'it ta'"),
            "{error}"
        );
    }
}
