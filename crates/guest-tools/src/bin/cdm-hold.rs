// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Holds pages of a device for tests of its end: moves a little memory into the device, lends
//! it to a pipe, which takes a reference to each page, says "held", and waits. At the end of
//! its input it reads the pipe, and says whether the bytes are the ones that it lent.

use std::io::{self, Read, Write};
use std::os::fd::AsRawFd;
use std::process::ExitCode;

use cdm_guest_tools::device::{Device, Direction};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};

/// As many as a pipe has room for.
const PAGES: usize = 16;

fn hold() -> io::Result<bool> {
    let memory = Mapping::anonymous(PAGES * PAGE_BYTES)?;
    memory.fill_pattern(1);
    let before = memory.read_bytes(memory.bytes());
    {
        // The node is closed again, or the module could not be unloaded.
        let device = Device::open(0)?;
        let migration = device.migrate(0, memory.range(), Direction::ToDevice)?;
        if migration.moved != PAGES as u64 {
            return Err(io::Error::other(format!("not all moved: {migration:?}")));
        }
    }
    let (mut reader, writer) = io::pipe()?;
    let part = libc::iovec {
        iov_base: memory.address() as *mut libc::c_void,
        iov_len: memory.bytes(),
    };
    // SAFETY: the vector describes memory that stays mapped, and is only read.
    let lent = unsafe { libc::vmsplice(writer.as_raw_fd(), &part, 1, 0) };
    if lent != memory.bytes() as isize {
        return Err(io::Error::other(format!("vmsplice took {lent} bytes")));
    }
    println!("held");
    io::stdout().flush()?;
    io::stdin().read_to_end(&mut Vec::new())?;

    drop(writer);
    let mut after = Vec::new();
    reader.read_to_end(&mut after)?;
    Ok(after == before && memory.check_pattern(1).is_ok())
}

fn main() -> ExitCode {
    match hold() {
        Ok(true) => {
            println!("unchanged");
            ExitCode::SUCCESS
        }
        Ok(false) => {
            println!("changed");
            ExitCode::from(1)
        }
        Err(error) => {
            eprintln!("cdm-hold: {error}");
            ExitCode::from(2)
        }
    }
}
