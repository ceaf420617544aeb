// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The pages of `cdm-backend`, whose crate has its arguments in a library.

use clap::CommandFactory as _;

#[test]
fn reference_pages_are_what_the_command_line_says() {
    let command = cdm_backend::process::Arguments::command();
    cdm_cli_reference::check("cdm-backend", command).expect("fresh");
}
