// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The guest's first process: it prepares the system, loads the driver, keeps the
//! agent alive, buries orphans, and ends the machine in good order.
//!
//! The kernel panics when this process ends, so nothing here may panic and every
//! failure is a line in the kernel log. The agent, which does the work that could
//! go wrong, is a child.
//!
//! Signals are those that busybox's `reboot`, `poweroff` and `halt` send.

pub mod cmdline;
mod kmsg;
mod module;
mod mounts;
mod root;
mod shutdown;
mod system;

use std::io::Write;
use std::os::unix::process::CommandExt;
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::Duration;

use cdm_agent_protocol::{Ending, ModuleState};
use nix::sys::signal::{SigSet, Signal};
use nix::sys::wait::{WaitPidFlag, WaitStatus, waitpid};

pub(crate) use kmsg::log;

/// First argument that makes `cdm-init` the agent.
pub const AGENT_ARGUMENT: &str = "agent";
/// Variable that tells the agent what became of the driver module; absent means
/// loaded.
pub const MODULE_VARIABLE: &str = "CDM_MODULE";
/// Value of [`MODULE_VARIABLE`] for a module that nobody wants.
pub const MODULE_NOT_WANTED: &str = "not-wanted";

/// What every process of the guest finds in its environment.
const ENVIRONMENT: [(&str, &str); 4] = [
    ("PATH", "/usr/bin:/usr/sbin:/bin:/sbin"),
    ("HOME", "/root"),
    ("SHELL", "/bin/sh"),
    ("TERM", "linux"),
];

/// An agent that keeps dying has a reason that starting it again does not mend.
const AGENT_STARTS_MAX: u32 = 5;
/// Between the death of an agent and the next: a fault that repeats must not fill
/// the kernel log.
const AGENT_RESTART_PAUSE: Duration = Duration::from_millis(200);

/// Runs the guest. Never returns, since process 1 must not.
pub fn run() -> ! {
    std::panic::set_hook(Box::new(|panic| {
        log(&format!("bug, turning the machine off: {panic}"));
        shutdown::end_now(Ending::PowerOff)
    }));

    // Before the first child: a signal that comes early waits for its turn.
    let mut signals = SigSet::empty();
    for signal in [
        Signal::SIGCHLD,
        Signal::SIGTERM,
        Signal::SIGINT,
        Signal::SIGUSR1,
        Signal::SIGUSR2,
    ] {
        signals.add(signal);
    }
    if let Err(error) = signals.thread_block() {
        log(&format!("cannot block signals: {error}"));
    }

    mounts::mount_all();
    system::prepare();
    if let Err(error) = root::hand_over() {
        // A guest with other programs than asked for would mislead whoever asked.
        log(&format!("{error}; turning the machine off"));
        shutdown::end_now(Ending::PowerOff);
    }
    let module = module::load();
    let mut agent = Agent::start(&module);

    loop {
        let ending = match signals.wait() {
            Ok(Signal::SIGCHLD) => None,
            Ok(Signal::SIGUSR1 | Signal::SIGUSR2) => Some(Ending::PowerOff),
            Ok(_) => Some(Ending::Reboot),
            Err(error) => {
                log(&format!("cannot wait for signals: {error}"));
                std::thread::sleep(AGENT_RESTART_PAUSE);
                None
            }
        };
        match ending {
            Some(ending) => {
                agent.announce(ending);
                shutdown::end(ending, &mut || agent.reap());
            }
            None => {
                if agent.reap() {
                    agent.restart(&module);
                }
            }
        }
    }
}

/// The agent process and the pipe that tells it how the guest is about to end.
struct Agent {
    child: Option<(Child, ChildStdin)>,
    starts: u32,
}

impl Agent {
    fn start(module: &ModuleState) -> Self {
        let mut agent = Self {
            child: None,
            starts: 0,
        };
        agent.restart(module);
        agent
    }

    fn restart(&mut self, module: &ModuleState) {
        if self.starts == AGENT_STARTS_MAX {
            log("the agent died too often; it is not started again");
            return;
        }
        if self.starts > 0 {
            log("the agent died; starting it again");
            std::thread::sleep(AGENT_RESTART_PAUSE);
        }
        self.starts += 1;
        match spawn(module) {
            Ok(child) => self.child = Some(child),
            Err(error) => log(&format!("cannot start the agent: {error}")),
        }
    }

    /// Buries every child that died. True if the agent was among them.
    fn reap(&mut self) -> bool {
        let mut agent_died = false;
        loop {
            match waitpid(None, Some(WaitPidFlag::WNOHANG)) {
                Ok(WaitStatus::StillAlive) | Err(_) => return agent_died,
                Ok(status) => {
                    let agent = self.child.as_ref().map(|(child, _)| child.id() as i32);
                    if status.pid().map(nix::unistd::Pid::as_raw) == agent {
                        self.child = None;
                        agent_died = true;
                    }
                }
            }
        }
    }

    /// Tells the agent how the guest ends. It says so to the host and exits.
    fn announce(&mut self, ending: Ending) {
        if let Some((_, pipe)) = &mut self.child
            && let Err(error) = pipe.write_all(&[crate::agent::announcement(ending)])
        {
            log(&format!("cannot tell the agent: {error}"));
        }
    }
}

fn spawn(module: &ModuleState) -> std::io::Result<(Child, ChildStdin)> {
    let mut command = Command::new("/proc/self/exe");
    command
        .arg0("cdm-agent")
        .arg(AGENT_ARGUMENT)
        .env_clear()
        .envs(ENVIRONMENT)
        .stdin(Stdio::piped());
    match module {
        ModuleState::Loaded => {}
        ModuleState::NotWanted => {
            command.env(MODULE_VARIABLE, MODULE_NOT_WANTED);
        }
        ModuleState::Failed(reason) => {
            command.env(MODULE_VARIABLE, reason);
        }
    }
    // SAFETY: between fork and exec the closure only calls sigprocmask(2), which
    // is async-signal-safe.
    unsafe { command.pre_exec(|| Ok(SigSet::empty().thread_set_mask()?)) };
    let mut child = command.spawn()?;
    let pipe = child.stdin.take().ok_or(std::io::ErrorKind::BrokenPipe)?;
    Ok((child, pipe))
}
