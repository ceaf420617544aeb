// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver's module: taken out and put in again.

use std::ffi::CString;
use std::fs::{self, File};
use std::path::Path;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};

use crate::wait::wait_until;

const FILE: &str = "/lib/modules/cdm.ko";
const PARAMETERS: &str = "/sys/module/cdm/parameters";
/// Evacuation copies every resident page; an emulated CPU copies over 100 MiB a second.
const NODE_LIMIT: Duration = Duration::from_secs(20);

/// The module while it is out; put in again on drop, so that a failed test does not take the
/// device from those behind it.
pub struct Unloaded {
    parameters: CString,
    reloaded: bool,
}

/// Takes the module out.
pub fn unload() -> Result<Unloaded> {
    let parameters = CString::new(parameters()?).context("a parameter holds a zero byte")?;
    remove().context("cannot unload the module")?;
    Ok(Unloaded {
        parameters,
        reloaded: false,
    })
}

/// Loads one of the kernel's own modules, if it is not there yet.
pub fn load_of_kernel(name: &str) -> Result<()> {
    let output = Command::new("modprobe")
        .arg(name)
        .output()
        .context("cannot start modprobe")?;
    if !output.status.success() {
        let why = String::from_utf8_lossy(&output.stderr);
        bail!("cannot load the kernel's module {name}: {}", why.trim_end());
    }
    Ok(())
}

/// Tries to take the module out, without waiting for users of it.
pub fn remove() -> Result<(), Errno> {
    delete_module(c"cdm", DeleteModuleFlags::O_NONBLOCK)
}

/// The module's parameters as they are, to load it with the same ones.
fn parameters() -> Result<String> {
    let mut words = Vec::new();
    for entry in fs::read_dir(PARAMETERS).with_context(|| format!("cannot list {PARAMETERS}"))? {
        let path = entry?.path();
        let name = path
            .file_name()
            .unwrap_or_default()
            .to_string_lossy()
            .into_owned();
        let value = fs::read_to_string(&path).with_context(|| format!("parameter {name}"))?;
        words.push(format!("{name}={}", value.trim()));
    }
    Ok(words.join(" "))
}

impl Unloaded {
    /// Puts the module in again and waits for its first node.
    pub fn reload(mut self) -> Result<()> {
        self.load()
    }

    fn load(&mut self) -> Result<()> {
        self.reloaded = true;
        let file = File::open(FILE).with_context(|| format!("cannot open {FILE}"))?;
        finit_module(&file, &self.parameters, ModuleInitFlags::empty())
            .with_context(|| format!("cannot load {FILE} with {:?}", self.parameters))?;
        wait_until(
            NODE_LIMIT,
            "no /dev/cdm0 after the module was loaded",
            || Ok(Path::new("/dev/cdm0").exists()),
        )
    }
}

impl Drop for Unloaded {
    fn drop(&mut self) {
        if !self.reloaded {
            // The tests behind will say that the device is missing.
            let _ = self.load();
        }
    }
}
