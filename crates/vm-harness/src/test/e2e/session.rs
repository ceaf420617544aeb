// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A machine that tests share. If a guest dies under one of them, the next one
//! gets a new machine.

use std::path::PathBuf;
use std::sync::Arc;
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, bail};

use crate::cache;
use crate::context::Context;
use crate::evidence::Guest;
use crate::vm::boot::Parts;
use crate::vm::{Backend, FileCopy, Line, Output, RunDir, Vm, VmSpec, breaches};

/// How long a line of the kernel's may take from the guest to the log's file: the serial port
/// passes it on byte by byte, behind the results on the other channel.
const LOG_LAG: Duration = Duration::from_secs(10);

/// A machine, booted when it is first needed.
pub struct Session<'a> {
    ctx: &'a Context,
    spec: VmSpec,
    logs: PathBuf,
    machines: u32,
    vm: Option<Vm>,
    /// Logs of the machine that runs, or ran last.
    last_logs: Option<PathBuf>,
    /// Why no machine could be had, in a row.
    failures: Vec<String>,
    /// Bytes of the kernel log that were judged already.
    judged: usize,
}

impl<'a> Session<'a> {
    /// Begins what a failed check says of its logs.
    pub const LOGS: &'static str = "logs of its guest: ";

    /// A session with logs below `logs`, a folder for each machine that it takes.
    pub fn new(ctx: &'a Context, spec: VmSpec, logs: PathBuf) -> Self {
        Self {
            ctx,
            spec,
            logs,
            machines: 0,
            vm: None,
            last_logs: None,
            failures: Vec::new(),
            judged: 0,
        }
    }

