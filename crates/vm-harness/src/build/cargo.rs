// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Builds programs of this workspace with cargo, and keeps them under a hash of
//! their sources.
//!
//! cargo's build folders are in the cache and belong to a toolbox, so that a fresh
//! clone finds every dependency compiled. Crates of the clone itself are compiled
//! anew: `ci/rustc` of each clone tells them apart, and finished programs go to a
//! folder that belongs to the clone.

use std::collections::{BTreeMap, BTreeSet};
use std::env;
use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, bail};
use serde::Deserialize;

use crate::cache::{self, KeyBuilder};
use crate::command::run_logged;
use crate::context::Context;

/// The one platform of guest and host.
const TARGET: &str = "x86_64-unknown-linux-gnu";

/// Room that a cold build of one set of programs takes.
const NEEDED_MIB: u64 = 1200;

/// A set of programs to build.
#[derive(Clone, Debug)]
pub struct Programs {
    /// Name in the cache and in logs.
    pub name: &'static str,
    /// The workspace package whose binaries are wanted.
    pub package: &'static str,
    /// Linked statically and stripped, for a guest that has no libraries.
    pub for_guest: bool,
    /// Inputs outside the package and the workspace packages that it depends
    /// on: paths below the repository.
    pub inputs: &'static [&'static str],
}

/// The target folder for builds of one flavour: `host` and `guest` for programs
/// that run there, `check` for the tests, and for `cdm` itself, which `ci/just`
/// builds there because the tests need its dependencies anyway.
fn target_dir(ctx: &Context, flavour: &str) -> PathBuf {
    ctx.cache.join("cargo").join(&ctx.toolbox).join(flavour)
}

/// Builds, and returns the folder that holds the programs and nothing else.
pub fn build(ctx: &Context, programs: &Programs) -> Result<PathBuf> {
    let mut key = KeyBuilder::new();
    key.text("toolbox", &ctx.toolbox)
        .text("package", programs.package);
    key.text("for guest", programs.for_guest.to_string());
    for name in ["Cargo.toml", "Cargo.lock"] {
        key.file(&ctx.repo, &ctx.repo.join(name))?;
    }
    for dir in source_dirs(&ctx.repo, programs.package)? {
        key.tree(&ctx.repo, &dir)?;
    }
    for input in programs.inputs {
        key.tree(&ctx.repo, &ctx.repo.join(input))?;
    }
    let what = format!("building {}", programs.name);
    cache::entry(ctx, programs.name, &key.finish(), &what, |folder| {
        cache::require_space(&ctx.cache, NEEDED_MIB, &what)?;
        for program in compile(ctx, programs, &what)? {
            let name = program
                .file_name()
                .context("cargo named a program without a name")?;
            let copied = fs::copy(&program, folder.join(name));
            copied.with_context(|| format!("cannot copy {}", program.display()))?;
        }
        Ok(())
    })
}

/// Lets cargo build the clone in the folders of one flavour.
pub fn set_environment(command: &mut Command, ctx: &Context, flavour: &str) {
    let shared = target_dir(ctx, flavour);
    let mut clone = KeyBuilder::new();
    clone.text("clone", ctx.repo.to_string_lossy());
    command
        .current_dir(&ctx.repo)
        .env(
            "CARGO_TARGET_DIR",
            shared.join("clones").join(clone.finish().as_str()),
        )
        .env("CARGO_BUILD_BUILD_DIR", shared)
        .env("RUSTC_WORKSPACE_WRAPPER", ctx.repo.join("ci/rustc"));
    // Whatever wraps the user's own compiler is not in the toolbox.
    for name in ["RUSTC", "RUSTC_WRAPPER", "RUSTFLAGS"] {
        command.env_remove(name);
    }
}

fn compile(ctx: &Context, programs: &Programs, what: &str) -> Result<Vec<PathBuf>> {
    let flavour = if programs.for_guest { "guest" } else { "host" };
    let mut command = Command::new("cargo");
    command
        .args([
            "build",
            "--release",
            "--locked",
            "--bins",
            "--package",
            programs.package,
        ])
        .arg("--message-format=json-render-diagnostics");
    set_environment(&mut command, ctx, flavour);
    if programs.for_guest {
        // With --target the flags do not reach build scripts and macros.
        command
            .args(["--target", TARGET])
            .env("CARGO_PROFILE_RELEASE_STRIP", "symbols")
            .env("CARGO_ENCODED_RUSTFLAGS", guest_flags());
    }
    let log = ctx.logs().join(format!("{}.log", programs.name));
    let task = ctx.progress.task(what, Some(&log));
    let mut executables = Vec::new();
    let mut offline = false;
    let ended = run_logged(&mut command, what, &log, |line| {
        if let Some(crate_name) = line.trim_start().strip_prefix("Compiling ") {
            task.set_detail(crate_name);
        }
        offline |= [
            "Could not resolve",
            "download of",
            "failed to download",
            "spurious network",
        ]
        .iter()
        .any(|sign| line.contains(sign));
        if let Some(artifact) = Artifact::parse(line) {
            task.advance();
            executables.extend(artifact.executable);
        }
    });
    match ended {
        Err(error) if offline => Err(error.context(
            "cargo could not fetch a crate; check the network connection and proxy settings, \
             and run this again",
        )),
        Err(error) => Err(error),
        Ok(()) if executables.is_empty() => bail!("package {} has no program", programs.package),
        Ok(()) => Ok(executables),
    }
}

