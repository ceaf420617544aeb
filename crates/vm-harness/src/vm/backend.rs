// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The processes behind the devices.

use std::fs;
use std::os::unix::fs::FileTypeExt;
use std::path::{Path, PathBuf};
use std::process::{Command, ExitStatus};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread;
use std::time::{Duration, Instant};

use anyhow::{Result, bail};
use nix::sys::signal::Signal;

use super::control::Control;
use super::kernel_log::tail;
use super::process::{Process, describe};
use super::rundir::RunDir;
use super::spec::VmSpec;

/// A backend listens some milliseconds after its start; a host with every CPU taken
/// needs more, and beyond this something is wrong.
const LISTEN_TIMEOUT: Duration = Duration::from_secs(30);
/// Between two looks whether it listens: a boot waits for it.
const LISTEN_INTERVAL: Duration = Duration::from_millis(1);
/// A backend has nothing to finish when it is asked to end.
const END_TIMEOUT: Duration = Duration::from_secs(10);

/// Who hears of a backend's end.
type Listener = Box<dyn Fn(String) + Send>;

/// A backend that runs.
pub struct Backend {
    process: Process,
    socket: PathBuf,
    control: Control,
    listener: Arc<Mutex<Option<Listener>>>,
    /// Holds the socket.
    _dir: Arc<RunDir>,
}

/// Path of the socket of device `index` in a run's folder.
pub fn socket_path(run: &Path, index: u8) -> PathBuf {
    run.join(format!("cdm{index}.sock"))
}

/// Arguments of the backend program for device `index` of this machine.
pub fn arguments(spec: &VmSpec, index: u8, run: &Path, logs: &Path) -> Vec<String> {
    let path = |path: PathBuf| path.display().to_string();
    let mut arguments = vec![
        "--socket-path".to_owned(),
        path(socket_path(run, index)),
        "--memory-size".to_owned(),
        spec.device_memory.to_string(),
        "--command-queues".to_owned(),
        spec.command_queues().to_string(),
        "--control".to_owned(),
        path(Control::path_in(run, index)),
    ];
    for fault in &spec.faults {
        arguments.extend(["--fault".to_owned(), fault.to_string()]);
    }
    if let Some(model) = &spec.link_model {
        arguments.extend(["--link-model".to_owned(), model.clone()]);
    }
    if let Some(atomics) = &spec.atomics {
        arguments.extend(["--atomics".to_owned(), atomics.clone()]);
    }
    if spec.trace {
        let file = logs.join(format!("trace{index}.json"));
        arguments.extend(["--trace".to_owned(), path(file)]);
    }
    arguments
}

impl Backend {
    /// Starts a backend for every device of the machine, and waits until QEMU can
    /// connect to them.
    pub fn start_all(
        program: &Path,
        spec: &VmSpec,
        dir: &Arc<RunDir>,
        logs: &Path,
    ) -> Result<Vec<Self>> {
        let backends = (0..spec.devices)
            .map(|index| Self::start(program, spec, index, dir, logs))
            .collect::<Result<Vec<_>>>()?;
        for backend in &backends {
            backend.wait_until_it_listens()?;
        }
        Ok(backends)
    }

    /// Starts the backend of a device that is plugged, and waits until QEMU can connect to it.
    pub fn start_another(
        program: &Path,
        spec: &VmSpec,
        index: u8,
        dir: &Arc<RunDir>,
        logs: &Path,
    ) -> Result<Self> {
        let backend = Self::start(program, spec, index, dir, logs)?;
        backend.wait_until_it_listens()?;
        Ok(backend)
    }

    fn start(
        program: &Path,
        spec: &VmSpec,
        index: u8,
        dir: &Arc<RunDir>,
        logs: &Path,
    ) -> Result<Self> {
        let socket = socket_path(dir.path(), index);
        let name = format!("cdm-backend of device {index}");
        let listener: Arc<Mutex<Option<Listener>>> = Arc::default();
        let mut command = Command::new(program);
        command.args(arguments(spec, index, dir.path(), logs));
        let heard = Arc::clone(&listener);
        let said = name.clone();
        let on_exit = move |status| {
            let heard = heard.lock().unwrap_or_else(PoisonError::into_inner);
            if let Some(tell) = &*heard {
                tell(format!("{said} {}", describe(status)));
            }
        };
        let log = logs.join(format!("backend{index}.log"));
        Ok(Self {
            process: Process::start(&name, command, &log, on_exit)?,
            socket,
            control: Control::at(Control::path_in(dir.path(), index)),
            listener,
            _dir: Arc::clone(dir),
        })
    }

