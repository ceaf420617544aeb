// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm cp`: files and folders into a guest that runs, and out of it.

use std::ffi::OsStr;
use std::fs::{self, File, Permissions};
use std::io::{self, Write};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitCode, Stdio};
use std::str::FromStr;

use anyhow::{Context as _, Result, bail, ensure};
use clap::Args;

use crate::context::Context;
use crate::vm::visit::{Visit, Which};

/// Takes a file from standard input. It takes the place of another one at once, so that a program
/// that runs can be replaced, and nobody reads half a file.
const TAKE_FILE: &str = r#"
[ ! -d "$TO" ] || TO=$TO/$NAME
cat > "$TO.cdm-cp" && chmod "$MODE" "$TO.cdm-cp" && mv "$TO.cdm-cp" "$TO" && exit
rm -f "$TO.cdm-cp"
exit 1
"#;
/// Takes a folder, as an archive.
const TAKE_FOLDER: &str = r#"
[ ! -d "$TO" ] || TO=$TO/$NAME
mkdir -p "$TO" && exec tar -x -o -C "$TO" -f -
"#;
/// Tells what there is: the mode of a file, or of a folder with a slash behind it.
const TELL: &str = r#"
if [ -d "$FROM" ]; then stat -c %a/ "$FROM"; else stat -L -c %a "$FROM"; fi
"#;

/// Arguments of `cdm cp`.
#[derive(Debug, Args)]
#[command(after_help = "\
A path that begins with a colon is one of the guest; a relative one begins at /root there.

Examples:
  just cp test.sh :
  just cp ./build/driver.ko :/lib/modules/driver.ko
  just cp :/sys/kernel/debug/cdm ./debugfs")]
pub struct CpArgs {
    #[command(flatten)]
    which: Which,

    /// What to copy: a file or a folder, HOST or :GUEST
    #[arg(value_name = "FROM", value_hint = clap::ValueHint::AnyPath)]
    from: Place,

    /// Where to: a new name, or a folder to put it into, :GUEST or HOST
    #[arg(value_name = "TO", value_hint = clap::ValueHint::AnyPath)]
    to: Place,
}

#[derive(Clone, Debug, PartialEq, Eq)]
enum Place {
    Host(PathBuf),
    Guest(String),
}

impl FromStr for Place {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        match text.strip_prefix(':') {
            Some("") => Ok(Self::Guest("/root".to_owned())),
            Some(path) if path.starts_with('/') => Ok(Self::Guest(path.to_owned())),
            Some(path) => Ok(Self::Guest(format!("/root/{path}"))),
            None if text.is_empty() => Err("an empty name".to_owned()),
            None => Ok(Self::Host(text.into())),
        }
    }
}

/// `cdm cp`.
pub fn run(ctx: &Context, args: &CpArgs) -> Result<ExitCode> {
    match (&args.from, &args.to) {
        (Place::Host(from), Place::Guest(to)) => {
            let visit = Visit::to(&args.which)?;
            let _task = ctx.progress.task(copying(from), None);
            into_guest(&visit, from, to)?;
        }
        (Place::Guest(from), Place::Host(to)) => {
            let visit = Visit::to(&args.which)?;
            let _task = ctx.progress.task(copying(Path::new(from)), None);
            out_of_guest(&visit, from, to)?;
        }
        _ => bail!("one of the two paths must be the guest's, which begins with a colon"),
    }
    Ok(ExitCode::SUCCESS)
}

fn copying(what: &Path) -> String {
    format!("copying {}", what.display())
}

