// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's trace buffer (Documentation/trace/ftrace.rst).

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result};
use nix::mount::{MsFlags, mount};

/// Tracing of some events, into a buffer of its own; ends on drop.
pub struct Tracing {
    instance: PathBuf,
}

const ROOT: &str = "/sys/kernel/tracing";

impl Tracing {
    /// Starts to record `events`, such as `cdm/cdm_probe`.
    pub fn start(events: &[&str]) -> Result<Self> {
        if !Path::new(ROOT).join("events").exists() {
            mount(
                Some("tracefs"),
                ROOT,
                Some("tracefs"),
                MsFlags::empty(),
                None::<&str>,
            )
            .context("cannot mount tracefs")?;
        }
        let instance = Path::new(ROOT)
            .join("instances")
            .join(format!("cdm-{}", std::process::id()));
        fs::create_dir(&instance).context("cannot make a trace instance")?;
        let tracing = Self { instance };
        for event in events {
            let path = tracing.instance.join("events").join(event).join("enable");
            fs::write(&path, "1").with_context(|| format!("no trace event {event}"))?;
        }
        Ok(tracing)
    }

    /// The lines recorded so far.
    pub fn lines(&self) -> Result<Vec<String>> {
        let text =
            fs::read_to_string(self.instance.join("trace")).context("cannot read the trace")?;
        Ok(text
            .lines()
            .filter(|line| !line.starts_with('#'))
            .map(str::to_owned)
            .collect())
    }
}

impl Drop for Tracing {
    fn drop(&mut self) {
        let _ = fs::write(self.instance.join("events/enable"), "0");
        // It goes with the guest at the latest.
        let _ = fs::remove_dir(&self.instance);
    }
}