    /// Repository, cache, progress.
    pub fn ctx(&self) -> &'a Context {
        self.ctx
    }

    /// What the machine is.
    pub fn spec(&self) -> &VmSpec {
        &self.spec
    }

    /// Where the logs of the last machine are, if there was one.
    pub fn logs(&self) -> Option<PathBuf> {
        (self.machines > 0).then(|| self.logs.join(format!("boot{}", self.machines)))
    }

    /// A folder beside its logs, for machines that a check has besides.
    pub fn new_folder(&self, name: &str) -> Result<PathBuf> {
        let folder = self.logs.join(name);
        cache::create_folder(&folder)?;
        Ok(folder)
    }

    fn new_logs(&mut self) -> Result<PathBuf> {
        self.machines += 1;
        let logs = self.logs.join(format!("boot{}", self.machines));
        cache::create_folder(&logs)?;
        self.last_logs = Some(logs.clone());
        Ok(logs)
    }

    /// Whether there is a machine already.
    pub fn has_guest(&self) -> bool {
        self.vm.is_some()
    }

    /// The machine.
    pub fn vm(&mut self) -> Result<&mut Vm> {
        if self.vm.is_none() {
            // Where no machine boots, every test would wait for one in vain.
            if let [_, last] = &self.failures[..] {
                bail!("given up after two machines that did not boot: {last}");
            }
            let logs = self.new_logs()?;
            match Vm::boot(self.ctx, &self.spec, &logs) {
                Ok(vm) => self.vm = Some(vm),
                Err(error) => {
                    self.failures.push(format!("{error:#}"));
                    return Err(error);
                }
            }
            self.failures.clear();
            self.judged = 0;
        }
        self.vm.as_mut().context("booted just now")
    }

    /// The machine, whose backends stand behind `between`: it is given each backend before QEMU
    /// connects to it.
    pub fn vm_behind(&mut self, between: impl FnOnce(&[Backend]) -> Result<()>) -> Result<&mut Vm> {
        if self.vm.is_none() {
            let logs = self.new_logs()?;
            let parts = Parts::build(self.ctx, &self.spec.kernel)?;
            let dir = Arc::new(RunDir::create()?);
            let backends = Backend::start_all(&parts.backend, &self.spec, &dir, &logs)?;
            between(&backends)?;
            self.vm = Some(Vm::boot_with(
                self.ctx, &self.spec, &parts, backends, &logs,
            )?);
            self.judged = 0;
        }
        self.vm.as_mut().context("booted just now")
    }

    /// Turns the guest off and boots another one on the same backends.
    pub fn next_guest(&mut self, meanwhile: impl FnOnce(&[Backend]) -> Result<()>) -> Result<()> {
        let vm = self.vm.take().context("no guest runs")?;
        let backends = vm.shutdown_guest()?;
        meanwhile(&backends)?;
        let parts = Parts::build(self.ctx, &self.spec.kernel)?;
        let logs = self.new_logs()?;
        self.vm = Some(Vm::boot_with(
            self.ctx, &self.spec, &parts, backends, &logs,
        )?);
        self.judged = 0;
        Ok(())
    }

    /// Plugs a device where one was unplugged.
    pub fn plug(&mut self, index: u8) -> Result<()> {
        let vm = self.vm.as_mut().context("no guest runs")?;
        vm.plug(self.ctx, &self.spec, index)
    }

    /// Has a file in the guest, which is a new one from here on.
    pub fn bring(&mut self, file: FileCopy) -> Result<()> {
        if self.is_up() {
            self.power_off()?;
        }
        self.spec.files.push(file);
        Ok(())
    }

    /// Runs a line of shell; whatever its status is, it ran.
    pub fn exec(&mut self, line: &str) -> Result<Output> {
        self.vm()?.exec(line)
    }

    /// Runs a line of shell that must succeed, and gives its standard output.
    pub fn text(&mut self, line: &str) -> Result<String> {
        self.exec(line)?.text().with_context(|| format!("'{line}'"))
    }

    /// Whether there is a machine.
    pub fn is_up(&self) -> bool {
        self.vm.is_some()
    }

    /// What is known of the machine that runs, or of the last one that did.
    pub fn evidence(&self) -> Option<Guest<'_>> {
        if let Some(vm) = &self.vm {
            vm.write_device_states();
        }
        Some(Guest {
            logs: self.last_logs.as_deref()?,
            kernel: &self.spec.kernel,
            ctx: self.ctx,
        })
    }

    /// Gives the machine up: the next test gets a new one.
    pub fn discard(&mut self) {
        self.vm = None;
    }

    /// What the kernel said since it was last judged.
    pub fn new_log(&mut self) -> Result<String> {
        let judged = self.judged;
        let vm = self.vm()?;
        // A mark that the guest's kernel writes comes after all that it said before.
        let mark = format!("cdm-test: mark {judged}");
        vm.exec(&format!("echo '{mark}' > /dev/kmsg"))?;
        let deadline = Instant::now() + LOG_LAG;
        loop {
            let log = vm.kernel_log()?;
            let new = log.get(judged..).unwrap_or_default();
            if let Some(at) = new.find(&mark) {
                let new = new[..at].to_owned();
                self.judged = judged + at + mark.len();
                return Ok(new);
            }
            if Instant::now() >= deadline {
                bail!("the guest's kernel log does not arrive at the host");
            }
            thread::sleep(Duration::from_millis(2));
        }
    }

    /// Fails if the kernel reported a fault since it was last judged.
    pub fn judge_log(&mut self) -> Result<()> {
        let log = self.new_log()?;
        let found: Vec<Line> = breaches(&log);
        if found.is_empty() {
            return Ok(());
        }
        let lines: Vec<_> = found.iter().map(ToString::to_string).collect();
        bail!(
            "the guest's kernel reports:\n{}\nall of it:\n{log}",
            lines.join("\n")
        );
    }

    /// Runs a check, then judges the log. A guest that died is replaced.
    pub fn check(&mut self, check: &fn(&mut Session) -> Result<()>) -> Result<()> {
        let checked = check(self);
        if self.vm.is_none() {
            // It ended its machine itself, or never got one.
            return checked;
        }
        let judged = self.judge_log();
        if checked.is_err() || judged.is_err() {
            let log = self.vm.as_ref().map(|vm| vm.logs().display().to_string());
            if self.exec("true").is_err() {
                self.discard();
            }
            let logs = format!("{}{}", Self::LOGS, log.unwrap_or_default());
            return checked.and(judged).context(logs);
        }
        Ok(())
    }

    /// Turns the guest off in good order and gives the folder of its logs; the next test gets a new
    /// one.
    pub fn power_off(&mut self) -> Result<PathBuf> {
        let vm = self.vm.take().context("no guest runs")?;
        let logs = vm.logs().to_owned();
        vm.shutdown()?;
        Ok(logs)
    }

    /// Turns the guest off in good order.
    pub fn end(mut self) -> Result<()> {
        match self.vm.take() {
            Some(vm) => vm.shutdown(),
            None => Ok(()),
        }
    }
}
