// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A machine that runs: backends, QEMU, and a guest whose agent answers.

use std::fs;
use std::os::unix::net::UnixStream;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex, Once, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result, anyhow, bail};
use cdm_agent_protocol::{Command as GuestCommand, Ending, Exec, ExitStatus};
use cdm_control_protocol::Ask;
use serde_json::json;

use super::accel::{Accel, Evidence, judge};
use super::agent::{Agent, Event, Greeting, Lost, Notice, Running};
use super::backend::{self, Backend};
use super::disk::Disk;
use super::door;
use super::dump::{self, Dump};
use super::end;
use super::files;
use super::kernel_log::tail;
use super::limits::{Clock, Limits};
use super::process::{Process, describe};
use super::qemu::{self, MachineData, Run};
use super::qmp::{Qmp, send_sysrq};
use super::rundir::RunDir;
use super::spec::{Gdb, VmSpec};
use super::timeline::Timeline;
use super::tsc;
use crate::build::{self, Kernel};
use crate::context::Context;

/// QEMU opens its sockets before it starts the guest, within some 50 ms; a host with
/// every CPU taken needs more, and beyond this something is wrong.
const SOCKETS_TIMEOUT: Duration = Duration::from_secs(60);
/// Between two tries to connect: a boot waits for it.
const CONNECT_INTERVAL: Duration = Duration::from_millis(2);
/// How often a wait for a guest looks around.
const LOOK_INTERVAL: Duration = Duration::from_secs(1);
/// What QEMU may take to end after its guest did, or after its sockets closed.
const QEMU_END_TIMEOUT: Duration = Duration::from_secs(20);
/// What a guest may take to notice a SysRq key, and to say what it is asked for.
const KEY_TIMEOUT: Duration = Duration::from_secs(10);
const REPORT_TIMEOUT: Duration = Duration::from_secs(10);
/// How often that is looked for, and after how long without a byte a report is at its end.
const KEY_INTERVAL: Duration = Duration::from_millis(50);
const REPORT_PAUSE: Duration = Duration::from_millis(600);
/// What QEMU may take to let go of the socket of a device that it has finished with.
const LET_GO_TIMEOUT: Duration = Duration::from_secs(20);
/// Between two tries.
const LET_GO_INTERVAL: Duration = Duration::from_millis(20);
/// How much of the console an error shows.
const CONSOLE_LINES: usize = 15;

/// What is built for a machine, besides its kernel.
#[derive(Clone, Debug)]
pub struct Parts {
    /// The backend program.
    pub backend: PathBuf,
    /// The guest's first file system.
    pub initramfs: PathBuf,
}

impl Parts {
    /// Builds what is missing.
    pub fn build(ctx: &Context, kernel: &Kernel) -> Result<Self> {
        Ok(Self {
            backend: build::backend(ctx)?,
            initramfs: build::initramfs(ctx, kernel)?,
        })
    }
}

/// The commands that make a machine.
#[derive(Clone, Debug)]
pub struct Commands {
    /// One line for each backend.
    pub backends: Vec<String>,
    /// Arguments of QEMU.
    pub qemu: Vec<String>,
}

impl Commands {
    /// Works out the commands, and runs nothing.
    pub fn plan(
        ctx: &Context,
        spec: &VmSpec,
        parts: &Parts,
        accel: Accel,
        run: &Path,
        logs: &Path,
    ) -> Result<Self> {
        let sockets: Vec<PathBuf> = (0..spec.devices)
            .map(|index| backend::socket_path(run, index))
            .collect();
        let program = parts.backend.display().to_string();
        let backends = (0..spec.devices)
            .map(|index| qemu::shell_line(&program, &backend::arguments(spec, index, run, logs)))
            .collect();
        Ok(Self {
            backends,
            qemu: qemu_arguments(ctx, spec, parts, accel, run, logs, &sockets)?,
        })
    }
}

