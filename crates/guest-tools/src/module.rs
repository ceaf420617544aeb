// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver's module: taken out and put in again.

use std::ffi::{CStr, CString};
use std::fs::{self, File};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, Result, bail};
use nix::errno::Errno;
use nix::kmod::{DeleteModuleFlags, ModuleInitFlags, delete_module, finit_module};

use crate::wait::{wait_until, wait_until_nothing};

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

/// Takes the module out, which nobody may have a node of open.
pub fn unload() -> Result<Unloaded> {
    unload_between_users(Duration::ZERO)
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

/// Puts the module in with these parameters, where it is not.
pub fn load(parameters: &CStr) -> Result<()> {
    let file = File::open(FILE).with_context(|| format!("cannot open {FILE}"))?;
    finit_module(&file, parameters, ModuleInitFlags::empty())
        .with_context(|| format!("cannot load {FILE} with {parameters:?}"))
}

/// Takes the module out as soon as nobody has a node of it open.
pub fn unload_between_users(limit: Duration) -> Result<Unloaded> {
    let parameters = CString::new(parameters()?).context("a parameter holds a zero byte")?;
    unload_for_good(limit)?;
    Ok(Unloaded {
        parameters,
        reloaded: false,
    })
}

/// Takes the module out as soon as nobody has a node of it open, and leaves it out.
pub fn unload_for_good(limit: Duration) -> Result<()> {
    wait_until(limit, "somebody always has a node open", || {
        match remove() {
            Ok(()) => Ok(true),
            Err(Errno::EWOULDBLOCK) => Ok(false),
            Err(error) => Err(error).context("cannot unload the module"),
        }
    })
}

/// Tries to take the module out, without waiting for users of it.
pub fn remove() -> Result<(), Errno> {
    delete_module(c"cdm", DeleteModuleFlags::O_NONBLOCK)
}

/// A device on the virtio bus, and its driver.
pub struct Binding {
    name: String,
    driver: PathBuf,
}

impl Binding {
    /// That of device `number`, whose driver is bound.
    pub fn of(number: u32) -> Result<Self> {
        let node = format!("/sys/class/misc/cdm{number}/device");
        let device = fs::canonicalize(&node).with_context(|| format!("{node} is no device"))?;
        let name = device.file_name().unwrap_or_default();
        let driver = fs::canonicalize(device.join("driver"))
            .with_context(|| format!("device {number} has no driver"))?;
        Ok(Self {
            name: name.to_string_lossy().into_owned(),
            driver,
        })
    }

    /// The device's name on the bus, which its driver's files are given.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The folder of its driver.
    pub fn driver(&self) -> &Path {
        &self.driver
    }

    /// Takes the driver from the device.
    pub fn unbind(&self) -> Result<()> {
        fs::write(self.driver.join("unbind"), &self.name).context("cannot unbind the driver")
    }

    /// Gives the device the driver again.
    pub fn bind(&self) -> Result<()> {
        fs::write(self.driver.join("bind"), &self.name).context("cannot bind the driver again")
    }
}

/// Waits until nobody has a node open whose device is gone: as long as somebody has, its number is
/// not given to the next one.
pub fn wait_until_dead_nodes_are_closed(limit: Duration) -> Result<()> {
    wait_until_nothing(limit, || {
        for process in fs::read_dir("/proc").context("cannot list processes")? {
            // A process or a file that is gone by now has nothing open.
            let Ok(files) = fs::read_dir(process?.path().join("fd")) else {
                continue;
            };
            for file in files.flatten() {
                let name = fs::read_link(file.path()).unwrap_or_default();
                let name = name.to_string_lossy();
                if name.starts_with("/dev/cdm") && name.ends_with(" (deleted)") {
                    let path = file.path();
                    return Ok(Some(format!("{} is still {name}", path.display())));
                }
            }
        }
        Ok(None)
    })
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
        load(&self.parameters)?;
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
