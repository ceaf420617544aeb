// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `cdm-init`: the guest's first process, and its agent as a second one.

use std::process::ExitCode;

use cdm_guest_tools::{agent, init};

fn main() -> ExitCode {
    if std::env::args().nth(1).as_deref() == Some(init::AGENT_ARGUMENT) {
        return agent::run();
    }
    if std::process::id() == 1 {
        init::run();
    }
    eprintln!("cdm-init: this is the guest's first process; it does nothing for anybody else");
    ExitCode::from(2)
}
