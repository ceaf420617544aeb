// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The user's terminal while it belongs to the guest's shell.

use std::io::{self, IsTerminal};

use anyhow::{Context as _, Result};
use cdm_agent_protocol::TtySize;
use nix::sys::termios::{SetArg, cfmakeraw, tcgetattr, tcsetattr};

use super::cleanup;

/// Ctrl-]: ends the machine at once. No shell uses it, and telnet users know it.
pub const LEAVE: u8 = 0x1d;

/// Size to assume where the terminal does not tell.
const USUAL_SIZE: TtySize = TtySize {
    rows: 24,
    columns: 80,
};

nix::ioctl_read_bad!(
    /// Reads the size of a terminal.
    get_window_size,
    libc::TIOCGWINSZ,
    nix::pty::Winsize
);

/// Whether the user has a terminal on both sides.
pub fn is_interactive() -> bool {
    io::stdin().is_terminal() && io::stdout().is_terminal()
}

/// Size of the user's terminal.
pub fn size() -> TtySize {
    let mut size = nix::pty::Winsize {
        ws_row: 0,
        ws_col: 0,
        ws_xpixel: 0,
        ws_ypixel: 0,
    };
    // SAFETY: the call writes one Winsize, which lives through it.
    let known = unsafe { get_window_size(libc::STDOUT_FILENO, &mut size) }.is_ok();
    if known && size.ws_row > 0 && size.ws_col > 0 {
        TtySize {
            rows: size.ws_row,
            columns: size.ws_col,
        }
    } else {
        USUAL_SIZE
    }
}

/// Every key goes to the guest as it is, until this is dropped or a signal ends the
/// process.
#[derive(Debug)]
pub struct RawTerminal(());

impl RawTerminal {
    /// Takes the terminal. `on_resize` hears of a new size.
    pub fn enter(on_resize: impl Fn() + Send + 'static) -> Result<Self> {
        cleanup::install();
        let settings = tcgetattr(io::stdin()).context("cannot read the terminal's settings")?;
        cleanup::keep_terminal(settings.clone(), on_resize);
        let terminal = Self(());
        let mut raw = settings;
        cfmakeraw(&mut raw);
        tcsetattr(io::stdin(), SetArg::TCSADRAIN, &raw)
            .context("cannot change the terminal's settings")?;
        Ok(terminal)
    }
}

impl Drop for RawTerminal {
    fn drop(&mut self) {
        cleanup::restore_terminal();
    }
}
