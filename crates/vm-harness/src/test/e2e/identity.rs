// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A device that is not what the driver takes: it must refuse to bind, with one
//! line that says what it found.

use std::mem::offset_of;

use anyhow::{Result, bail, ensure};
use cdm_protocol::Config;

use super::Session;
use super::proxy::{Spoil, interpose};

const BAD_MAGIC: &[u8] = b"no-such\0";
const BAD_MAJOR: &[u8] = &[77, 0];

/// The lines of the driver in a guest whose two devices have a wrong magic and a wrong version.
fn lines(session: &mut Session) -> Result<Vec<String>> {
    let vm = session.vm_behind(|backends| {
        let magic = Spoil {
            offset: offset_of!(Config, magic),
            bytes: BAD_MAGIC,
        };
        let major = Spoil {
            offset: offset_of!(Config, version_major),
            bytes: BAD_MAJOR,
        };
        interpose(backends[0].socket(), magic)?;
        interpose(backends[1].socket(), major)
    })?;
    let nodes = vm.exec("ls /dev/cdm* 2>/dev/null")?;
    ensure!(
        nodes.stdout.is_empty(),
        "the driver bound a device that is none"
    );
    let log = vm.kernel_log()?;
    Ok(log
        .lines()
        .filter(|line| line.contains("cdm virtio"))
        .map(str::to_owned)
        .collect())
}

fn one_line_with(session: &mut Session, words: &[&str]) -> Result<()> {
    let lines = lines(session)?;
    ensure!(
        lines.len() == 2,
        "two devices are refused, and the driver says {lines:#?}"
    );
    let fitting = lines
        .iter()
        .filter(|line| words.iter().all(|word| line.contains(word)));
    match fitting.count() {
        1 => Ok(()),
        _ => bail!("no line, or more than one, speaks of {words:?}: {lines:#?}"),
    }
}

/// Another magic in the config space.
pub fn wrong_magic(session: &mut Session) -> Result<()> {
    one_line_with(session, &["magic", "no-such"])
}

/// Another major version in the config space.
pub fn wrong_version(session: &mut Session) -> Result<()> {
    one_line_with(session, &["version", "77"])
}
