// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The process around the device: arguments, sockets, signals, logs, exit codes.

mod arguments;
mod capabilities;
mod exit;
mod handed_socket;
mod logging;
mod path_socket;
mod relay;
mod run;
mod serve;
mod stop;

pub use arguments::Arguments;
pub use exit::ExitCode;
pub use run::run;
