// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Image layouts, written by umoci.

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use anyhow::{Context as _, Result, ensure};
use serde::Deserialize;

use super::contents;
use crate::cache::{self, KeyBuilder};
use crate::command::run_logged;
use crate::context::Context;
use crate::git::Commit;

/// What the image is called in its layout.
pub const TAG: &str = "cdm";
/// Names what is done here; a new number makes the lower layers anew.
const RECIPE: &str = "1";
/// Of the toolbox's tree, what is in the image: what `ci/just` enters it with.
const OF_TOOLBOX: [&str; 2] = ["usr", "etc"];
/// Room for the lower layers.
const NEEDED_MIB: u64 = 2000;

/// A layout with one image.
#[derive(Clone, Debug)]
pub struct Layout(PathBuf);

/// A layer as an engine fetches it.
#[derive(Clone, Debug, Deserialize)]
pub struct Layer {
    /// Names it by its contents.
    pub digest: String,
    /// Its compressed size.
    #[serde(rename = "size")]
    pub bytes: u64,
}

#[derive(Debug, Deserialize)]
struct Index {
    manifests: Vec<Layer>,
}

#[derive(Debug, Deserialize)]
struct Manifest {
    layers: Vec<Layer>,
}

impl Layout {
    /// The layout in a folder.
    pub fn at(folder: &Path) -> Self {
        Self(folder.to_owned())
    }

    /// The image, as umoci wants it named.
    fn image(&self) -> String {
        format!("{}:{TAG}", self.0.display())
    }

    fn blob<T: for<'a> Deserialize<'a>>(&self, digest: &str) -> Result<T> {
        read(&self.0.join("blobs").join(digest.replace(':', "/")))
    }

    /// The image's layers, the lowest first.
    fn layers(&self) -> Result<Vec<Layer>> {
        let index: Index = read(&self.0.join("index.json"))?;
        let [image] = &index.manifests[..] else {
            anyhow::bail!("{} does not have one image", self.0.display());
        };
        Ok(self.blob::<Manifest>(&image.digest)?.layers)
    }

    /// Adds a layer.
    fn insert(&self, ctx: &Context, source: &Path, target: &str) -> Result<()> {
        let mut command = umoci("insert", &["--image", &self.image()]);
        command.arg(source).arg(target);
        run(ctx, &mut command)
    }

    /// Unpacks the image: the folder gets a bundle, with the file system in `rootfs`.
    pub fn unpack(&self, ctx: &Context, bundle: &Path) -> Result<()> {
        let mut command = umoci("unpack", &["--image", &self.image()]);
        run(ctx, command.arg(bundle))
    }
}

fn read<T: for<'a> Deserialize<'a>>(path: &Path) -> Result<T> {
    let text = fs::read(path).with_context(|| format!("cannot read {}", path.display()))?;
    serde_json::from_slice(&text).with_context(|| format!("cannot understand {}", path.display()))
}

/// umoci, as a user who need not be root.
fn umoci(what: &str, arguments: &[&str]) -> Command {
    let mut command = Command::new("umoci");
    command.arg(what);
    if !nix::unistd::geteuid().is_root() && ["insert", "unpack"].contains(&what) {
        command.arg("--rootless");
    }
    command.args(arguments);
    command
}

fn run(ctx: &Context, command: &mut Command) -> Result<()> {
    run_logged(command, "umoci", &ctx.logs().join("umoci.log"), |_| {})
}

/// The lower layers, which only a change of `images/toolbox` changes, as a layout in the cache.
pub fn of_toolbox(ctx: &Context) -> Result<Layout> {
    let tree = ctx.cache.join("toolbox").join(&ctx.toolbox);
    ensure!(
        tree.is_dir(),
        "the toolbox of this machine is an image of podman's or docker's, and 'just image' needs one \
         that is a folder: install mmdebstrap, then remove the image cdm-toolbox:{}",
        ctx.toolbox
    );
    let mut key = KeyBuilder::new();
    key.text("toolbox", &ctx.toolbox).text("recipe", RECIPE);
    let what = "packing the toolbox for the image";
    let folder = cache::entry(ctx, "image-toolbox", &key.finish(), what, |folder| {
        cache::require_space(&ctx.cache, NEEDED_MIB, what)?;
        let _task = ctx.progress.task(what, Some(&ctx.logs().join("umoci.log")));
        // umoci makes the layout's folder itself.
        fs::remove_dir(folder)?;
        let layout = Layout::at(folder);
        let path = folder.display().to_string();
        run(ctx, &mut umoci("init", &["--layout", &path]))?;
        run(ctx, &mut umoci("new", &["--image", &layout.image()]))?;
        for part in OF_TOOLBOX {
            layout.insert(ctx, &tree.join(part), &format!("/{part}"))?;
        }
        Ok(())
    })?;
    Ok(Layout::at(&folder))
}

