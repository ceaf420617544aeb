// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What must not stay behind when a signal ends this process: processes, folders
//! with sockets, and a terminal in raw mode.
//!
//! Destructors do this on every ordinary way out. A signal runs none, so a thread
//! of its own waits for the signals that end a process and puts things in order
//! from the lists that are kept here.

use std::collections::BTreeSet;
use std::fs;
use std::io::{self, Read};
use std::os::fd::{AsRawFd, OwnedFd};
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicI32, Ordering};
use std::sync::{Mutex, MutexGuard, Once, PoisonError};
use std::thread;

use nix::fcntl::{FcntlArg, OFlag, fcntl};
use nix::sys::signal::{SaFlags, SigAction, SigHandler, SigSet, Signal, killpg, sigaction};
use nix::sys::termios::{SetArg, Termios, tcsetattr};
use nix::unistd::Pid;

/// Signals by which people and programs end a process.
const ENDING: [Signal; 4] = [
    Signal::SIGINT,
    Signal::SIGTERM,
    Signal::SIGHUP,
    Signal::SIGQUIT,
];

struct Kept {
    groups: BTreeSet<Pid>,
    folders: BTreeSet<PathBuf>,
    terminal: Option<Termios>,
    on_resize: Option<Box<dyn Fn() + Send>>,
}

static KEPT: Mutex<Kept> = Mutex::new(Kept {
    groups: BTreeSet::new(),
    folders: BTreeSet::new(),
    terminal: None,
    on_resize: None,
});

/// Where the signal handler writes the number of its signal.
static PIPE: AtomicI32 = AtomicI32::new(-1);

/// Starts to listen for signals. Further calls do nothing.
pub fn install() {
    static ONCE: Once = Once::new();
    ONCE.call_once(|| {
        if let Err(error) = listen() {
            eprintln!("cdm: cannot listen for signals: {error}");
        }
    });
}

fn listen() -> io::Result<()> {
    let (mut reader, writer) = io::pipe()?;
    // A handler must not block, whatever the thread below does.
    fcntl(&writer, FcntlArg::F_SETFL(OFlag::O_NONBLOCK))?;
    let writer = OwnedFd::from(writer);
    PIPE.store(writer.as_raw_fd(), Ordering::Release);
    // The handlers need it until the very end.
    std::mem::forget(writer);

    thread::Builder::new()
        .name("signals".to_owned())
        .spawn(move || {
            let mut byte = [0];
            while reader.read_exact(&mut byte).is_ok() {
                obey(i32::from(byte[0]));
            }
        })?;
    let action = SigAction::new(
        SigHandler::Handler(note),
        SaFlags::SA_RESTART,
        SigSet::empty(),
    );
    for signal in ENDING.into_iter().chain([Signal::SIGWINCH]) {
        // SAFETY: the handler only makes a write(2), which is async-signal-safe, and
        // keeps errno.
        unsafe { sigaction(signal, &action) }?;
    }
    Ok(())
}

extern "C" fn note(signal: libc::c_int) {
    let errno = nix::errno::Errno::last_raw();
    let byte = [signal as u8];
    // SAFETY: write(2) reads one byte of a live array. A pipe that is full holds
    // enough signals already.
    unsafe { libc::write(PIPE.load(Ordering::Acquire), byte.as_ptr().cast(), 1) };
    nix::errno::Errno::set_raw(errno);
}

fn obey(signal: i32) {
    if signal == Signal::SIGWINCH as i32 {
        if let Some(on_resize) = &kept().on_resize {
            on_resize();
        }
        return;
    }
    run();
    // As a shell reports a process that a signal ended.
    std::process::exit(128 + signal);
}

/// Puts everything in order, as before this process ends without destructors.
pub fn run() {
    let mut kept = kept();
    restore(&mut kept);
    for group in &kept.groups {
        // One that has just ended needs no signal.
        let _ = killpg(*group, Signal::SIGKILL);
    }
    for folder in &kept.folders {
        // One that has just been removed is what we want.
        let _ = fs::remove_dir_all(folder);
    }
}

/// Keeps a process group to kill.
pub fn add_group(group: Pid) {
    kept().groups.insert(group);
}

/// Forgets a process group that has ended.
pub fn remove_group(group: Pid) {
    kept().groups.remove(&group);
}

/// Keeps a folder to remove.
pub fn add_folder(folder: &Path) {
    kept().folders.insert(folder.to_owned());
}

/// Forgets a folder that has been removed.
pub fn remove_folder(folder: &Path) {
    kept().folders.remove(folder);
}

/// Keeps the settings that the terminal had, and whom to tell of a new size.
pub fn keep_terminal(settings: Termios, on_resize: impl Fn() + Send + 'static) {
    let mut kept = kept();
    kept.terminal = Some(settings);
    kept.on_resize = Some(Box::new(on_resize));
}

/// Gives the terminal its settings back. Does nothing if nobody changed them.
pub fn restore_terminal() {
    restore(&mut kept());
}

fn restore(kept: &mut Kept) {
    kept.on_resize = None;
    if let Some(settings) = kept.terminal.take() {
        // A terminal that has gone away needs no settings.
        let _ = tcsetattr(io::stdin(), SetArg::TCSADRAIN, &settings);
    }
}

fn kept() -> MutexGuard<'static, Kept> {
    // Plain data: a panic elsewhere cannot have left it half changed.
    KEPT.lock().unwrap_or_else(PoisonError::into_inner)
}