fn qemu_arguments(
    ctx: &Context,
    spec: &VmSpec,
    parts: &Parts,
    accel: Accel,
    run: &Path,
    logs: &Path,
    sockets: &[PathBuf],
) -> Result<Vec<String>> {
    let with_files = run.join(INITRAMFS_WITH_FILES);
    let initramfs = match spec.has_files() {
        true => &with_files,
        false => &parts.initramfs,
    };
    let rootfs = spec.rootfs.disk()?;
    MachineData::read(&ctx.repo)?.arguments(&Run {
        spec,
        accel,
        tsc_khz: (accel == Accel::Tcg).then(tsc::khz),
        initramfs,
        rootfs: rootfs.as_deref(),
        run,
        logs,
        backend_sockets: sockets,
    })
}

/// Name in the run's folder of an initramfs with files of this run behind it.
const INITRAMFS_WITH_FILES: &str = "initramfs.cpio";

/// Decides who runs the guest, and tells the user once what to expect.
pub fn accelerator(ctx: &Context, spec: &VmSpec) -> Result<Accel> {
    static TOLD: Once = Once::new();
    let verdict = judge(spec.accel, &Evidence::gather())?;
    if let Some(notice) = &verdict.notice {
        TOLD.call_once(|| ctx.progress.say(notice));
    }
    Ok(verdict.accel)
}

/// What a command in the guest gave.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Output {
    /// How it ended.
    pub status: ExitStatus,
    /// Its standard output.
    pub stdout: Vec<u8>,
    /// Its standard error.
    pub stderr: Vec<u8>,
}

impl Output {
    /// Standard output as text, or what stood in its way.
    pub fn text(&self) -> Result<String> {
        if !self.status.success() {
            bail!(
                "the command failed with {:?}: {}",
                self.status,
                String::from_utf8_lossy(&self.stderr).trim_end()
            );
        }
        Ok(String::from_utf8(self.stdout.clone())?)
    }
}

/// A stream of a command's output.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Stream {
    /// Standard output.
    Stdout,
    /// Standard error.
    Stderr,
}

/// A machine that runs. Dropping it kills it and its backends.
pub struct Vm {
    /// Goes first: a backend must not die under its QEMU.
    qemu: Process,
    backends: Vec<Backend>,
    agent: Agent,
    qmp: Arc<Mutex<Qmp>>,
    greeting: Greeting,
    logs: PathBuf,
    dir: Arc<RunDir>,
    dump: Dump,
    patience: Duration,
    /// Devices that were plugged while it ran.
    plugged: u32,
    /// Goes last: it is made of what all the others have left.
    timeline: Option<Timeline>,
}

impl Vm {
    /// Builds what is missing, starts backends and QEMU, and waits for the guest's
    /// agent. Logs go into `logs`, which exists.
    pub fn boot(ctx: &Context, spec: &VmSpec, logs: &Path) -> Result<Self> {
        let parts = Parts::build(ctx, &spec.kernel)?;
        let dir = Arc::new(RunDir::create()?);
        let backends = Backend::start_all(&parts.backend, spec, &dir, logs)?;
        Self::boot_with(ctx, spec, &parts, backends, logs)
    }