/// Writes the whole image into an empty folder: the lower layers, and `stage` on top. Returns its
/// layers.
pub fn add_project(
    ctx: &Context,
    toolbox: &Layout,
    stage: &Path,
    commit: &Commit,
    folder: &Path,
) -> Result<Vec<Layer>> {
    let what = "packing the project for the image";
    let _task = ctx.progress.task(what, Some(&ctx.logs().join("umoci.log")));
    copy_layout(&toolbox.0, folder)?;
    let layout = Layout::at(folder);
    layout.insert(ctx, stage, "/")?;
    let mut config = umoci("config", &["--image", &layout.image()]);
    for (option, value) in [
        ("entrypoint", format!("/{}/ci/just", contents::REPO)),
        ("workingdir", format!("/{}", contents::REPO)),
        ("env", "PATH=/usr/bin:/usr/sbin".to_owned()),
        ("env", "HOME=/tmp".to_owned()),
        ("env", format!("CDM_CACHE=/{}", contents::CACHE)),
        ("env", format!("CDM_TOOLBOX={}", ctx.toolbox)),
        (
            "label",
            format!("org.opencontainers.image.revision={commit}"),
        ),
        ("label", "org.opencontainers.image.title=cdm".to_owned()),
    ] {
        config.arg(format!("--config.{option}")).arg(value);
    }
    run(ctx, &mut config)?;
    let path = folder.display().to_string();
    // Each step left the manifest of the last one.
    run(ctx, &mut umoci("gc", &["--layout", &path]))?;
    layout.layers()
}

/// Copies a layout; its blobs, which never change, by hard links where that is possible.
fn copy_layout(from: &Path, to: &Path) -> Result<()> {
    for file in cache::files_below(from)? {
        let place = file.strip_prefix(from)?;
        let copy = to.join(place);
        if let Some(folder) = copy.parent() {
            cache::create_folder(folder)?;
        }
        if !place.starts_with("blobs") || fs::hard_link(&file, &copy).is_err() {
            fs::copy(&file, &copy).with_context(|| format!("cannot write {}", copy.display()))?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn layers_are_those_of_the_one_image() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let blobs = dir.path().join("blobs/sha256");
        fs::create_dir_all(&blobs).expect("made");
        let write = |path: PathBuf, text: &str| fs::write(path, text).expect("written");
        let one = r#"{"digest": "sha256:aa", "size": 9}"#;
        write(
            dir.path().join("index.json"),
            &format!(r#"{{"manifests": [{one}]}}"#),
        );
        write(
            blobs.join("aa"),
            r#"{"layers": [{"digest": "sha256:bb", "size": 5}]}"#,
        );
        let layout = Layout::at(dir.path());
        let layers = layout.layers().expect("an image");
        assert_eq!((layers.len(), layers[0].bytes), (1, 5));

        write(
            dir.path().join("index.json"),
            &format!(r#"{{"manifests": [{one}, {one}]}}"#),
        );
        assert!(layout.layers().is_err(), "two images");
    }

    #[test]
    fn copy_of_a_layout_shares_the_blobs_and_not_the_index() {
        use std::os::unix::fs::MetadataExt;
        let dir = tempfile::tempdir().expect("temporary folder");
        let (from, to) = (dir.path().join("from"), dir.path().join("to"));
        fs::create_dir_all(from.join("blobs/sha256")).expect("made");
        for file in ["blobs/sha256/aa", "index.json"] {
            fs::write(from.join(file), "x").expect("written");
        }
        copy_layout(&from, &to).expect("copied");
        let links = |file: &str| fs::metadata(to.join(file)).expect("there").nlink();
        assert_eq!((links("blobs/sha256/aa"), links("index.json")), (2, 1));
    }
}
