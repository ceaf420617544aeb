// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From the command line to the exit code.

use super::handed_socket::{ClaimedSocket, HandedSocketError};
use super::path_socket::{self, PathSocketError, Place};
use super::serve::{ServeError, Source, serve};
use super::stop::Stop;
use super::{Arguments, ExitCode, capabilities, logging};
use crate::model::{Device, PoolError};
use crate::sandbox::{Enclosure, Role, Sandbox};
use clap::Parser;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
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
    // Before the memory: a frontend that connects now waits in the backlog. The file is kept here
    // and not with the listener: it goes even if a worker does not end.
    let listening = match &arguments.socket_path {
        Some(path) => Some(path_socket::listen(&Place {
            option: "--socket-path",
            path: path.clone(),
        })?),
        None => None,
    };
    let folders: Vec<_> = listening.iter().map(|(_, file)| file.folder()).collect();
    // Nothing has started a thread so far, and from here on nothing is opened by name.
    let enclosure = Enclosure::enter(arguments.sandbox, &folders);
    let device = Arc::new(Device::new(&arguments.shape())?);
    let stop = Arc::new(Stop::new().map_err(setup("an eventfd"))?);
    let (sandbox, report) = enclosure.close();
    report.log();
    let (source, _socket_file) = match (listening, claimed) {
        (_, Some(socket)) => (Source::Handed(socket.start(&sandbox)?), None),
        (Some((listener, file)), None) => (Source::Path(Listener::from(listener)), Some(file)),
        // clap's group allows nothing else but --print-capabilities, which is done.
        (None, None) => return Ok(Ok(())),
    };
    info!(
        memory = %arguments.memory_size,
        command_queues = arguments.command_queues,
        "the device is ready"
    );
    runtime.block_on(supervise(device, source, stop, signals, sandbox))
}

/// The signals that end the program.
struct Signals {
    terminate: Signal,
    interrupt: Signal,
}

impl Signals {
    /// Handles them from now on.
    fn new() -> io::Result<Self> {
        Ok(Self {
            terminate: signal(SignalKind::terminate())?,
            interrupt: signal(SignalKind::interrupt())?,
        })
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
    device: Arc<Device>,
    source: Source,
    stop: Arc<Stop>,
    mut signals: Signals,
    sandbox: Sandbox,
) -> Result<Result<(), ServeError>, StartError> {
    let setup = |what| move |source| StartError::Setup { what, source };
    let (done, mut served) = oneshot::channel();
    let server_stop = stop.clone();
    let server_sandbox = sandbox.clone();
    thread::Builder::new()
        .name("serve".to_owned())
        .spawn(move || {
            server_sandbox.enter(Role::Serve);
            // Nobody listens any more only if the process is about to end anyway.
            let _ = done.send(serve(&device, source, &server_stop, &server_sandbox));
        })
        .map_err(setup("the serving thread"))?;
    sandbox.enter(Role::Main);

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
