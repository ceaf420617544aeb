// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The `cdm-backend` program.

fn main() -> cdm_backend::process::ExitCode {
    cdm_backend::process::run()
}
