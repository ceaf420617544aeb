// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm run-vm`.

use std::fs;
use std::io::{self, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use anyhow::{Context as _, Result, ensure};
use cdm_agent_protocol::{Command, Ending, Exec, ModuleState};
use cdm_control_protocol::Fault;
use clap::Args;

use super::accel::AccelChoice;
use super::agent::{Event, Lost, Running};
use super::boot::{Commands, Parts, Vm, accelerator};
use super::disk::Disk;
use super::history::{self, History};
use super::limits::Limits;
use super::qemu;
use super::rundir::RunDir;
use super::shell::{LEFT, Outcome, StandardInput, exit_code, forward, login_shell, on_terminal};
use super::spec::{
    ByteSize, CPUS_MAX, DEVICES_MAX, FileCopy, Gdb, MemoryType, Rootfs, SILENT_GUEST_LIMIT, VmSpec,
    parse_device_memory, parse_guest_memory,
};
use super::terminal;
use crate::build::{self, KernelOptions};
use crate::context::Context;
use crate::evidence::{self, Guest};
use crate::runs;

/// Arguments of `cdm run-vm`.
#[derive(Debug, Args)]
#[command(after_help = "\
Examples:
  just run-vm
  just run-vm --devices 2 --device-memory 4G --share .
  just run-vm --exec 'cdmctl info --json'
  just run-vm --rootfs debian
  just run-vm --kernel ~/src/linux --gdb=wait")]
pub struct RunVmArgs {
    #[command(flatten)]
    kernel: KernelOptions,

    /// Give the machine NUM devices
    #[arg(long, value_name = "NUM", default_value_t = 1,
          value_parser = clap::value_parser!(u8).range(1..=i64::from(DEVICES_MAX)))]
    devices: u8,

    /// Memory of each device: a power of two from 256M to 64G
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_device_memory)]
    device_memory: ByteSize,

    /// Type of the device memory, or one for each device with commas [default: the best that
    /// the kernel has]
    #[arg(
        long = "memory-type",
        value_name = "TYPE",
        value_enum,
        value_delimiter = ','
    )]
    memory_types: Vec<MemoryType>,

    /// Memory of the guest
    #[arg(long, value_name = "SIZE", default_value = "1G", value_parser = parse_guest_memory)]
    memory: ByteSize,

    /// CPUs of the guest
    #[arg(long, value_name = "NUM", default_value_t = 2,
          value_parser = clap::value_parser!(u8).range(1..=i64::from(CPUS_MAX)))]
    smp: u8,

    /// Who runs the guest's instructions
    #[arg(long, value_name = "ACCEL", value_enum, default_value_t = AccelChoice::Auto)]
    accel: AccelChoice,

    /// Open a stub for gdb; with 'wait' the guest waits for it before it starts
    #[arg(long, value_name = "WHEN", value_enum, num_args = 0..=1, require_equals = true,
          default_missing_value = "run")]
    gdb: Option<Gdb>,

    /// Show the host's folder DIR at /host in the guest
    #[arg(long, value_name = "DIR")]
    share: Option<PathBuf>,

    /// Programs of the guest beside the project's own
    #[arg(long, value_name = "NAME", value_enum, default_value_t = Rootfs::Small)]
    rootfs: Rootfs,

    /// Copy a file or folder into the guest before it starts; repeatable
    #[arg(long = "file", value_name = "HOST:GUEST", value_hint = clap::ValueHint::AnyPath)]
    files: Vec<FileCopy>,

    /// Bring the kernel's own modules into the guest, for modprobe
    #[arg(long)]
    kernel_modules: bool,

    /// Give the guest a disk, /dev/vda and on, with a file system on it; repeatable
    #[arg(long = "disk", value_name = "KIND", value_enum)]
    disks: Vec<Disk>,

    /// Give the driver a parameter, such as altmap=0; repeatable
    #[arg(long = "module-param", value_name = "NAME=VALUE")]
    module_params: Vec<String>,

    /// Have each device fail on request from the start, such as drop,queue=2,nth=5; repeatable
    #[arg(long = "fault", value_name = "SPEC")]
    faults: Vec<Fault>,

    /// Have accesses of each device take simulated time: on, or such as on,link-ns=500
    #[arg(long, value_name = "MODEL")]
    link_model: Option<String>,

    /// How atomics of each device reach memory of the guest: link, or exclusive
    #[arg(long, value_name = "HOW")]
    atomics: Option<String>,

    /// Draw what the devices and the driver do on one time line, timeline.json beside the logs
    #[arg(long)]
    trace: bool,

    /// Run CMD instead of a shell: only its output on stdout, its exit status returned
    #[arg(long, value_name = "CMD")]
    exec: Option<String>,

    /// Give the command of --exec NUM seconds; then the guest is given up
    #[arg(long, value_name = "NUM", requires = "exec",
          value_parser = clap::value_parser!(u64).range(1..))]
    time_limit: Option<u64>,

    /// Give up a guest that has said nothing for NUM seconds
    #[arg(long, value_name = "NUM", default_value_t = SILENT_GUEST_LIMIT.as_secs(),
          value_parser = clap::value_parser!(u64).range(1..))]
    silence_limit: u64,

    /// Write the logs into DIR instead of the cache
    #[arg(long, value_name = "DIR")]
    keep_logs: Option<PathBuf>,

    /// Print the commands and run nothing
    #[arg(long)]
    dry_run: bool,
}

