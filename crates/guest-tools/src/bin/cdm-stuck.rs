// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Is inside an ioctl of a device for tests of its end: has the device look at memory whose page
//! faults this process has to serve, and serves none until the end of its input. Says "stuck"
//! before, and how the ioctl ended.

use std::io::{self, Read, Write};
use std::process::ExitCode;
use std::thread;

use anyhow::{Context, Result};
use cdm_guest_tools::device::{Device, Span};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::userfault::Userfault;

fn stuck() -> Result<()> {
    let device = Device::open(0)?;
    let memory = Mapping::anonymous(PAGE_BYTES)?;
    let faults = Userfault::watch_missing(&memory)?;
    println!("stuck");
    io::stdout().flush()?;
    let ended = thread::scope(|scope| -> Result<_> {
        let ioctl = scope.spawn(|| device.checksum(&memory, Span::all(&memory), 0));
        io::stdin().read_to_end(&mut Vec::new())?;
        // The page is an ordinary one from here on.
        faults.leave(&memory)?;
        Ok(ioctl.join().expect("the ioctl does not panic"))
    })?;
    let error = ended.err().context("the device answered")?;
    let is_gone = error.raw_os_error() == Some(libc::ENODEV);
    println!("{}", if is_gone { "ENODEV" } else { "another error" });
    Ok(())
}

fn main() -> ExitCode {
    match stuck() {
        Ok(()) => ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cdm-stuck: {error:#}");
            ExitCode::from(2)
        }
    }
}