    fn wait_until_it_listens(&self) -> Result<()> {
        let deadline = Instant::now() + LISTEN_TIMEOUT;
        while !listens(&self.socket) {
            if let Some(status) = self.process.status() {
                bail!(
                    "{} {}: {}",
                    self.process.name(),
                    describe(status),
                    self.last_words()
                );
            }
            if Instant::now() >= deadline {
                bail!(
                    "{} does not listen after {} s; its log is {}",
                    self.process.name(),
                    LISTEN_TIMEOUT.as_secs(),
                    self.process.log().display()
                );
            }
            thread::sleep(LISTEN_INTERVAL);
        }
        Ok(())
    }

    /// The socket that QEMU connects to.
    pub fn socket(&self) -> &Path {
        &self.socket
    }

    /// Where it can be asked, and made to fail.
    pub fn control(&self) -> &Control {
        &self.control
    }

    /// Process number.
    pub fn pid(&self) -> u32 {
        self.process.pid()
    }

    /// What it is, for messages.
    pub fn name(&self) -> &str {
        self.process.name()
    }

    /// How it ended, if it has.
    pub fn status(&self) -> Option<ExitStatus> {
        self.process.status()
    }

    /// The last line of its log.
    pub fn last_words(&self) -> String {
        let log = fs::read_to_string(self.process.log()).unwrap_or_default();
        match tail(&log, 1) {
            line if line.is_empty() => "it said nothing".to_owned(),
            line => line,
        }
    }

    /// Has `listener` told of its end from now on. One that has ended already is
    /// told of at once, perhaps twice.
    pub fn tell(&self, listener: impl Fn(String) + Send + 'static) {
        let mut slot = self.listener.lock().unwrap_or_else(PoisonError::into_inner);
        // First the listener, then the look: an end in between is not missed.
        let listener = slot.insert(Box::new(listener));
        if let Some(status) = self.process.status() {
            listener(format!("{} {}", self.process.name(), describe(status)));
        }
    }

    /// Nobody is to be told of its end any more.
    pub fn tell_nobody(&self) {
        *self.listener.lock().unwrap_or_else(PoisonError::into_inner) = None;
    }

    /// Sends it a signal, unless it has ended.
    pub fn signal(&self, signal: Signal) {
        self.process.signal(signal);
    }

    /// Ends it as a service manager does, and gives its exit status.
    pub fn end(self) -> Result<ExitStatus> {
        self.tell_nobody();
        self.process.signal(Signal::SIGTERM);
        match self.process.wait(END_TIMEOUT) {
            Some(status) => Ok(status),
            None => bail!(
                "{} does not end on SIGTERM; it was killed, and its log is {}",
                self.process.name(),
                self.process.log().display()
            ),
        }
    }
}

/// Whether the backend takes connections. To connect and see would be a guest that
/// comes and goes; but the backend gives its socket this name only once it listens.
fn listens(socket: &Path) -> bool {
    fs::symlink_metadata(socket).is_ok_and(|file| file.file_type().is_socket())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::vm::testing;
    use std::os::unix::net::UnixListener;

    #[test]
    fn a_backend_is_ready_when_its_socket_has_its_name() {
        let dir = tempfile::tempdir().expect("temporary folder");
        let path = dir.path().join("x.sock");
        assert!(!listens(&path));
        let listener = UnixListener::bind(&path).expect("bound");
        assert!(listens(&path));
        drop(listener);
        fs::remove_file(&path).expect("removed");
        fs::write(&path, "").expect("written");
        assert!(!listens(&path), "that is no socket");
    }

    #[test]
    fn faults_link_model_atomics_and_trace_of_the_machine_are_those_of_each_backend() {
        let (run, logs) = (Path::new("/run/cdm"), Path::new("/logs"));
        let mut spec = testing::spec();
        let plain = arguments(&spec, 1, run, logs);
        let options = ["--fault", "--link-model", "--atomics", "--trace"];
        assert!(!plain.iter().any(|word| options.contains(&word.as_str())));
        spec.faults = vec!["drop,nth=5".parse().expect("a fault")];
        spec.link_model = Some("on".to_owned());
        spec.atomics = Some("exclusive".to_owned());
        spec.trace = true;
        let added = &arguments(&spec, 1, run, logs)[plain.len()..];
        assert_eq!(
            added,
            [
                "--fault",
                "drop,nth=5",
                "--link-model",
                "on",
                "--atomics",
                "exclusive",
                "--trace",
                "/logs/trace1.json"
            ]
        );
    }

    #[test]
    fn a_backend_that_cannot_start_is_reported_with_its_last_words() {
        let logs = tempfile::tempdir().expect("temporary folder");
        let script = logs.path().join("backend");
        testing::script(&script, "echo first >&2; echo 'no memory' >&2; exit 3");
        let dir = Arc::new(RunDir::create().expect("made"));
        let error = Backend::start_all(&script, &testing::spec(), &dir, logs.path())
            .err()
            .expect("it ends");
        assert_eq!(
            error.to_string(),
            "cdm-backend of device 0 ended with exit code 3: no memory"
        );
    }
}