impl RunVmArgs {
    /// Whether its guest has a userland that `ci/just` makes.
    pub fn wants_rootfs(&self) -> bool {
        self.rootfs != Rootfs::Small
    }
}

/// `cdm run-vm`: boots a machine and gives a shell in it, or runs one command.
pub fn run_vm(ctx: &Context, args: RunVmArgs) -> Result<ExitCode> {
    let share = args.share.as_deref().map(shared_folder).transpose()?;
    // Before anything is built.
    args.rootfs.disk()?;
    for file in &args.files {
        ensure!(
            file.host.exists(),
            "--file: there is no {}",
            file.host.display()
        );
    }
    let kernel = build::kernel(ctx, &args.kernel.kernel, args.kernel.build)?;
    if args.memory_types.contains(&MemoryType::Public) {
        let config = fs::read_to_string(&kernel.config)
            .with_context(|| format!("cannot read {}", kernel.config.display()))?;
        ensure!(
            config.lines().any(|line| line == "CONFIG_DEVICE_PUBLIC=y"),
            "the kernel '{}' has no MEMORY_DEVICE_PUBLIC; use --memory-type coherent, or leave \
             the choice to the driver",
            kernel.choice
        );
    }
    let mut files = args.files;
    if args.exec.is_none() && terminal::is_interactive() {
        files.extend(history::shell_files(ctx, args.rootfs));
    }
    if args.kernel_modules {
        files.push(FileCopy::kernel_modules(ctx, &kernel)?);
    }
    let spec = VmSpec {
        devices: args.devices,
        device_memory: args.device_memory,
        memory: args.memory,
        smp: args.smp,
        accel: args.accel,
        memory_types: args.memory_types,
        module_params: args.module_params,
        disks: args.disks,
        share,
        rootfs: args.rootfs,
        files,
        gdb: args.gdb,
        faults: args.faults,
        link_model: args.link_model,
        atomics: args.atomics,
        trace: args.trace,
        patience: Duration::from_secs(args.silence_limit),
        ..VmSpec::new(kernel)
    };
    if args.dry_run {
        return dry_run(ctx, &spec);
    }
    let logs = runs::folder(ctx, runs::GUESTS, args.keep_logs.as_deref())?;
    let machine = Machine {
        ctx,
        logs: &logs,
        spec: &spec,
    };
    let ended = match args.exec {
        Some(line) => machine.exec(line, args.time_limit.map(Duration::from_secs)),
        None => machine.shell(),
    };
    if ended.is_err() {
        machine.keep_evidence();
    }
    ended
}

/// The line that does this again.
fn repeat_line() -> String {
    let arguments: Vec<String> = std::env::args().skip(1).collect();
    qemu::shell_line("ci/just", &arguments)
}

fn shared_folder(path: &Path) -> Result<PathBuf> {
    let path = path
        .canonicalize()
        .with_context(|| format!("--share: cannot find {}", path.display()))?;
    ensure!(path.is_dir(), "--share: {} is not a folder", path.display());
    Ok(path)
}

/// Prints commands that a shell takes, one a line.
fn dry_run(ctx: &Context, spec: &VmSpec) -> Result<ExitCode> {
    let parts = Parts::build(ctx, &spec.kernel)?;
    let accel = accelerator(ctx, spec)?;
    let run = std::env::temp_dir().join("cdm-by-hand");
    let commands = Commands::plan(ctx, spec, &parts, accel, &run, &run)?;
    let mut lines = vec![qemu::shell_line(
        "mkdir",
        &["-p".to_owned(), run.display().to_string()],
    )];
    if spec.has_files() {
        lines.push(format!(
            "# {}/initramfs.cpio is {} with an archive behind it: files of --file, modules",
            run.display(),
            parts.initramfs.display()
        ));
    }
    lines.extend(commands.backends.iter().map(|line| format!("{line} &")));
    lines.push(qemu::shell_line(qemu::PROGRAM, &commands.qemu));
    print_all(&(lines.join("\n") + "\n"))?;
    Ok(ExitCode::SUCCESS)
}

