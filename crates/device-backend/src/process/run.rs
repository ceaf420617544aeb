// SPDX-License-Identifier: Apache-2.0 OR MIT

//! From the command line to the exit code.

use super::handed_socket::{HandedSocket, HandedSocketError};
use super::path_socket::{self, PathSocketError};
use super::serve::{ServeError, Source, serve};
use super::stop::Stop;
use super::{Arguments, ExitCode, capabilities, logging};
use crate::model::{Device, PoolError};
use clap::Parser;
use std::io;
use std::sync::Arc;
use std::thread;
use std::time::Duration;
use tokio::signal::unix::{Signal, SignalKind, signal};
use tokio::sync::oneshot;
use tracing::{info, warn};

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
    let handed = match arguments.fd {
        // SAFETY: the descriptor was inherited for us by the caller's word (--fd), and nothing in
        // this process has opened a descriptor yet.
        Some(fd) => Some(unsafe { HandedSocket::adopt(fd) }?),
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
    // Before the memory: a frontend that connects now waits in the backlog.
    let mut _socket_file = None;
    let source = match (&arguments.socket_path, handed) {
        (_, Some(socket)) => Source::Handed(socket),
        (Some(path), None) => {
            let (listener, file) = path_socket::listen(path)?;
            // Kept here and not with the listener: it goes even if a worker does not end.
            _socket_file = Some(file);
            Source::Path(listener)
        }
        // clap's group allows nothing else but --print-capabilities, which is done.
        (None, None) => return Ok(Ok(())),
    };
    let device = Arc::new(Device::new(&arguments.shape())?);
    info!(
        memory = %arguments.memory_size,
        command_queues = arguments.command_queues,
        "the device is ready"
    );
    let stop = Arc::new(Stop::new().map_err(setup("an eventfd"))?);
    runtime.block_on(supervise(device, source, stop, signals))
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
) -> Result<Result<(), ServeError>, StartError> {
    let setup = |what| move |source| StartError::Setup { what, source };
    let (done, mut served) = oneshot::channel();
    let server_stop = stop.clone();
    thread::Builder::new()
        .name("serve".to_owned())
        .spawn(move || {
            // Nobody listens any more only if the process is about to end anyway.
            let _ = done.send(serve(&device, source, &server_stop));
        })
        .map_err(setup("the serving thread"))?;

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
