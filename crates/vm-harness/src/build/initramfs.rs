// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guest's first file system, put together from
//! `images/initramfs/manifest.toml`.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail, ensure};
use serde::Deserialize;

use super::cpio::{self, Entry, Node};
use super::{Kernel, guest_tools, module};
use crate::cache::{self, KeyBuilder};
use crate::context::Context;

/// What the manifest says.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Manifest {
    /// Folders with mode 755. Parents come before children.
    directories: Vec<String>,
    /// Devices that the kernel opens before it mounts anything.
    #[serde(default)]
    device: Vec<Device>,
    #[serde(default)]
    file: Vec<FileRow>,
    #[serde(default)]
    link: Vec<Link>,
    busybox: Busybox,
    #[serde(default)]
    tools: Option<Tools>,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Device {
    path: String,
    major: u32,
    minor: u32,
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct FileRow {
    path: String,
    from: String,
    #[serde(default = "readable")]
    mode: u32,
}

fn readable() -> u32 {
    0o644
}

#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Link {
    path: String,
    to: String,
}

/// The busybox program and the commands that it plays.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Busybox {
    path: String,
    applets: Vec<String>,
}

/// Where every program of `guest-tools` goes.
#[derive(Debug, Deserialize)]
#[serde(deny_unknown_fields)]
struct Tools {
    directory: String,
}

/// What a `from` in the manifest may stand for.
struct Origins<'a> {
    repo: &'a Path,
    toolbox: &'a Path,
    tools: &'a Path,
    module: &'a Path,
}

impl Origins<'_> {
    fn resolve(&self, from: &str) -> Result<PathBuf> {
        match from.split_once(':') {
            Some(("repo", path)) => Ok(self.repo.join(path)),
            Some(("toolbox", path)) => Ok(self.toolbox.join(path.trim_start_matches('/'))),
            Some(("tools", name)) => Ok(self.tools.join(name)),
            None if from == "module" => Ok(self.module.to_owned()),
            _ => {
                bail!("'{from}' is no origin; write repo:PATH, toolbox:PATH, tools:NAME or module")
            }
        }
    }
}

/// Builds the initramfs for a kernel, and returns the archive's path.
///
/// It is not compressed: unpacking costs the guest more time without KVM than
/// reading the larger file costs the host.
pub fn initramfs(ctx: &Context, kernel: &Kernel) -> Result<PathBuf> {
    let path = ctx.repo.join("images/initramfs/manifest.toml");
    let text =
        fs::read_to_string(&path).with_context(|| format!("cannot read {}", path.display()))?;
    let manifest: Manifest =
        toml::from_str(&text).with_context(|| format!("cannot understand {}", path.display()))?;
    let (tools, module) = (guest_tools(ctx)?, module(ctx, kernel)?);
    let origins = Origins {
        repo: &ctx.repo,
        toolbox: Path::new("/"),
        tools: &tools,
        module: &module,
    };
    let entries = entries(&manifest, &origins)
        .with_context(|| format!("cannot carry out {}", path.display()))?;

    // Results of other builds are named by their keys already: their places in the cache
    // say it all. What comes from the repository counts by its contents.
    let mut key = KeyBuilder::new();
    key.text("toolbox", &ctx.toolbox).text("manifest", &text);
    for entry in &entries {
        if let Node::File(source) = &entry.node {
            if source.starts_with(&ctx.repo) && !source.starts_with(&ctx.cache) {
                key.file(&ctx.repo, source)?;
            } else {
                let place = source.strip_prefix(&ctx.cache).unwrap_or(source);
                key.text(&entry.path, place.to_string_lossy());
            }
        }
    }
    let folder = cache::entry(
        ctx,
        "initramfs",
        &key.finish(),
        "packing the initramfs",
        |folder| cpio::write_file(&entries, &folder.join("initramfs.cpio")),
    )?;
    Ok(folder.join("initramfs.cpio"))
}

/// All entries: folders first, then the rest, each by name.
fn entries(manifest: &Manifest, origins: &Origins<'_>) -> Result<Vec<Entry>> {
    let mut directories = BTreeMap::new();
    let mut others = BTreeMap::new();
    for path in &manifest.directories {
        add(&mut directories, path, 0o755, Node::Directory)?;
    }
    for device in &manifest.device {
        let node = Node::CharDevice {
            major: device.major,
            minor: device.minor,
        };
        add(&mut others, &device.path, 0o600, node)?;
    }
    for row in &manifest.file {
        add(
            &mut others,
            &row.path,
            row.mode,
            Node::File(origins.resolve(&row.from)?),
        )?;
    }
    if let Some(tools) = &manifest.tools {
        for program in cache::files_below(origins.tools)? {
            let name = program
                .file_name()
                .unwrap_or_default()
                .to_string_lossy()
                .into_owned();
            add(
                &mut others,
                &format!("{}/{name}", tools.directory),
                0o755,
                Node::File(program),
            )?;
        }
    }
    let links = manifest
        .link
        .iter()
        .map(|link| (link.path.clone(), link.to.clone()));
    let folder = manifest
        .busybox
        .path
        .rsplit_once('/')
        .map_or("", |(folder, _)| folder);
    let applets = manifest.busybox.applets.iter().map(|name| {
        (
            format!("{folder}/{name}"),
            format!("/{}", manifest.busybox.path),
        )
    });
    for (path, target) in links.chain(applets) {
        add(&mut others, &path, 0o777, Node::Symlink(target))?;
    }
    for path in directories.keys().chain(others.keys()) {
        if let Some((parent, _)) = path.rsplit_once('/') {
            ensure!(
                directories.contains_key(parent),
                "{path} lies in no listed directory"
            );
        }
    }
    Ok(directories
        .into_values()
        .chain(others.into_values())
        .collect())
}

