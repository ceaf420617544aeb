// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What this machine has and lacks, each lack with the command that mends it.
//!
//! By the time this runs, `ci/just` has made the toolbox: what it could not do
//! without, it has told already.

mod machine;
mod tools;

use std::process::ExitCode;

use anyhow::Result;
use clap::Args;
use serde::Serialize;

use crate::context::Context;

pub(crate) use self::machine::available_mib;

/// Arguments of `cdm doctor`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just doctor          what is there, what is not, and what to do about it
  just doctor --json   the same for programs

Exits with 1 if something is missing that the project cannot do without.")]
pub struct DoctorArgs {
    /// Print one JSON object: version, and a list of checks with name, status, found and mend
    #[arg(long)]
    json: bool,
}

/// How a check came out.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Serialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// As it should be.
    Ok,
    /// Works, though something would be better.
    Note,
    /// The project does not work without it.
    Lack,
}

/// One thing that was looked at.
#[derive(Clone, Debug, PartialEq, Eq, Serialize)]
pub struct Check {
    /// What was looked at.
    pub name: String,
    /// How it came out.
    pub status: Status,
    /// What was found.
    pub found: String,
    /// What to do about it; only where there is something to do.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub mend: Option<String>,
}

impl Check {
    fn ok(name: impl Into<String>, found: impl Into<String>) -> Self {
        Self {
            name: name.into(),
            status: Status::Ok,
            found: found.into(),
            mend: None,
        }
    }

    fn note(name: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            status: Status::Note,
            mend: Some(mend.into()),
            ..Self::ok(name, found)
        }
    }

    fn lack(name: impl Into<String>, found: impl Into<String>, mend: impl Into<String>) -> Self {
        Self {
            status: Status::Lack,
            mend: Some(mend.into()),
            ..Self::ok(name, found)
        }
    }
}

#[derive(Debug, Serialize)]
struct Report {
    version: u32,
    checks: Vec<Check>,
}

/// `cdm doctor`.
pub fn run(ctx: &Context, args: &DoctorArgs) -> Result<ExitCode> {
    let mut checks = machine::checks(ctx);
    checks.extend(tools::checks());
    let healthy = checks.iter().all(|check| check.status != Status::Lack);
    if args.json {
        println!(
            "{}",
            serde_json::to_string_pretty(&Report { version: 1, checks })?
        );
    } else {
        print!("{}", table(&checks));
    }
    Ok(if healthy {
        ExitCode::SUCCESS
    } else {
        ExitCode::FAILURE
    })
}

/// The checks for people: a line each, and what to do below what needs it.
fn table(checks: &[Check]) -> String {
    let width = checks
        .iter()
        .map(|check| check.name.len())
        .max()
        .unwrap_or(0);
    let mut text = String::new();
    for Check {
        name,
        status,
        found,
        mend,
    } in checks
    {
        let mark = match status {
            Status::Ok => "ok",
            Status::Note => "note",
            Status::Lack => "LACK",
        };
        text += &format!("{mark:<4}  {name:<width$}  {found}\n");
        if let Some(mend) = mend {
            text += &format!("      {:<width$}  -> {mend}\n", "");
        }
    }
    let lacks = checks.iter().filter(|c| c.status == Status::Lack).count();
    let notes = checks.iter().filter(|c| c.status == Status::Note).count();
    text += &match (lacks, notes) {
        (0, 0) => "Everything is there.\n".to_owned(),
        (0, notes) => format!("Everything needed is there; {notes} could be better.\n"),
        (lacks, _) => format!("{lacks} missing; see above for what to do.\n"),
    };
    text
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_lack_is_shown_with_what_mends_it() {
        let text = table(&[
            Check::ok("disk", "plenty"),
            Check::lack("make", "not found", "apt-get install make"),
        ]);
        assert!(
            text.contains("LACK  make  not found\n            -> apt-get install make\n"),
            "{text}"
        );
        assert!(
            text.ends_with("1 missing; see above for what to do.\n"),
            "{text}"
        );
    }

    #[test]
    fn the_json_form_has_a_version_and_the_four_fields() {
        let checks = vec![Check::note("kvm", "none", "nothing")];
        let json = serde_json::to_value(Report { version: 1, checks }).expect("json");
        let expected = serde_json::json!({
            "version": 1,
            "checks": [{"name": "kvm", "status": "note", "found": "none", "mend": "nothing"}],
        });
        assert_eq!(json, expected);
    }
}
