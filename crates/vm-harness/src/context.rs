// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Where the repository and the cache are, and how to speak to the user.

use std::env;
use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result, bail};

use crate::progress::Progress;

/// What every part of the tool needs to know of its surroundings.
#[derive(Clone, Debug)]
pub struct Context {
    /// The repository's top folder.
    pub repo: PathBuf,
    /// The cache folder; exists, and is writable.
    pub cache: PathBuf,
    /// Names the toolbox that this process runs in: everything that its tools
    /// build is keyed by it.
    pub toolbox: String,
    /// Progress on stderr.
    pub progress: Progress,
}

impl Context {
    /// Reads what `ci/just` left in the environment: `CDM_REPO`, `CDM_CACHE`
    /// and `CDM_TOOLBOX`.
    pub fn from_environment() -> Result<Self> {
        let repo = match env::var_os("CDM_REPO") {
            Some(repo) => PathBuf::from(repo),
            None => find_repo(&env::current_dir().context("cannot tell the current folder")?)?,
        };
        let toolbox = env::var("CDM_TOOLBOX")
            .ok()
            .filter(|key| !key.is_empty())
            .context(
                "this runs inside the project's toolbox only; start it as 'ci/just --cdm COMMAND'",
            )?;
        let cache = env::var_os("CDM_CACHE").map(PathBuf::from).context(
            "CDM_CACHE is not set; start this as 'ci/just --cdm COMMAND', which sets it",
        )?;
        fs::create_dir_all(&cache).with_context(|| {
            format!(
                "cannot create the cache folder {}; set CDM_CACHE to a folder you can write to",
                cache.display()
            )
        })?;
        Ok(Self {
            repo,
            cache,
            toolbox,
            progress: Progress::new(),
        })
    }

    /// A silent context for a test, whose repository and cache are one folder.
    #[cfg(test)]
    pub fn for_test(dir: &Path) -> Self {
        Self {
            repo: dir.into(),
            cache: dir.into(),
            toolbox: "test".into(),
            progress: Progress::silent(),
        }
    }

    /// The folder for logs of builds; a log keeps the name of what it tells of.
    pub fn logs(&self) -> PathBuf {
        self.cache.join("logs")
    }
}

/// The first folder from `start` upwards that holds this workspace.
fn find_repo(start: &Path) -> Result<PathBuf> {
    for dir in start.ancestors() {
        if dir.join("ci/just").is_file() && dir.join("crates/vm-harness").is_dir() {
            return Ok(dir.to_owned());
        }
    }
    bail!(
        "{} is not inside a clone of the project; change to one, or set CDM_REPO",
        start.display()
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_repository_is_found_from_a_folder_deep_inside_it() {
        let here = Path::new(env!("CARGO_MANIFEST_DIR"));
        let expected = here
            .ancestors()
            .nth(2)
            .expect("crates/vm-harness has two parents");
        assert_eq!(find_repo(&here.join("src")).expect("found"), expected);
    }

    #[test]
    fn a_folder_outside_the_repository_is_refused_with_the_next_step() {
        let error = find_repo(Path::new("/"))
            .expect_err("/ is no clone")
            .to_string();
        assert!(error.contains("CDM_REPO"), "{error}");
    }
}
