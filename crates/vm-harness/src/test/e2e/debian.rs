// SPDX-License-Identifier: Apache-2.0 OR MIT

//! `--rootfs debian`: the programs are Debian's, everything else is as in the small guest.

use std::path::PathBuf;
use std::{env, fs};

use anyhow::{Context as _, Result, ensure};

use super::{Session, machine};
use crate::vm::FileCopy;

/// A program of the host that the guest finds when it starts: static, so that it runs there.
const BROUGHT: (&str, &str) = ("/usr/bin/busybox", "/opt/brought/busybox");

/// [`BROUGHT`], as `--file` has it.
pub fn brought() -> FileCopy {
    FileCopy {
        host: BROUGHT.0.into(),
        guest: BROUGHT.1.to_owned(),
    }
}

/// The folder of the host that the guest shares.
pub fn shared() -> PathBuf {
    env::temp_dir()
}

/// Whose programs they are, and that those for who writes drivers do what they are there for.
pub fn programs_work(session: &mut Session) -> Result<()> {
    let release = session.text(". /etc/os-release; echo $ID $VERSION_CODENAME")?;
    ensure!(release == "debian trixie\n", "it is '{release}'");
    let number = session.text("cdmctl info --json | python3 -c 'import json, sys; print(len(json.load(sys.stdin)[\"devices\"]))'")?;
    ensure!(number == "1\n", "python3 reads '{number}' devices");
    session.text("ps -e | grep cdm-agent")?;
    session.text("strace -o /tmp/calls true && grep -q execve /tmp/calls")?;
    session.text("gdb --batch -ex starti -ex 'info registers rip' /usr/bin/true | grep ^rip")?;
    session.text("numactl --hardware | grep 'node 0 size'")?;
    session.text("lspci -n | grep 1af4")?;
    Ok(())
}

/// apt and dpkg work on packages that are there: this one is made in the guest.
pub fn apt_installs(session: &mut Session) -> Result<()> {
    session.text(
        "mkdir -p /tmp/p/DEBIAN /tmp/p/usr/bin && \
         printf 'Package: made-here\\nVersion: 1\\nArchitecture: all\\nMaintainer: x <x@x>\\n\
         Depends: python3\\nDescription: x\\n' > /tmp/p/DEBIAN/control && \
         printf '#!/bin/sh\\necho made here\\n' > /tmp/p/usr/bin/made-here && \
         chmod 755 /tmp/p/usr/bin/made-here && dpkg-deb --root-owner-group --build /tmp/p /tmp/p.deb && \
         apt-get install --yes /tmp/p.deb",
    )?;
    let said = session.text("made-here")?;
    ensure!(said == "made here\n", "the package says '{said}'");
    Ok(())
}

/// The guest's own tests are there and pass: here one that moves pages each way.
pub fn guest_test_passes(session: &mut Session) -> Result<()> {
    let test = "migration::contents_are_equal_after_a_round_trip";
    let output = session.exec(&format!("cdm-guest-tests --exact {test}"))?;
    let said = String::from_utf8_lossy(&output.stdout);
    let passed = said.contains(&format!("\nok 1 {test}"));
    ensure!(output.status.success() && passed, "no test passed:\n{said}");
    Ok(())
}

/// Exit statuses come back, files were brought, and the shared folder is the host's.
pub fn host_is_reached(session: &mut Session) -> Result<()> {
    let status = session.exec("exit 5")?.status;
    ensure!(status.shell_code() == 5, "{status:?} came back, not 5");
    session.text(&format!("{} true", BROUGHT.1))?;
    let folder = tempfile::tempdir_in(shared())?;
    let name = folder.path().file_name().context("it has a name")?;
    let name = name.to_string_lossy();
    fs::write(folder.path().join("there"), "from the host\n")?;
    let said = session.text(&format!(
        "cat /host/{name}/there && echo from the guest > /host/{name}/back"
    ))?;
    ensure!(said == "from the host\n", "the guest reads '{said}'");
    let back = fs::read_to_string(folder.path().join("back"))?;
    ensure!(back == "from the guest\n", "the guest wrote '{back}'");
    Ok(())
}

/// The driver is taken out and put in with Debian's own programs, by the names that the small
/// guest has, and the kernel's modules are found.
pub fn modules_load(session: &mut Session) -> Result<()> {
    session.text("rmmod cdm && insmod /lib/modules/cdm.ko && cdmctl run checksum --size 1M")?;
    session.text("modprobe xfs && grep -q '^xfs ' /proc/modules")?;
    Ok(())
}

/// What the guest writes is there after a reboot, and gone with the machine.
pub fn writes_last_as_long_as_the_machine(session: &mut Session) -> Result<()> {
    session.text("echo kept > /root/kept")?;
    machine::reboot_works(session)?;
    let said = session.text("cat /root/kept")?;
    ensure!(said == "kept\n", "after the reboot it is '{said}'");
    session.power_off()?;
    session.text("! test -e /root/kept")?;
    Ok(())
}
