// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From the command line to the exit code.

use super::handed_socket::{ClaimedSocket, HandedSocketError};
use super::observer::Observer;
use super::path_socket::{self, PathSocketError, Place, SocketFile};
use super::serve::{ServeError, Source, serve};
use super::stop::Stop;
use super::{Arguments, ExitCode, capabilities, control_socket, logging, metrics};
use crate::fault::{Faults, SetError};
use crate::model::{Device, PoolError};
use crate::sandbox::{Enclosure, Role};
use crate::telemetry::{Telemetry, Trace, TraceFile};
use crate::vhost::{Bell, Parts};
use cdm_protocol::QUEUE_FIRST_COMMAND;
use clap::Parser;
use nix::sys::signal::SigSet;
use nix::sys::signal::Signal::{SIGINT, SIGTERM};
use std::io;
use std::os::unix::net::UnixListener;
use std::path::{Path, PathBuf};
use std::rc::Rc;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tokio::task::LocalSet;
use tracing::{info, warn};
use vhost::vhost_user::Listener;

/// Time for the workers to end after a signal. A frontend that does not answer must not
/// keep the process: the end of the process ends them too.
const SHUTDOWN_TIMEOUT: Duration = Duration::from_secs(2);

/// Why the backend could not start.
#[derive(Debug, thiserror::Error)]
enum StartError {
    #[error(transparent)]
    Pool(#[from] PoolError),
    #[error(transparent)]
    PathSocket(#[from] PathSocketError),
    #[error(transparent)]
    HandedSocket(#[from] HandedSocketError),
    #[error("--fault: {0}")]
    Fault(#[from] SetError),
    #[error("cannot write to {}: {source}; choose another --trace", .path.display())]
    Trace { path: PathBuf, source: io::Error },
    #[error("cannot set up {what}: {source}")]
    Setup {
        what: &'static str,
        source: io::Error,
    },
}

/// Runs the program.
pub fn run() -> ExitCode {
    let arguments = match Arguments::try_parse() {
        Ok(arguments) => arguments,
        Err(error) => {
            // Help and version come here too, as errors that go to stdout.
            let _ = error.print();
            return if error.use_stderr() {
                ExitCode::Usage
            } else {
                ExitCode::Done
            };
        }
    };
    if arguments.print_capabilities {
        return print_capabilities();
    }
    if let Err(error) = logging::start(arguments.log_format) {
        eprintln!("cdm-backend: {error}");
        return ExitCode::Usage;
    }
    match start(&arguments) {
        Err(error) => {
            eprintln!("cdm-backend: {error}");
            ExitCode::CannotStart
        }
        Ok(Err(error)) => {
            eprintln!("cdm-backend: {error}");
            ExitCode::Failed
        }
        Ok(Ok(())) => ExitCode::Done,
    }
}

fn print_capabilities() -> ExitCode {
    match capabilities::to_json() {
        Ok(json) => {
            println!("{json}");
            ExitCode::Done
        }
        Err(error) => {
            eprintln!("cdm-backend: cannot print capabilities: {error}");
            ExitCode::Failed
        }
    }
}

/// Starts and serves; the outer error is one of starting.
fn start(arguments: &Arguments) -> Result<Result<(), ServeError>, StartError> {
    let setup = |what| move |source| StartError::Setup { what, source };
    // First of all, while no descriptor of our own can have the number of --fd.
    let claimed = match arguments.fd {
        // SAFETY: the descriptor was inherited for us by the caller's word (--fd), and nothing in
        // this process has opened a descriptor yet.
        Some(fd) => Some(unsafe { ClaimedSocket::claim(fd) }?),
        None => None,
    };
    let runtime = tokio::runtime::Builder::new_current_thread()
        .enable_all()
        .build()
        .map_err(setup("the async runtime"))?;
    // Before the socket shows that we are there: from then on a signal must find us ready.
    let signals = {
        let _context = runtime.enter();
        Signals::new().map_err(setup("signal handlers"))?
    };
    // Before the memory: a frontend that connects now waits in the backlog. The files are kept
    // here and not with the listeners: they go even if a worker does not end.
    // The frontends' comes last: who sees it finds the others there.
    let (clients, client_file) = listen("--control", arguments.control.as_deref())?;
    let scrapers = match arguments.metrics_listen {
        Some(address) => Some(metrics::listen(address).map_err(setup("--metrics-listen"))?),
        None => None,
    };
    let (frontends, frontend_file) = listen("--socket-path", arguments.socket_path.as_deref())?;
    let trace_file = match &arguments.trace {
        Some(path) => Some(TraceFile::create(path).map_err(|source| StartError::Trace {
            path: path.clone(),
            source,
        })?),
        None => None,
    };
    let files = [&frontend_file, &client_file];
    let folders: Vec<_> = files
        .into_iter()
        .flatten()
        .map(SocketFile::folder)
        .collect();
    // Nothing has started a thread so far, and from here on nothing is opened by name.
    let enclosure = Enclosure::enter(arguments.sandbox, &folders);
    let device = Arc::new(Device::new(&arguments.shape())?);
    let num_queues = QUEUE_FIRST_COMMAND + arguments.command_queues;
    let faults = Arc::new(Faults::new(device.clone()));
    for fault in &arguments.faults {
        faults.set(fault.clone())?;
    }
    let stop = Arc::new(Stop::new().map_err(setup("an eventfd"))?);
    let (sandbox, report) = enclosure.close();
    report.log();
    let trace = match trace_file {
        Some(file) => Some(
            Trace::start(file, num_queues, sandbox.clone()).map_err(setup("the trace's thread"))?,
        ),
        None => None,
    };
    let source = match (frontends, claimed) {
        (_, Some(socket)) => Source::Handed(socket.start(&sandbox)?),
        (Some(listener), None) => Source::Path(Listener::from(listener)),
        // clap's group allows nothing else but --print-capabilities, which is done.
        (None, None) => return Ok(Ok(())),
    };
    info!(
        memory = %arguments.memory_size,
        command_queues = arguments.command_queues,
        atomics = ?arguments.atomics,
        "the device is ready"
    );
    let parts = Parts {
        telemetry: Arc::new(Telemetry::new(num_queues, device.clone(), trace)),
        device,
        bell: Bell::default(),
        faults,
        sandbox,
    };
    let telemetry = parts.telemetry.clone();
    let local = LocalSet::new();
    let observer = Rc::new(Observer::new(parts.clone()));
    if let Some(clients) = clients {
        local.spawn_local(or_warn(control_socket::serve(clients, observer.clone())));
    }
    if let Some(scrapers) = scrapers {
        local.spawn_local(or_warn(metrics::serve(scrapers, observer)));
    }
    let result = local.block_on(&runtime, supervise(parts, source, stop, signals));
    telemetry.finish();
    result
}

/// A socket at a path, and its file.
fn listen(
    option: &'static str,
    path: Option<&Path>,
) -> Result<(Option<UnixListener>, Option<SocketFile>), PathSocketError> {
    let Some(path) = path else {
        return Ok((None, None));
    };
    let path = path.to_owned();
    let (listener, file) = path_socket::listen(&Place { option, path })?;
    Ok((Some(listener), Some(file)))
}

/// What is seen from outside may be lost; the device goes on.
async fn or_warn(service: impl Future<Output = io::Result<()>>) {
    if let Err(error) = service.await {
        warn!(%error, "nobody can look from outside any more");
    }
}

/// The signals that end the program. They are the main thread's: a handler runs in the thread that
/// the kernel chooses, and what it does is in no other thread's list of system calls.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Handles them from now on, but none arrives before [`Self::let_in`]: threads that start
    /// until then never get one.
    fn new() -> io::Result<Self> {
        Self::all().thread_block()?;
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
    }

    /// This thread takes them, those that wait as well.
    fn let_in(&self) -> io::Result<()> {
        Ok(Self::all().thread_unblock()?)
    }

    fn all() -> SigSet {
        SigSet::from_iter([SIGTERM, SIGINT])
    }

    /// Waits for one, and names it.
    async fn next(&mut self) -> &'static str {
        tokio::select! {
            _ = self.terminate.recv() => "SIGTERM",
            _ = self.interrupt.recv() => "SIGINT",
        }
    }
}

/// Watches for signals while a thread serves.
async fn supervise(
    parts: Parts,
    source: Source,
    stop: Arc<Stop>,
    mut signals: Signals,
) -> Result<Result<(), ServeError>, StartError> {
    let setup = |what| move |source| StartError::Setup { what, source };
    let (done, mut served) = oneshot::channel();
    let server_stop = stop.clone();
    let sandbox = parts.sandbox.clone();
    thread::Builder::new()
        .name("serve".to_owned())
        .spawn(move || {
            parts.sandbox.enter(Role::Serve);
            // Nobody listens any more only if the process is about to end anyway.
            let _ = done.send(serve(&parts, source, &server_stop));
        })
        .map_err(setup("the serving thread"))?;
    sandbox.enter(Role::Main);
    signals.let_in().map_err(setup("the signals"))?;

    let name = tokio::select! {
        result = &mut served => return Ok(result.unwrap_or_else(|_| server_panicked())),
        name = signals.next() => name,
    };
    info!(signal = name, "ending");
    stop.request();
    match tokio::time::timeout(SHUTDOWN_TIMEOUT, served).await {
        Ok(Ok(result)) => Ok(result),
        Ok(Err(_)) => Ok(server_panicked()),
        Err(_) => {
            warn!("a worker still waits for the frontend; ending without it");
            Ok(Ok(()))
        }
    }
}

fn server_panicked() -> Result<(), ServeError> {
    let text = "the serving thread panicked; this is a bug in cdm-backend";
    Err(ServeError::Wait(io::Error::other(text)))
}