    /// [`Vm::boot`] with backends that run already, as for a second guest on the same
    /// device memory.
    pub fn boot_with(
        ctx: &Context,
        spec: &VmSpec,
        parts: &Parts,
        backends: Vec<Backend>,
        logs: &Path,
    ) -> Result<Self> {
        spec.check()?;
        let accel = accelerator(ctx, spec)?;
        let dir = Arc::new(RunDir::create()?);
        if spec.has_files() {
            let path = dir.path().join(INITRAMFS_WITH_FILES);
            let files = files::of_machine(ctx, spec)?;
            files::append(&parts.initramfs, &files, &path)?;
        }
        for (index, disk) in spec.disks.iter().enumerate() {
            disk.create(&Disk::path(dir.path(), index))?;
        }
        let sockets: Vec<PathBuf> = backends
            .iter()
            .map(|backend| backend.socket().to_owned())
            .collect();
        let arguments = qemu_arguments(ctx, spec, parts, accel, dir.path(), logs, &sockets)?;
        fs::write(
            logs.join("commands.txt"),
            qemu::shell_line(qemu::PROGRAM, &arguments) + "\n",
        )
        .with_context(|| format!("cannot write into {}", logs.display()))?;
        fs::copy(&spec.kernel.config, logs.join("kernel.config"))
            .with_context(|| format!("cannot copy {}", spec.kernel.config.display()))?;

        let task = ctx
            .progress
            .task("booting the guest", Some(&logs.join("console.log")));
        let mut command = Command::new(qemu::PROGRAM);
        // What the guest writes to its userland goes to a file there that has no name: the default
        // is memory in the toolbox.
        command.args(&arguments).env("TMPDIR", logs);
        let qemu = Process::start(qemu::PROGRAM, command, &logs.join("qemu.log"), |_| {})
            .context("QEMU is part of the toolbox; 'ci/just doctor' tells what is missing")?;
        let patience = match spec.gdb {
            None => spec.patience,
            // Whoever debugs a guest stops it for as long as it takes.
            Some(_) => Duration::MAX,
        };
        let starting = Starting {
            qemu: &qemu,
            backends: &backends,
            logs,
            patience,
        };
        if spec.gdb.is_some() {
            ctx.progress.say(debugger_line(spec, dir.path()));
        }
        let dump = Dump::new(spec, dir.path(), logs);
        let (agent, qmp) = starting.connect(dir.path(), &dump)?;
        for backend in &backends {
            let agent = agent.clone();
            backend.tell(move |reason| agent.break_off(&reason));
        }
        let greeting = starting.wait_for_greeting(&agent, 1, "booted", || {
            examine(&qmp, dir.path(), logs, &dump);
        })?;
        drop(task);
        let mut timeline = spec
            .trace
            .then(|| Timeline::new(&ctx.progress, logs, qemu.pid()));
        if let Some(timeline) = &mut timeline {
            timeline.collect(&agent);
        }
        Ok(Self {
            qemu,
            backends,
            agent,
            qmp,
            greeting,
            logs: logs.to_owned(),
            dir,
            dump,
            patience,
            plugged: 0,
            timeline,
        })
    }

    /// Lets other processes run commands in the guest: `just shell` and what is like it.
    pub fn open_door(&self) -> Result<()> {
        door::open(&self.agent, self.dir.path())
    }

    /// What the guest said when its agent started.
    pub fn greeting(&self) -> &Greeting {
        &self.greeting
    }

    /// The folder of its logs.
    pub fn logs(&self) -> &Path {
        &self.logs
    }

    /// The folder of its sockets.
    pub fn run_dir(&self) -> &Path {
        self.dir.path()
    }

    /// QEMU's process number.
    pub fn qemu_pid(&self) -> u32 {
        self.qemu.pid()
    }

    /// Its backends, in the order of the devices.
    pub fn backends(&self) -> &[Backend] {
        &self.backends
    }

    /// Executes a command of QEMU's control channel.
    pub fn qmp(&self, command: &str, arguments: serde_json::Value) -> Result<serde_json::Value> {
        lock(&self.qmp).execute(command, arguments)
    }

    /// Asks the guest to let a device go; [`Vm::has_let_go`] tells when it has.
    pub fn ask_to_unplug(&self, index: u8) -> Result<()> {
        self.qmp("device_del", json!({ "id": device_id(index) }))?;
        Ok(())
    }

    /// Waits until the guest has let a device go that it was asked for, at most for `timeout`;
    /// whether it has. The backend has ended then, and the devices behind it move up by one.
    pub fn has_let_go(&mut self, index: u8, timeout: Duration) -> Result<bool> {
        let deadline = Instant::now() + timeout;
        loop {
            let left = deadline.saturating_duration_since(Instant::now());
            let event = lock(&self.qmp).wait_event("DEVICE_DELETED", left.min(LOOK_INTERVAL));
            let event = event.map_err(|error| {
                // Before its last words, QEMU is to have said them.
                self.qemu.wait(QEMU_END_TIMEOUT);
                let what = format!("device {index} was to be unplugged: {error:#}");
                self.starting().error(&what)
            })?;
            match event {
                // Parts of a device have such events of their own.
                Some(data) if data["device"] == device_id(index).as_str() => break,
                None if left.is_zero() => return Ok(false),
                _ => {}
            }
        }
        let deadline = Instant::now() + LET_GO_TIMEOUT;
        while let Err(error) = self.qmp("chardev-remove", json!({ "id": chardev_id(index) })) {
            if Instant::now() >= deadline {
                return Err(error);
            }
            thread::sleep(LET_GO_INTERVAL);
        }
        let backend = self.backends.remove(index.into());
        let name = backend.name().to_owned();
        let status = backend.end()?;
        if !status.success() {
            bail!("{name} {} when it was unplugged", describe(status));
        }
        Ok(true)
    }

