// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The description of the driver as a crate beside those of the kernel.
//!
//! The kernel's own script describes its crates, and no module whose root lies deeper than its
//! makefile. The driver is what the kernel's crates are to each other, with one more dependency.

use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::{Value, json};

use super::sysroot;
use crate::build::MODULE_SOURCES;
use crate::context::Context;

/// Its root, in the repository.
const ROOT: &str = "crates/guest-driver/src/cdm_main.rs";

/// Crates of Rust itself. Editors know their methods of built-in types only where they find these
/// crates by themselves, below the sysroot; as crates beside others they are taken for others.
const STANDARD: [&str; 4] = ["core", "alloc", "std", "proc_macro"];
/// Where they are, below `/usr`.
const STANDARD_SOURCE: &str = "lib/rustlib/src/rust/library";

/// What a build of the driver leaves that its description needs.
#[derive(Clone, Debug)]
pub struct Built {
    /// What the kernel's script says of the kernel's crates.
    pub kernel_crates: String,
    /// The bindings that the driver includes.
    pub bindings: PathBuf,
}

/// Where things are for an editor, which runs outside of the toolbox.
#[derive(Clone, Debug)]
pub struct Place {
    /// The repository.
    pub repo: PathBuf,
    /// The toolbox, if it can be seen from outside.
    pub toolbox: Option<Outside>,
}

/// The toolbox, seen from outside.
#[derive(Clone, Debug)]
pub struct Outside {
    /// What is `/usr` inside.
    pub usr: PathBuf,
    /// A Rust that starts there.
    pub sysroot: PathBuf,
}

impl Place {
    /// Of this run.
    pub fn of(ctx: &Context) -> Result<Self> {
        let usr = ctx.cache.join("toolbox").join(&ctx.toolbox).join("usr");
        let toolbox = match usr.is_dir() {
            true => {
                let sysroot = ctx.cache.join("ide").join(&ctx.toolbox);
                sysroot::make(&usr, &sysroot)?;
                Some(Outside { usr, sysroot })
            }
            false => None,
        };
        Ok(Self {
            repo: ctx.repo.clone(),
            toolbox,
        })
    }
}

/// The description of the kernel's crates and of the driver.
pub fn with_driver(built: &Built, place: &Place) -> Result<String> {
    let mut project: Value = serde_json::from_str(&built.kernel_crates)
        .context("the kernel's script for rust-analyzer wrote no JSON")?;
    let crates = project["crates"]
        .as_array_mut()
        .context("the kernel's script for rust-analyzer named no crates")?;
    let (number, kernel) = crates
        .iter()
        .enumerate()
        .find(|(_, one)| one["display_name"] == "kernel")
        .context("the kernel's script for rust-analyzer named no crate 'kernel'")?;
    let mut driver = kernel.clone();
    let mut deps = kernel["deps"].as_array().cloned().unwrap_or_default();
    deps.push(json!({ "crate": number, "name": "kernel" }));
    let bindings_folder = built.bindings.parent().unwrap_or(Path::new("/"));
    let include: Vec<PathBuf> = MODULE_SOURCES
        .iter()
        .map(|folder| place.repo.join(folder))
        .chain([bindings_folder.to_owned()])
        .collect();
    driver["display_name"] = json!("cdm");
    driver["root_module"] = json!(place.repo.join(ROOT));
    driver["deps"] = json!(deps);
    driver["env"]["CDM_BINDINGS"] = json!(built.bindings);
    driver["source"] = json!({ "include_dirs": include, "exclude_dirs": [] });
    // Only the driver is the user's to change, and to be told of.
    for one in crates.iter_mut() {
        one["is_workspace_member"] = json!(false);
    }
    driver["is_workspace_member"] = json!(true);
    crates.push(driver);
    for one in crates.iter_mut() {
        if let Some(deps) = one["deps"].as_array_mut() {
            deps.retain(|dep| !STANDARD.iter().any(|name| dep["name"] == *name));
        }
    }
    project["sysroot_src"] = json!(Path::new("/usr").join(STANDARD_SOURCE));
    if let Some(outside) = &place.toolbox {
        move_usr(&mut project, &outside.usr);
        project["sysroot"] = json!(outside.sysroot);
    }
    Ok(serde_json::to_string_pretty(&project)?)
}