fn print_all(text: &str) -> Result<()> {
    match io::stdout().write_all(text.as_bytes()) {
        // Whoever closed the pipe has read enough.
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result.context("cannot write to standard output"),
    }
}

struct Machine<'a> {
    ctx: &'a Context,
    logs: &'a Path,
    spec: &'a VmSpec,
}

impl Machine<'_> {
    fn boot(&self) -> Result<Vm> {
        let vm = Vm::boot(self.ctx, self.spec, self.logs)?;
        if let ModuleState::Failed(reason) = &vm.greeting().module {
            self.ctx.progress.say(format!(
                "cdm: THE DRIVER IS NOT LOADED: {reason}; the kernel's reason is in {}",
                self.logs.join("console.log").display()
            ));
        }
        vm.open_door()?;
        Ok(vm)
    }

    /// Puts beside the logs what helps to find out why it went wrong.
    fn keep_evidence(&self) {
        let repeat = repeat_line();
        let guest = Guest {
            logs: self.logs,
            kernel: &self.spec.kernel,
            ctx: self.ctx,
        };
        if let Err(error) = evidence::beside_logs(guest, &repeat) {
            // The error itself is told in any case.
            self.ctx.progress.say(format!("cdm: {error:#}"));
        }
        self.ctx.progress.say(format!("repeat: {repeat}"));
    }

    /// `--exec`: the command's output and status, and nothing else on stdout.
    fn exec(&self, line: String, limit: Option<Duration>) -> Result<ExitCode> {
        let vm = self.boot()?;
        let mut running = vm.start(Exec {
            command: Command::Shell(line.clone()),
            tty: None,
            env: Vec::new(),
            cwd: None,
        })?;
        StandardInput::new(false).connect(running.input());
        let clock = Limits {
            silence: None,
            whole: limit,
        };
        let clock = clock.start();
        let status = match forward(&mut running, |running| {
            vm.next_event(running, &clock, &line)
        })? {
            Outcome::Exit(status) => status,
            Outcome::Lost(lost) => return Err(vm.broken(&lost, &format!("ran '{line}'"))),
        };
        vm.shutdown()?;
        Ok(exit_code(status))
    }

    /// A shell on the user's terminal, or one that reads its commands from a pipe.
    fn shell(&self) -> Result<ExitCode> {
        let mut vm = self.boot()?;
        let interactive = terminal::is_interactive();
        let keys = StandardInput::new(interactive);
        loop {
            let greetings = vm.boots();
            let outcome = match interactive {
                true => interactive_shell(self.ctx, &vm, &keys)?,
                false => {
                    let mut running = vm.start(login_shell(None))?;
                    keys.connect(running.input());
                    forward(&mut running, next_of_a_shell(&vm))?
                }
            };
            match outcome {
                Outcome::Exit(status) => {
                    vm.shutdown()?;
                    // The last command's status of somebody who typed is no result.
                    return Ok(match interactive {
                        true => ExitCode::SUCCESS,
                        false => exit_code(status),
                    });
                }
                Outcome::Lost(Lost::Ended(Ending::PowerOff)) => {
                    vm.shutdown()?;
                    return Ok(ExitCode::SUCCESS);
                }
                Outcome::Lost(Lost::Ended(Ending::Reboot)) => {
                    self.ctx.progress.say("cdm: the guest reboots");
                    vm.wait_for_reboot(greetings)?;
                }
                Outcome::Lost(Lost::Broken(reason)) if reason == LEFT => {
                    self.ctx.progress.say("cdm: left; the machine is gone");
                    return Ok(ExitCode::SUCCESS);
                }
                Outcome::Lost(lost) => return Err(vm.broken(&lost, "ran a shell")),
            }
        }
    }
}

fn interactive_shell(ctx: &Context, vm: &Vm, keys: &StandardInput) -> Result<Outcome> {
    let history = History::of(ctx).attach(vm)?;
    let running = vm.start(login_shell(Some(terminal::size())))?;
    eprintln!(
        "cdm: a shell in the guest {}. 'exit' or Ctrl-D turns it off, Ctrl-] ends it at once; \
         'just shell' opens another one. Logs: {}",
        RunDir::name_of(vm.run_dir()),
        vm.logs().display()
    );
    let outcome = on_terminal(running, keys, next_of_a_shell(vm))?;
    if matches!(outcome, Outcome::Exit(_)) {
        history.finish(vm)?;
    }
    Ok(outcome)
}

/// What a shell is waited for with.
fn next_of_a_shell(vm: &Vm) -> impl FnMut(&mut Running) -> Result<Event> {
    let clock = Limits::NONE.start();
    move |running| vm.next_event(running, &clock, "a shell")
}