    /// Plugs a new device, with a backend and memory of its own, where one was unplugged.
    pub fn plug(&mut self, ctx: &Context, spec: &VmSpec, index: u8) -> Result<()> {
        let parts = Parts::build(ctx, &spec.kernel)?;
        self.plugged += 1;
        let logs = self.logs.join(format!("plugged{}", self.plugged));
        fs::create_dir(&logs).with_context(|| format!("cannot make {}", logs.display()))?;
        let backend = Backend::start_another(&parts.backend, spec, index, &self.dir, &logs)?;
        let sockets = vec![backend.socket().to_owned(); usize::from(index) + 1];
        let (chardev, device) = MachineData::read(&ctx.repo)?.plug_requests(
            &Run {
                spec,
                accel: accelerator(ctx, spec)?,
                tsc_khz: None,
                initramfs: &parts.initramfs,
                rootfs: None,
                run: self.dir.path(),
                logs: &logs,
                backend_sockets: &sockets,
            },
            index.into(),
        )?;
        self.qmp("chardev-add", chardev)?;
        self.qmp("device_add", device)?;
        let agent = self.agent.clone();
        backend.tell(move |reason| agent.break_off(&reason));
        self.backends.insert(index.into(), backend);
        Ok(())
    }

    /// Everything that the guest's kernel has said so far, over all its boots.
    pub fn kernel_log(&self) -> Result<String> {
        read_console(&self.logs)
    }

    /// Starts a command; its events and its input are the caller's business.
    pub fn start(&self, exec: Exec) -> Result<Running> {
        self.agent.start(exec)
    }

    /// Runs a line of shell and gives what came out.
    pub fn exec(&self, line: &str) -> Result<Output> {
        self.exec_with_input(line, &[])
    }

    /// [`Vm::exec`] with standard input.
    pub fn exec_with_input(&self, line: &str, input: &[u8]) -> Result<Output> {
        let (mut stdout, mut stderr) = (Vec::new(), Vec::new());
        let status = self.drive(line, input, Limits::COMMAND, |stream, data| match stream {
            Stream::Stdout => stdout.extend_from_slice(data),
            Stream::Stderr => stderr.extend_from_slice(data),
        })?;
        Ok(Output {
            status,
            stdout,
            stderr,
        })
    }

    /// Runs a line of shell and hands on each line of output as it comes.
    pub fn exec_streaming(
        &self,
        line: &str,
        on_line: impl FnMut(Stream, &str),
    ) -> Result<ExitStatus> {
        self.exec_lines(line, Limits::PROGRAM, on_line)
    }

    /// [`Vm::exec_streaming`] for a command that may hang in a guest that lives: one that exceeds
    /// `limits` is given up, and the guest with it. A time by itself is the longest silence.
    pub fn exec_streaming_within(
        &self,
        limits: impl Into<Limits>,
        line: &str,
        on_line: impl FnMut(Stream, &str),
    ) -> Result<ExitStatus> {
        self.exec_lines(line, limits.into(), on_line)
    }

    fn exec_lines(
        &self,
        line: &str,
        limits: Limits,
        mut on_line: impl FnMut(Stream, &str),
    ) -> Result<ExitStatus> {
        let mut partial = [Vec::new(), Vec::new()];
        let status = self.drive(line, &[], limits, |stream, data| {
            let buffer = &mut partial[stream as usize];
            buffer.extend_from_slice(data);
            while let Some(end) = buffer.iter().position(|byte| *byte == b'\n') {
                let rest = buffer.split_off(end + 1);
                on_line(stream, String::from_utf8_lossy(buffer).trim_end());
                *buffer = rest;
            }
        })?;
        for (stream, rest) in [Stream::Stdout, Stream::Stderr].into_iter().zip(&partial) {
            if !rest.is_empty() {
                on_line(stream, &String::from_utf8_lossy(rest));
            }
        }
        Ok(status)
    }