fn add(all: &mut BTreeMap<String, Entry>, path: &str, mode: u32, node: Node) -> Result<()> {
    ensure!(
        !path.starts_with('/') && !path.ends_with('/') && !path.is_empty(),
        "'{path}' should be a path without a slash at either end"
    );
    let entry = Entry {
        path: path.to_owned(),
        mode,
        node,
    };
    ensure!(
        all.insert(path.to_owned(), entry).is_none(),
        "{path} appears twice"
    );
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    const SMALL: &str = r#"
        directories = ["bin", "lib", "lib/modules"]
        [[device]]
        path = "console"
        major = 5
        minor = 1
        [[file]]
        path = "lib/modules/cdm.ko"
        from = "module"
        [[file]]
        path = "bin/busybox"
        from = "toolbox:/usr/bin/busybox"
        mode = 0o755
        [[link]]
        path = "init"
        to = "bin/cdm-init"
        [busybox]
        path = "bin/busybox"
        applets = ["sh", "ls"]
    "#;

    fn origins() -> Origins<'static> {
        Origins {
            repo: Path::new("/repo"),
            toolbox: Path::new("/"),
            tools: Path::new("/nothing"),
            module: Path::new("/cache/cdm.ko"),
        }
    }

    fn parse(text: &str) -> Result<Vec<Entry>> {
        entries(&toml::from_str::<Manifest>(text)?, &origins())
    }

    #[test]
    fn folders_come_first_and_everything_is_in_order() {
        let entries = parse(SMALL).expect("well formed");
        let paths: Vec<&str> = entries.iter().map(|entry| entry.path.as_str()).collect();
        let expected = [
            "bin",
            "lib",
            "lib/modules",
            "bin/busybox",
            "bin/ls",
            "bin/sh",
            "console",
            "init",
            "lib/modules/cdm.ko",
        ];
        assert_eq!(paths, expected);
    }

    #[test]
    fn origins_lead_to_files_and_applets_to_busybox() {
        let entries = parse(SMALL).expect("well formed");
        let find = |path: &str| {
            entries
                .iter()
                .find(|entry| entry.path == path)
                .expect("listed")
                .clone()
        };
        assert_eq!(
            find("lib/modules/cdm.ko").node,
            Node::File("/cache/cdm.ko".into())
        );
        assert_eq!(
            find("bin/busybox").node,
            Node::File("/usr/bin/busybox".into())
        );
        assert_eq!(find("bin/busybox").mode, 0o755);
        assert_eq!(find("bin/sh").node, Node::Symlink("/bin/busybox".into()));
    }

    #[test]
    fn a_path_in_a_folder_that_is_not_listed_is_refused() {
        let text = SMALL.replace("\"lib/modules\"]", "]");
        let error = parse(&text).expect_err("no such folder").to_string();
        assert!(error.contains("lib/modules/cdm.ko"), "{error}");
    }

    #[test]
    fn an_unknown_origin_and_an_unknown_field_are_refused() {
        let error = parse(&SMALL.replace("\"module\"", "\"modul\"")).expect_err("no origin");
        assert!(error.to_string().contains("'modul'"), "{error}");
        assert!(parse(&SMALL.replace("mode =", "mod =")).is_err());
    }

    #[test]
    fn a_path_given_twice_is_refused() {
        let text = SMALL.replace("[\"sh\", \"ls\"]", "[\"sh\", \"sh\"]");
        assert!(
            parse(&text)
                .expect_err("twice")
                .to_string()
                .contains("bin/sh appears twice")
        );
    }

    fn repo() -> &'static Path {
        Path::new(env!("CARGO_MANIFEST_DIR"))
            .ancestors()
            .nth(2)
            .expect("crates/vm-harness has two parents")
    }

    fn manifest_of_the_repository() -> Manifest {
        let path = repo().join("images/initramfs/manifest.toml");
        let text = fs::read_to_string(path).expect("readable");
        toml::from_str(&text).expect("well formed")
    }

    #[test]
    fn the_files_that_the_manifest_takes_from_the_repository_are_there() {
        let mut manifest = manifest_of_the_repository();
        manifest.tools = None;
        let origins = Origins {
            repo: repo(),
            ..origins()
        };
        for entry in entries(&manifest, &origins).expect("consistent") {
            if let Node::File(source) = entry.node
                && source.starts_with(repo())
            {
                assert!(source.is_file(), "{} is missing", source.display());
            }
        }
    }

    #[test]
    fn the_toolboxs_busybox_plays_every_applet_of_the_manifest() {
        let list = std::process::Command::new("busybox")
            .arg("--list")
            .output()
            .expect("busybox is part of the toolbox");
        let list = String::from_utf8(list.stdout).expect("text");
        for applet in &manifest_of_the_repository().busybox.applets {
            assert!(
                list.lines().any(|name| name == applet),
                "no applet {applet}"
            );
        }
    }
}
