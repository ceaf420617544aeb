// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Loads the driver.

use std::ffi::CString;
use std::fs::File;

use cdm_agent_protocol::ModuleState;
use nix::kmod::{ModuleInitFlags, finit_module};

use super::cmdline;
use super::kmsg::log;

/// Where the initramfs has the driver.
const MODULE: &str = "/lib/modules/cdm.ko";

/// Loads the driver as the kernel command line wants it.
pub fn load() -> ModuleState {
    let line = std::fs::read_to_string("/proc/cmdline").unwrap_or_else(|error| {
        log(&format!("cannot read /proc/cmdline: {error}"));
        String::new()
    });
    let request = cmdline::parse(&line);
    if !request.load {
        return ModuleState::NotWanted;
    }
    match insert(&request.parameters) {
        Ok(()) => ModuleState::Loaded,
        Err(reason) => {
            log(&reason);
            ModuleState::Failed(reason)
        }
    }
}

fn insert(parameters: &str) -> Result<(), String> {
    let file = File::open(MODULE).map_err(|error| format!("cannot open {MODULE}: {error}"))?;
    let parameters_c = CString::new(parameters)
        .map_err(|_| "the kernel command line holds a zero byte".to_owned())?;
    finit_module(&file, &parameters_c, ModuleInitFlags::empty()).map_err(|error| {
        format!("the kernel refused {MODULE} with parameters '{parameters}': {error}")
    })
}