    fn drive(
        &self,
        line: &str,
        input: &[u8],
        limits: Limits,
        mut on_data: impl FnMut(Stream, &[u8]),
    ) -> Result<ExitStatus> {
        let mut running = self.agent.start(Exec {
            command: GuestCommand::Shell(line.to_owned()),
            tty: None,
            env: Vec::new(),
            cwd: None,
        })?;
        let clock = limits.start();
        let feed = running.input();
        thread::scope(|scope| {
            scope.spawn(move || {
                if feed.send(input) {
                    feed.end();
                }
            });
            loop {
                match self.next_event(&mut running, &clock, line)? {
                    Event::Stdout(data) => on_data(Stream::Stdout, &data),
                    Event::Stderr(data) => on_data(Stream::Stderr, &data),
                    Event::Exit(status) => return Ok(status),
                    Event::Failed(reason) => bail!("{reason}"),
                    Event::Lost(lost) => {
                        return Err(self.broken(&lost, &format!("ran '{line}'")));
                    }
                }
            }
        })
    }

    /// The next event of a command. A guest that has been silent for too long is asked by SysRq
    /// what it is doing, and given up; so is one whose command exceeds its limits.
    pub fn next_event(&self, running: &mut Running, clock: &Clock, line: &str) -> Result<Event> {
        let event = match clock.silence() {
            Some(silence) => running.next_event(silence),
            None => {
                let mut size = console_bytes(&self.logs);
                running.next_event_of_living_guest(self.patience, clock.left(), || {
                    let now = console_bytes(&self.logs);
                    std::mem::replace(&mut size, now) != now
                })
            }
        };
        if let Some(event) = event {
            return Ok(event);
        }
        let hangs = clock.silence().is_none() && clock.left().is_none_or(|left| !left.is_zero());
        let (reason, what) = match hangs {
            true => ("the guest hangs", silent("ran a command", self.patience)),
            false => ("a command in the guest hangs", clock.verdict(line)),
        };
        self.examine();
        self.agent.break_off(reason);
        Err(self.starting().error(&what))
    }

    /// Starts the guest again, and waits until its agent answers.
    pub fn reboot(&mut self) -> Result<()> {
        let greetings = self.agent.greetings();
        if let Some(timeline) = &mut self.timeline {
            timeline.stop();
        }
        self.agent.end(Ending::Reboot)?;
        self.wait_for_reboot(greetings)
    }

    /// Waits for a guest that reboots by itself. `greetings` is how many there were
    /// before.
    pub fn wait_for_reboot(&mut self, greetings: u32) -> Result<()> {
        self.greeting =
            self.starting()
                .wait_for_greeting(&self.agent, greetings + 1, "rebooted", || self.examine())?;
        if let Some(timeline) = &mut self.timeline {
            timeline.collect(&self.agent);
        }
        Ok(())
    }

    /// How often a guest has booted in this machine.
    pub fn boots(&self) -> u32 {
        self.agent.greetings()
    }

    /// Turns the guest off in good order, then ends the backends.
    pub fn shutdown(mut self) -> Result<()> {
        let mut timeline = self.timeline.take();
        if let Some(timeline) = &mut timeline {
            timeline.stop();
        }
        for backend in self.shutdown_guest()? {
            let name = backend.name().to_owned();
            let status = backend.end()?;
            if !status.success() {
                bail!("{name} {}", describe(status));
            }
        }
        Ok(())
    }

