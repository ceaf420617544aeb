// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The process around the device: arguments, sockets, signals, logs, exit codes.
//!
//! Only here is anything async: the main thread waits for signals and for clients of the
//! control socket and the metrics.

mod arguments;
mod capabilities;
mod clients;
mod control_socket;
mod exit;
mod handed_socket;
mod logging;
mod metrics;
mod observer;
mod path_socket;
mod relay;
mod run;
mod serve;
mod stop;

pub use arguments::Arguments;
pub use control_socket::answer;
pub use exit::ExitCode;
pub use observer::Observer;
pub use run::run;
