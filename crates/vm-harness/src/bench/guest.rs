// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm-bench`, run in a guest or on the host.

use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context as _, Result, bail, ensure};
use cdm_agent_protocol::Sample;

use crate::progress::Task;
use crate::test::Session;
use crate::vm::boot::Stream;

/// The program that measures.
pub const PROGRAM: &str = "cdm-bench";

/// Longest silence of the program: a turn of the largest size, on a slow host.
const SILENCE: Duration = Duration::from_secs(300);

/// Has the guest measure; it says on its standard error how far it is.
pub fn measure(
    session: &mut Session<'_>,
    arguments: &[String],
    progress: &Task,
) -> Result<Vec<Sample>> {
    let line = format!("{PROGRAM} {}", arguments.join(" "));
    let (mut samples, mut said) = (Vec::new(), Vec::new());
    let status =
        session
            .vm()?
            .exec_streaming_within(SILENCE, &line, |stream, text| match stream {
                Stream::Stdout => samples.push(Sample::parse(text)),
                Stream::Stderr => match text.strip_prefix("progress ") {
                    Some(detail) => progress.set_detail(detail),
                    None => said.push(text.to_owned()),
                },
            })?;
    if !status.success() {
        bail!("'{line}' ended with {status:?}: {}", said.join("\n"));
    }
    samples
        .into_iter()
        .collect::<Result<_, _>>()
        .map_err(Into::into)
}

/// Has the same program measure on the host.
pub fn measure_on_host(program: &Path, arguments: &[String]) -> Result<Vec<Sample>> {
    let mut words = vec!["--host".to_owned()];
    words.extend_from_slice(arguments);
    said(program, &words)?
        .lines()
        .map(|line| Ok(Sample::parse(line)?))
        .collect()
}

/// The groups that it has.
pub fn groups(program: &Path) -> Result<Vec<String>> {
    Ok(said(program, &["--list".to_owned()])?
        .lines()
        .filter(|line| !line.starts_with(' '))
        .map(str::to_owned)
        .collect())
}

/// What the program says on the host.
fn said(program: &Path, arguments: &[String]) -> Result<String> {
    let output = Command::new(program)
        .args(arguments)
        .output()
        .with_context(|| format!("cannot start {}", program.display()))?;
    ensure!(
        output.status.success(),
        "{PROGRAM} {} failed: {}",
        arguments.join(" "),
        String::from_utf8_lossy(&output.stderr).trim_end()
    );
    Ok(String::from_utf8(output.stdout)?)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn program_that_fails_on_the_host_gives_no_samples() {
        let say =
            |script: &str| measure_on_host(Path::new("/bin/sh"), &["-c".into(), script.into()]);
        // The shell takes --host for an option that it does not know.
        let error = say("true").expect_err("failed").to_string();
        assert!(error.contains("cdm-bench --host -c true failed"), "{error}");
        assert!(measure_on_host(Path::new("/nonexistent"), &[]).is_err());
        assert!(
            measure_on_host(Path::new("/bin/true"), &[])
                .expect("ran")
                .is_empty()
        );
    }

    #[test]
    fn groups_are_the_lines_that_are_not_indented() {
        let dir = tempfile::tempdir().expect("a folder");
        let program = dir.path().join("list");
        crate::vm::testing::script(&program, "printf 'one\\n    what it is\\ntwo\\n'");
        assert_eq!(groups(&program).expect("listed"), ["one", "two"]);
    }
}