/// Copies a file or folder of the host.
pub fn into_guest(visit: &Visit, from: &Path, to: &str) -> Result<()> {
    let cannot = || format!("cannot copy {} to the guest's {to}", from.display());
    let meta = fs::metadata(from).with_context(cannot)?;
    // The name of `.` is that of the folder that it stands for.
    let whole = from.canonicalize().with_context(cannot)?;
    let name = match whole.file_name() {
        Some(name) => name.to_string_lossy().into_owned(),
        None => bail!("{}: it has no name", cannot()),
    };
    let mode = format!("{:o}", meta.permissions().mode() & 0o7777);
    let variables = [("TO", to), ("NAME", &*name), ("MODE", &*mode)];
    let (status, errors) = if meta.is_dir() {
        let mut tar = Command::new("tar")
            .args([OsStr::new("-C"), from.as_os_str()])
            .args(["-c", "-f", "-", "."])
            .stdout(Stdio::piped())
            .spawn()
            .context("tar is part of the toolbox; 'ci/just doctor' tells what is missing")?;
        let archive = tar.stdout.take().context("its output is piped")?;
        let ended = visit.run(TAKE_FOLDER, &variables, archive, &mut io::sink());
        let packed = tar.wait()?;
        let ended = ended.with_context(cannot)?;
        // A guest that takes no more ends tar as well: its own reason comes first.
        ensure!(
            packed.success() || !ended.0.success(),
            "{}: tar ended with {packed}",
            cannot()
        );
        ended
    } else {
        let file = File::open(from).with_context(cannot)?;
        visit
            .run(TAKE_FILE, &variables, file, &mut io::sink())
            .with_context(cannot)?
    };
    ensure!(status.success(), "{}: {errors}", cannot());
    Ok(())
}

/// Copies a file or folder of the guest.
pub fn out_of_guest(visit: &Visit, from: &str, to: &Path) -> Result<()> {
    let cannot = || format!("cannot copy the guest's {from} to {}", to.display());
    let variables = [("FROM", from)];
    let mut told = Vec::new();
    let (status, errors) = visit.run(TELL, &variables, io::empty(), &mut told)?;
    ensure!(status.success(), "{}: {errors}", cannot());
    let told = String::from_utf8_lossy(&told);
    let to = match to.is_dir() {
        true => to.join(Path::new(from).file_name().with_context(cannot)?),
        false => to.to_owned(),
    };
    match told.trim_end().strip_suffix('/') {
        Some(_) => folder_out(visit, from, &to),
        None => file_out(visit, from, &to, told.trim_end()),
    }
    .with_context(cannot)
}

fn file_out(visit: &Visit, from: &str, to: &Path, mode: &str) -> Result<()> {
    let mode = u32::from_str_radix(mode, 8).with_context(|| format!("'{mode}' is no mode"))?;
    let parent = match to.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let mut file = tempfile::NamedTempFile::new_in(parent)?;
    let (status, errors) = visit.run(
        "exec cat \"$FROM\"",
        &[("FROM", from)],
        io::empty(),
        &mut file,
    )?;
    ensure!(status.success(), "{errors}");
    file.flush()?;
    fs::set_permissions(file.path(), Permissions::from_mode(mode))?;
    file.persist(to)?;
    Ok(())
}

fn folder_out(visit: &Visit, from: &str, to: &Path) -> Result<()> {
    fs::create_dir_all(to)?;
    let mut tar = Command::new("tar")
        .args([OsStr::new("-C"), to.as_os_str()])
        .args(["-x", "--no-same-owner", "-f", "-"])
        .stdin(Stdio::piped())
        .spawn()
        .context("tar is part of the toolbox; 'ci/just doctor' tells what is missing")?;
    let mut archive = tar.stdin.take().context("its input is piped")?;
    let line = "exec tar -c -C \"$FROM\" -f - .";
    let ended = visit.run(line, &[("FROM", from)], io::empty(), &mut archive);
    drop(archive);
    let unpacked = tar.wait()?;
    let (status, errors) = ended?;
    ensure!(status.success(), "{errors}");
    ensure!(unpacked.success(), "tar ended with {unpacked}");
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn colon_makes_a_path_one_of_the_guest_and_home_is_where_it_begins() {
        let guest = |path: &str| Ok(Place::Guest(path.to_owned()));
        assert_eq!(":".parse(), guest("/root"));
        assert_eq!(":a/b".parse(), guest("/root/a/b"));
        assert_eq!(":/a".parse(), guest("/a"));
        assert_eq!("a:b".parse(), Ok(Place::Host("a:b".into())));
        assert!("".parse::<Place>().is_err());
    }

    #[test]
    fn two_paths_of_one_side_are_refused() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let ctx = Context::for_test(dir.path());
        for (from, to) in [("a", "b"), (":a", ":b")] {
            let args = CpArgs {
                which: Which::default(),
                from: from.parse().expect("a path"),
                to: to.parse().expect("a path"),
            };
            let error = run(&ctx, &args).expect_err("refused").to_string();
            assert!(error.contains("colon"), "{error}");
        }
    }
}