    /// Turns the guest off in good order; the backends run on.
    pub fn shutdown_guest(mut self) -> Result<Vec<Backend>> {
        if let Some(timeline) = &mut self.timeline {
            timeline.stop();
        }
        if self.agent.lost() != Some(Lost::Ended(Ending::PowerOff)) {
            // A guest that is gone says so below.
            let _ = self.agent.end(Ending::PowerOff);
        }
        let mut size = console_bytes(&self.logs);
        let mut quiet_since = Instant::now();
        while self.qemu.wait(LOOK_INTERVAL).is_none() {
            let now = console_bytes(&self.logs);
            if std::mem::replace(&mut size, now) != now {
                quiet_since = Instant::now();
            }
            if quiet_since.max(self.agent.heard()).elapsed() >= self.patience {
                self.examine();
                return Err(self
                    .starting()
                    .error(&silent("turned itself off", self.patience)));
            }
            if let Some(Lost::Broken(reason)) = self.agent.lost()
                && self.qemu.status().is_none()
            {
                return Err(self
                    .starting()
                    .error(&format!("the guest could not be turned off: {reason}")));
            }
        }
        match self.agent.lost() {
            Some(Lost::Ended(Ending::PowerOff)) | None => {}
            Some(lost) => return Err(self.broken(&lost, "turned itself off")),
        }
        if let Some(status) = self.qemu.status()
            && !status.success()
        {
            return Err(self.starting().error(&format!(
                "{} {} when its guest was off",
                qemu::PROGRAM,
                describe(status)
            )));
        }
        let backends = std::mem::take(&mut self.backends);
        for backend in &backends {
            backend.tell_nobody();
        }
        Ok(backends)
    }

    /// The error for a guest that went while it did something. `doing` goes on after
    /// "while it".
    pub fn broken(&self, lost: &Lost, doing: &str) -> anyhow::Error {
        self.starting().lost(lost, doing)
    }

    /// Writes down what the devices know of themselves, beside the guest's logs.
    pub fn write_device_states(&self) {
        for (index, backend) in self.backends.iter().enumerate() {
            for (what, ask) in [("state", Ask::State), ("metrics", Ask::Metrics)] {
                // One that does not answer has nothing to tell; its log has why.
                if let Ok(answer) = backend.control().ask(ask) {
                    let path = self.logs.join(format!("{what}{index}.json"));
                    let _ = fs::write(path, format!("{:#}\n", json!(answer)));
                }
            }
        }
    }

    /// Finds out about a guest that is given up.
    fn examine(&self) {
        self.write_device_states();
        examine(&self.qmp, self.dir.path(), &self.logs, &self.dump);
    }

    fn starting(&self) -> Starting<'_> {
        Starting {
            qemu: &self.qemu,
            backends: &self.backends,
            logs: &self.logs,
            patience: self.patience,
        }
    }
}

/// Names of a device and of the way to its backend, as in the machine.
fn device_id(index: u8) -> String {
    format!("dev{index}")
}

fn chardev_id(index: u8) -> String {
    format!("cdm{index}")
}

/// How to debug this guest.
fn debugger_line(spec: &VmSpec, run: &Path) -> String {
    let remote = format!("target remote {}", run.join("gdb.sock").display());
    let arguments = [
        spec.kernel.objects.join("vmlinux").display().to_string(),
        "-ex".to_owned(),
        remote,
    ];
    let waits = match spec.gdb {
        Some(Gdb::Wait) => "the guest waits for its 'continue'",
        _ => "the guest runs until it comes",
    };
    format!(
        "cdm: debug the guest with this command; {waits}:\n{}",
        qemu::shell_line("gdb", &arguments)
    )
}

fn silent(doing: &str, patience: Duration) -> String {
    format!(
        "the guest hangs: it said nothing for {} s while it {doing}; what its CPUs were doing is \
         at the end of console.log",
        patience.as_secs()
    )
}

/// What errors are made of.
struct Starting<'a> {
    qemu: &'a Process,
    backends: &'a [Backend],
    logs: &'a Path,
    patience: Duration,
}

