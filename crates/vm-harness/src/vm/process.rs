// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Processes of a machine: in groups of their own, with their output in a log, and
//! gone whenever this process is, however it ends.

use std::fs::File;
use std::io;
use std::os::unix::process::{CommandExt, ExitStatusExt};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, ExitStatus, Stdio};
use std::sync::mpsc::{Sender, channel};
use std::sync::{Arc, Condvar, LazyLock, Mutex, MutexGuard, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Context as _, Result};
use nix::sys::prctl;
use nix::sys::signal::{SigSet, Signal, killpg};
use nix::sys::wait::{Id, WaitPidFlag, waitid};
use nix::unistd::{Pid, getpid, getppid};

use super::cleanup;

/// A process that was started here. Dropping it kills it and its group.
#[derive(Debug)]
pub struct Process {
    name: String,
    log: PathBuf,
    shared: Arc<Shared>,
}

#[derive(Debug)]
struct Shared {
    group: Pid,
    /// How it ended. The process is not reaped while this is locked and empty, so
    /// a signal sent then cannot reach somebody else.
    status: Mutex<Option<ExitStatus>>,
    ended: Condvar,
}

impl Process {
    /// Starts `command` with its output in the file `log`. `on_exit` hears of its
    /// end, whoever caused it.
    pub fn start(
        name: &str,
        mut command: Command,
        log: &Path,
        on_exit: impl FnOnce(ExitStatus) + Send + 'static,
    ) -> Result<Self> {
        let program = command.get_program().display().to_string();
        let output =
            File::create(log).with_context(|| format!("cannot create {}", log.display()))?;
        command
            .stdin(Stdio::null())
            .stdout(output.try_clone()?)
            .stderr(output);
        let child = spawn(command).with_context(|| format!("cannot start {program}"))?;
        let group = Pid::from_raw(child.id() as i32);
        let shared = Arc::new(Shared {
            group,
            status: Mutex::new(None),
            ended: Condvar::new(),
        });
        cleanup::add_group(group);
        let waiter = Arc::clone(&shared);
        thread::spawn(move || on_exit(waiter.wait_for_end(child)));
        Ok(Self {
            name: name.to_owned(),
            log: log.to_owned(),
            shared,
        })
    }

    /// What it is, for messages.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// Where its output goes.
    pub fn log(&self) -> &Path {
        &self.log
    }

    /// Its process number.
    pub fn pid(&self) -> u32 {
        self.shared.group.as_raw() as u32
    }

    /// How it ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        *lock(&self.shared.status)
    }

    /// Waits for its end, at most for `timeout`.
    pub fn wait(&self, timeout: Duration) -> Option<ExitStatus> {
        let deadline = Instant::now() + timeout;
        let mut status = lock(&self.shared.status);
        while status.is_none() {
            let left = deadline.saturating_duration_since(Instant::now());
            if left.is_zero() {
                break;
            }
            status = self
                .shared
                .ended
                .wait_timeout(status, left)
                .unwrap_or_else(PoisonError::into_inner)
                .0;
        }
        *status
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        let status = lock(&self.shared.status);
        if status.is_none() {
            // The group exists as long as its leader is not reaped.
            let _ = killpg(self.shared.group, signal);
        }
    }
}

impl Drop for Process {
    fn drop(&mut self) {
        self.signal(Signal::SIGKILL);
        let mut status = lock(&self.shared.status);
        while status.is_none() {
            status = self
                .shared
                .ended
                .wait(status)
                .unwrap_or_else(PoisonError::into_inner);
        }
    }
}

impl Shared {
    fn wait_for_end(&self, mut child: Child) -> ExitStatus {
        let flags = WaitPidFlag::WEXITED | WaitPidFlag::WNOWAIT;
        while waitid(Id::Pid(self.group), flags) == Err(nix::errno::Errno::EINTR) {}
        let mut status = lock(&self.status);
        // What the process left behind in its group ends with it.
        let _ = killpg(self.group, Signal::SIGKILL);
        let ended = child
            .wait()
            .unwrap_or_else(|_| ExitStatus::from_raw(Signal::SIGKILL as i32));
        cleanup::remove_group(self.group);
        *status = Some(ended);
        self.ended.notify_all();
        ended
    }
}

/// A way to say how a process ended.
pub fn describe(status: ExitStatus) -> String {
    match (status.code(), status.signal()) {
        (Some(code), _) => format!("ended with exit code {code}"),
        (None, Some(signal)) => match Signal::try_from(signal) {
            Ok(signal) => format!("was killed by {signal}"),
            Err(_) => format!("was killed by signal {signal}"),
        },
        (None, None) => "ended".to_owned(),
    }
}