/// Has every path of the toolbox's `/usr` name the same file from outside.
fn move_usr(value: &mut Value, usr: &Path) {
    match value {
        Value::String(text) => {
            let rest = text.strip_prefix("/usr").map(str::to_owned);
            if let Some(rest) = rest.filter(|rest| rest.is_empty() || rest.starts_with('/')) {
                *text = format!("{}{rest}", usr.display());
            }
        }
        Value::Array(values) => values.iter_mut().for_each(|value| move_usr(value, usr)),
        Value::Object(fields) => fields.values_mut().for_each(|value| move_usr(value, usr)),
        _ => {}
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn built() -> Built {
        let kernel_crates = json!({
            "sysroot": "/usr",
            "crates": [
                { "display_name": "core", "root_module": "/usr/lib/core.rs", "deps": [], "env": {},
                  "is_workspace_member": false },
                { "display_name": "kernel", "root_module": "/linux/kernel.rs", "cfg": ["CONFIG_X"],
                  "deps": [{ "crate": 0, "name": "core" }], "env": { "OBJTREE": "/objects" },
                  "is_workspace_member": true, "edition": "2021" },
            ],
        });
        Built {
            kernel_crates: kernel_crates.to_string(),
            bindings: "/cache/objects/src/bindings_generated.rs".into(),
        }
    }

    fn described(usr: Option<&str>) -> Value {
        let place = Place {
            repo: "/repo".into(),
            toolbox: usr.map(|usr| Outside {
                usr: usr.into(),
                sysroot: "/cache/ide/k".into(),
            }),
        };
        let text = with_driver(&built(), &place).expect("described");
        serde_json::from_str(&text).expect("JSON")
    }

    #[test]
    fn driver_is_a_crate_that_sees_the_kernel_and_its_bindings() {
        let project = described(None);
        let driver = &project["crates"][2];
        assert_eq!(
            driver["root_module"],
            "/repo/crates/guest-driver/src/cdm_main.rs"
        );
        assert_eq!(driver["cfg"], json!(["CONFIG_X"]));
        // Rust itself is found by the editor.
        assert_eq!(driver["deps"], json!([{ "crate": 1, "name": "kernel" }]));
        assert_eq!(project["crates"][1]["deps"], json!([]));
        let bindings = "/cache/objects/src/bindings_generated.rs";
        assert_eq!(driver["env"]["CDM_BINDINGS"], bindings);
        let include = driver["source"]["include_dirs"].as_array().expect("a list");
        assert!(
            include.contains(&json!("/repo/crates/device-protocol/src")),
            "{include:?}"
        );
        assert!(
            include.contains(&json!("/cache/objects/src")),
            "{include:?}"
        );
        assert_eq!(driver["is_workspace_member"], true);
        assert_eq!(project["crates"][1]["is_workspace_member"], false);
    }

    #[test]
    fn files_of_the_toolbox_are_named_as_the_editor_sees_them() {
        let project = described(Some("/cache/toolbox/k/usr"));
        assert_eq!(project["sysroot"], "/cache/ide/k");
        assert_eq!(
            project["sysroot_src"],
            "/cache/toolbox/k/usr/lib/rustlib/src/rust/library"
        );
        assert_eq!(
            project["crates"][0]["root_module"],
            "/cache/toolbox/k/usr/lib/core.rs"
        );
        assert_eq!(project["crates"][1]["root_module"], "/linux/kernel.rs");
        assert_eq!(described(None)["sysroot"], "/usr");
    }

    #[test]
    fn root_of_the_driver_is_where_the_description_says() {
        assert!(crate::vm::testing::repo().join(ROOT).is_file());
    }
}