impl Starting<'_> {
    /// Connects to what QEMU has just opened.
    fn connect(&self, run: &Path, dump: &Dump) -> Result<(Agent, Arc<Mutex<Qmp>>)> {
        let qmp = Qmp::connect(self.connect_to(&run.join("qmp.sock"))?)?;
        end::watch(
            Qmp::connect(self.connect_to(&run.join("end.sock"))?)?,
            dump.clone(),
        )?;
        let qmp = Arc::new(Mutex::new(qmp));
        let gate = RebootGate::new(Arc::clone(&qmp));
        let agent = Agent::new(
            self.connect_to(&run.join("agent.sock"))?,
            Box::new(move |notice| match notice {
                Notice::Greeted => gate.close(),
                Notice::Goodbye(Ending::Reboot) => gate.open(),
                Notice::Goodbye(Ending::PowerOff) => {}
            }),
        )?;
        Ok((agent, qmp))
    }

    fn connect_to(&self, socket: &Path) -> Result<UnixStream> {
        let deadline = Instant::now() + SOCKETS_TIMEOUT;
        loop {
            match UnixStream::connect(socket) {
                Ok(stream) => return Ok(stream),
                Err(_) if self.qemu.status().is_some() => {
                    return Err(self.error("QEMU refuses the machine"));
                }
                Err(_) if Instant::now() < deadline => thread::sleep(CONNECT_INTERVAL),
                Err(error) => {
                    return Err(self.error(&format!(
                        "cannot connect to QEMU at {}: {error}",
                        socket.display()
                    )));
                }
            }
        }
    }

    fn wait_for_greeting(
        &self,
        agent: &Agent,
        count: u32,
        doing: &str,
        report: impl Fn(),
    ) -> Result<Greeting> {
        let mut size = console_bytes(self.logs);
        let mut quiet_since = Instant::now();
        loop {
            match agent.greeting(count, LOOK_INTERVAL) {
                Some(Ok(greeting)) => return Ok(greeting),
                Some(Err(lost)) => return Err(self.lost(&lost, doing)),
                None => {}
            }
            let now = console_bytes(self.logs);
            if std::mem::replace(&mut size, now) != now {
                quiet_since = Instant::now();
            }
            if quiet_since.elapsed() >= self.patience {
                report();
                return Err(self.error(&silent(doing, self.patience)));
            }
        }
    }

    /// The error for a guest that went. The connection only knows that it is gone;
    /// the processes know why.
    fn lost(&self, lost: &Lost, doing: &str) -> anyhow::Error {
        let console = read_console(self.logs).unwrap_or_default();
        let panic = console
            .lines()
            .find_map(|line| line.split_once("Kernel panic - not syncing: "))
            .map(|(_, reason)| reason.trim_end());
        let dead_backend = self.backends.iter().find_map(|backend| {
            let status = backend.status()?;
            Some(format!("{} {}", backend.name(), describe(status)))
        });
        let reason = match (dead_backend, panic) {
            (Some(reason), _) => reason,
            (None, Some(panic)) => format!("its kernel panicked: {panic}"),
            (None, None) => match self.qemu.wait(QEMU_END_TIMEOUT) {
                Some(status) if status.success() => match lost {
                    Lost::Ended(_) => lost.to_string(),
                    Lost::Broken(_) => "it reset the machine without a word".to_owned(),
                },
                Some(status) => format!("{} {}", qemu::PROGRAM, describe(status)),
                None => lost.to_string(),
            },
        };
        self.error(&format!("the guest ended while it {doing}: {reason}"))
    }

    /// One message: what happened, QEMU's last words, the console's last lines, and
    /// where the logs are.
    fn error(&self, what: &str) -> anyhow::Error {
        let mut message = what.to_owned();
        let mut section = |title: &str, text: &str| {
            if !text.trim().is_empty() {
                message += &format!("\n{title}:\n");
                for line in text.lines() {
                    message += &format!("    {line}\n");
                }
                message.truncate(message.trim_end().len());
            }
        };
        let qemu = fs::read_to_string(self.qemu.log()).unwrap_or_default();
        section("QEMU said", &tail(&qemu, CONSOLE_LINES));
        let console = read_console(self.logs).unwrap_or_default();
        section(
            "the last lines of the guest's console",
            &tail(&console, CONSOLE_LINES),
        );
        let dump = fs::read_to_string(self.logs.join(dump::NOTE)).unwrap_or_default();
        section("its memory", &dump);
        message += &format!("\nall logs are in {}", self.logs.display());
        anyhow!(message)
    }
}