/// Compiler flags for the guest's programs, in cargo's encoding.
fn guest_flags() -> String {
    // Where this user keeps crates must not show in the program.
    let cargo_home = env::var_os("CARGO_HOME")
        .map(PathBuf::from)
        .or_else(|| env::var_os("HOME").map(|home| Path::new(&home).join(".cargo")));
    let mut flags = vec!["-Ctarget-feature=+crt-static".to_owned()];
    if let Some(home) = cargo_home {
        flags.push(format!("--remap-path-prefix={}=/cargo", home.display()));
    }
    flags.join("\x1f")
}

/// The part of cargo's message about a finished artifact that is of interest.
#[derive(Debug, Deserialize)]
struct Artifact {
    reason: String,
    executable: Option<PathBuf>,
}

impl Artifact {
    fn parse(line: &str) -> Option<Self> {
        if !line.starts_with('{') {
            return None;
        }
        let artifact: Self = serde_json::from_str(line).ok()?;
        (artifact.reason == "compiler-artifact").then_some(artifact)
    }
}

#[derive(Debug, Deserialize)]
struct Manifest {
    #[serde(default)]
    workspace: Option<Workspace>,
    #[serde(default)]
    package: Option<Package>,
    #[serde(default)]
    dependencies: BTreeMap<String, toml::Value>,
    #[serde(default, rename = "build-dependencies")]
    build_dependencies: BTreeMap<String, toml::Value>,
}

#[derive(Debug, Deserialize)]
struct Workspace {
    members: Vec<String>,
}

#[derive(Debug, Deserialize)]
struct Package {
    name: String,
}

impl Manifest {
    fn read(path: &Path) -> Result<Self> {
        let text =
            fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
        toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))
    }
}

/// The folders of a workspace package and of every workspace package that it
/// depends on.
fn source_dirs(repo: &Path, package: &str) -> Result<BTreeSet<PathBuf>> {
    let workspace = Manifest::read(&repo.join("Cargo.toml"))?
        .workspace
        .with_context(|| format!("{} is no workspace", repo.display()))?;
    let mut members = BTreeMap::new();
    for member in workspace.members {
        let dir = repo.join(member);
        let manifest = Manifest::read(&dir.join("Cargo.toml"))?;
        if let Some(found) = &manifest.package {
            members.insert(found.name.clone(), (dir, manifest));
        }
    }
    let mut dirs = BTreeSet::new();
    let mut wanted = vec![package];
    while let Some(name) = wanted.pop() {
        match members.get(name) {
            Some((dir, manifest)) if dirs.insert(dir.clone()) => {
                let all = [&manifest.dependencies, &manifest.build_dependencies];
                wanted.extend(all.into_iter().flat_map(BTreeMap::keys).map(String::as_str));
            }
            Some(_) => {}
            None if name == package => bail!("the workspace has no package {package}"),
            None => {}
        }
    }
    Ok(dirs)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn repo() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .expect("two parents")
    }

    #[test]
    fn sources_of_a_package_include_those_of_the_packages_it_depends_on() {
        let dirs = source_dirs(repo(), "cdm-vm-harness").expect("a member");
        assert!(dirs.contains(&repo().join("crates/vm-harness")));
        assert!(dirs.contains(&repo().join("crates/agent-protocol")));
        assert!(
            !dirs.contains(&repo().join("crates/guest-driver")),
            "{dirs:?}"
        );
    }

    #[test]
    fn an_unknown_package_is_named() {
        let error = source_dirs(repo(), "cdm-nothing").expect_err("no such package");
        assert!(error.to_string().contains("cdm-nothing"));
    }

    #[test]
    fn the_bootstrap_hashes_every_source_of_cdm() {
        // ci/just decides by a hash of these folders whether cdm must be built.
        let script = fs::read_to_string(repo().join("ci/just")).expect("readable");
        let line = script
            .lines()
            .find_map(|line| line.strip_prefix("cdm_sources='"));
        let listed: Vec<&str> = line
            .expect("ci/just lists the sources")
            .trim_end_matches('\'')
            .split(' ')
            .collect();
        for dir in source_dirs(repo(), "cdm-vm-harness").expect("a member") {
            let name = dir
                .strip_prefix(repo())
                .expect("below")
                .to_str()
                .expect("text");
            assert!(listed.contains(&name), "ci/just does not hash {name}");
        }
    }

    #[test]
    fn only_finished_artifacts_are_taken_from_cargos_messages() {
        let line = r#"{"reason":"compiler-artifact","executable":"/t/cdm","fresh":true}"#;
        let artifact = Artifact::parse(line).expect("an artifact");
        assert_eq!(artifact.executable, Some("/t/cdm".into()));
        assert!(Artifact::parse(r#"{"reason":"build-finished","success":true}"#).is_none());
        assert!(Artifact::parse("   Compiling cdm v0.1.0").is_none());
    }
}
