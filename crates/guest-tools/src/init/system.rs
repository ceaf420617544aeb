// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Names, links and the loopback interface.

use std::fs;
use std::io;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::symlink;

use super::kmsg::log;

/// Name that the guest's shell shows.
const HOSTNAME: &str = "cdm";

/// Links that programs expect under /dev.
const LINKS: [(&str, &str); 4] = [
    ("/proc/self/fd", "/dev/fd"),
    ("/proc/self/fd/0", "/dev/stdin"),
    ("/proc/self/fd/1", "/dev/stdout"),
    ("/proc/self/fd/2", "/dev/stderr"),
];

/// Does what a program cannot do for itself.
pub fn prepare() {
    let report = |what: &str, result: io::Result<()>| {
        if let Err(error) = result {
            log(&format!("cannot {what}: {error}"));
        }
    };
    report(
        "set the host name",
        fs::write("/proc/sys/kernel/hostname", HOSTNAME),
    );
    for (target, link) in LINKS {
        report("link in /dev", symlink(target, link));
    }
    report("name the virtio ports", name_virtio_ports());
    report("bring up the loopback interface", loopback_up());
}

/// Links /dev/virtio-ports/NAME to the port's node, which udev would do elsewhere.
fn name_virtio_ports() -> io::Result<()> {
    let Ok(ports) = fs::read_dir("/sys/class/virtio-ports") else {
        return Ok(());
    };
    fs::create_dir_all("/dev/virtio-ports")?;
    for port in ports {
        let port = port?;
        // The first port of a console has no name.
        let name = fs::read_to_string(port.path().join("name")).unwrap_or_default();
        let name = name.trim_end();
        if !name.is_empty() {
            symlink(
                format!("../{}", port.file_name().display()),
                format!("/dev/virtio-ports/{name}"),
            )?;
        }
    }
    Ok(())
}

fn loopback_up() -> io::Result<()> {
    // SAFETY: socket(2) takes no pointer.
    let fd = unsafe { libc::socket(libc::AF_UNIX, libc::SOCK_DGRAM | libc::SOCK_CLOEXEC, 0) };
    if fd < 0 {
        return Err(io::Error::last_os_error());
    }
    // SAFETY: socket(2) just returned this descriptor, and nobody else has it.
    let socket = unsafe { OwnedFd::from_raw_fd(fd) };
    // SAFETY: ifreq is plain data; all zero is a valid value of it.
    let mut request: libc::ifreq = unsafe { std::mem::zeroed() };
    for (to, from) in request.ifr_name.iter_mut().zip(b"lo") {
        *to = *from as libc::c_char;
    }
    request.ifr_ifru.ifru_flags = (libc::IFF_UP | libc::IFF_RUNNING) as libc::c_short;
    // SAFETY: SIOCSIFFLAGS reads one ifreq, which lives through the call.
    if unsafe { libc::ioctl(socket.as_raw_fd(), libc::SIOCSIFFLAGS as _, &request) } < 0 {
        return Err(io::Error::last_os_error());
    }
    Ok(())
}