/// Lets a guest reset the machine when it said that it would. Everything else that
/// resets it is a crash and ends QEMU.
struct RebootGate {
    qmp: Arc<Mutex<Qmp>>,
    open: Arc<AtomicBool>,
}

impl RebootGate {
    /// Resets of one reboot: the kernel's, and a second one by the firmware, which
    /// makes sure of it. More would be a guest that crashes while it boots.
    const RESETS: u32 = 2;
    /// How long others wait for the control channel.
    const TURN: Duration = Duration::from_millis(50);

    fn new(qmp: Arc<Mutex<Qmp>>) -> Self {
        Self {
            qmp,
            open: Arc::default(),
        }
    }

    /// Resets are allowed until [`Self::close`], or until there were enough.
    fn open(&self) {
        if set_reboot_action(&mut lock(&self.qmp), "reset").is_err() {
            // QEMU is gone, and with it the guest.
            return;
        }
        self.open.store(true, Ordering::Release);
        let (qmp, open) = (Arc::clone(&self.qmp), Arc::clone(&self.open));
        thread::spawn(move || {
            let mut resets = 0;
            while resets < Self::RESETS && open.load(Ordering::Acquire) {
                match lock(&qmp).wait_event("RESET", Self::TURN) {
                    Ok(Some(_)) => resets += 1,
                    Ok(None) => {}
                    Err(_) => return,
                }
                // Whoever else waits for the channel gets it now.
                thread::yield_now();
            }
            open.store(false, Ordering::Release);
            // A QEMU that is gone resets nothing.
            let _ = set_reboot_action(&mut lock(&qmp), "shutdown");
        });
    }

    fn close(&self) {
        self.open.store(false, Ordering::Release);
    }
}

fn set_reboot_action(qmp: &mut Qmp, action: &str) -> Result<serde_json::Value> {
    qmp.execute("set-action", json!({ "reboot": action }))
}

/// Finds out about a guest that is given up: what it is doing, and what is in its memory.
fn examine(qmp: &Mutex<Qmp>, run: &Path, logs: &Path, dump: &Dump) {
    report_on_console(qmp, run, logs);
    dump.take(&mut lock(qmp));
}

/// Has a silent guest write to its console what its CPUs and blocked tasks do.
fn report_on_console(qmp: &Mutex<Qmp>, run: &Path, logs: &Path) {
    let taken = || read_console(logs).map_or(0, |log| log.matches("sysrq: ").count());
    for key in [b'l', b'w'] {
        let before = taken();
        // A machine that does not even answer has nothing to report.
        let _ = send_sysrq(&mut lock(qmp), &run.join("console.sock"), key);
        // QEMU's serial port does not know which character a break belongs to. A second one that
        // comes before the first key was taken would spoil both.
        let deadline = Instant::now() + KEY_TIMEOUT;
        while taken() == before && Instant::now() < deadline {
            thread::sleep(KEY_INTERVAL);
        }
        // And a guest that still writes its report loses it.
        await_end_of_report(logs);
    }
}

/// Waits until nothing comes to the console any more.
fn await_end_of_report(logs: &Path) {
    let started = Instant::now();
    let mut bytes = console_bytes(logs);
    let mut quiet_since = started;
    while quiet_since.elapsed() < REPORT_PAUSE && started.elapsed() < REPORT_TIMEOUT {
        thread::sleep(KEY_INTERVAL);
        let now = console_bytes(logs);
        if now != bytes {
            bytes = now;
            quiet_since = Instant::now();
        }
    }
}

fn read_console(logs: &Path) -> Result<String> {
    let path = logs.join("console.log");
    let bytes = fs::read(&path).with_context(|| format!("cannot read {}", path.display()))?;
    Ok(String::from_utf8_lossy(&bytes).into_owned())
}

fn console_bytes(logs: &Path) -> u64 {
    fs::metadata(logs.join("console.log")).map_or(0, |meta| meta.len())
}

fn lock<T>(mutex: &Mutex<T>) -> std::sync::MutexGuard<'_, T> {
    // A connection that a panic left in the middle of a line says so itself.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}