type Request = (Command, Sender<io::Result<Child>>);

/// Linux ties PR_SET_PDEATHSIG to the thread that forks, so children are forked by
/// a thread that lives as long as the process.
static SPAWNER: LazyLock<Sender<Request>> = LazyLock::new(|| {
    let (requests, inbox) = channel::<Request>();
    thread::Builder::new()
        .name("spawner".to_owned())
        .spawn(move || {
            for (mut command, answer) in inbox {
                // The asker waits for the answer and is there.
                let _ = answer.send(command.spawn());
            }
        })
        .expect("the first thread of a process can be started");
    requests
});

fn spawn(mut command: Command) -> io::Result<Child> {
    cleanup::install();
    let parent = getpid();
    command.process_group(0);
    let prepare = move || {
        prctl::set_pdeathsig(Signal::SIGKILL)?;
        // The parent may have died before the call.
        if getppid() != parent {
            return Err(io::Error::from(io::ErrorKind::BrokenPipe));
        }
        SigSet::empty().thread_set_mask()?;
        Ok(())
    };
    // SAFETY: between fork and exec the closure makes system calls only, all of them
    // async-signal-safe, and allocates nothing.
    unsafe { command.pre_exec(prepare) };
    let (answer, result) = channel();
    SPAWNER
        .send((command, answer))
        .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?;
    result
        .recv()
        .map_err(|_| io::Error::from(io::ErrorKind::BrokenPipe))?
}

fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    // Plain data: a panic elsewhere cannot have left it half changed.
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::fs;

    /// A local process does anything it is asked within this time.
    const PATIENCE: Duration = Duration::from_secs(20);

    fn shell(line: &str) -> Command {
        let mut command = Command::new("sh");
        command.args(["-c", line]);
        command
    }

    fn exists(pid: u32) -> bool {
        Path::new("/proc").join(pid.to_string()).exists()
    }

    #[test]
    fn output_is_in_the_log_and_the_end_is_heard_of() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let log = dir.path().join("log");
        let (said, heard) = channel();
        let process = Process::start(
            "x",
            shell("echo out; echo err >&2; exit 3"),
            &log,
            move |status| {
                said.send(status).expect("the test listens");
            },
        )
        .expect("started");
        assert_eq!(process.wait(PATIENCE).and_then(|s| s.code()), Some(3));
        assert_eq!(heard.recv_timeout(PATIENCE).expect("heard").code(), Some(3));
        assert_eq!(fs::read_to_string(&log).expect("a log"), "out\nerr\n");
    }

    #[test]
    fn dropping_a_process_kills_its_whole_group() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let log = dir.path().join("log");
        let process = Process::start("x", shell("sleep 1000 & echo $!; wait"), &log, |_| {})
            .expect("started");
        let deadline = Instant::now() + PATIENCE;
        let child: u32 = loop {
            if let Ok(pid) = fs::read_to_string(&log).expect("a log").trim().parse() {
                break pid;
            }
            assert!(Instant::now() < deadline, "the shell said nothing");
            thread::sleep(Duration::from_millis(5));
        };
        let leader = process.pid();
        drop(process);
        assert!(!exists(leader), "the leader is still there");
        // An orphan is buried by somebody else, in a moment.
        while fs::read_to_string(format!("/proc/{child}/stat"))
            .is_ok_and(|stat| !stat.contains(") Z"))
        {
            assert!(Instant::now() < deadline, "the child is still there");
            thread::sleep(Duration::from_millis(5));
        }
    }

    #[test]
    fn a_program_that_is_not_there_is_named() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let error = Process::start(
            "x",
            Command::new("/no/such/program"),
            &dir.path().join("log"),
            |_| {},
        )
        .expect_err("no such program");
        assert!(
            format!("{error:#}").contains("/no/such/program"),
            "{error:#}"
        );
    }

    #[test]
    fn a_child_outlives_the_thread_that_asked_for_it() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let log = dir.path().join("log");
        let process = thread::spawn(move || {
            Process::start("x", shell("sleep 1000"), &log, |_| {}).expect("started")
        })
        .join()
        .expect("no panic");
        assert_eq!(process.wait(Duration::from_millis(200)), None);
    }

    #[test]
    fn an_end_is_told_in_words() {
        assert_eq!(
            describe(ExitStatus::from_raw(2 << 8)),
            "ended with exit code 2"
        );
        assert_eq!(describe(ExitStatus::from_raw(9)), "was killed by SIGKILL");
    }
}
