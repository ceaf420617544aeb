// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Core dumps of processes whose memory is in the device.

use std::fs;
use std::path::{Path, PathBuf};

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::Direction;
use cdm_guest_tools::isolate::{Child, Parent};
use cdm_guest_tools::memory::PAGE_BYTES;
use nix::sys::resource::{Resource, setrlimit};
use nix::sys::signal::Signal;
use nix::sys::wait::WaitStatus;
use object::Endianness;
use object::elf::FileHeader64;
use object::read::elf::{FileHeader, ProgramHeader};

use crate::contents::{KINDS, Region};
use crate::counts::Count;
use crate::hand::{Hand, while_moved};
use crate::scenario::{Least, Needs, Scenario};
use crate::stage::Stage;

const WORKERS: usize = 2;
const SMALL_PAGES: usize = 128;

/// Where the kernel writes core dumps to.
const PATTERN: &str = "/proc/sys/kernel/core_pattern";
const FOLDER: &str = "/dev/shm";

pub const CORE_DUMP: Scenario = Scenario {
    name: "address_space::core_dump_holds_what_was_in_the_device",
    property: "The core dump of a process has the contents of all of its memory, in the device or \
               out of it or on its way.",
    needs: Needs {
        files: &[PATTERN],
        ..Needs::DEVICE
    },
    alone: false,
    operations: 10,
    least: &[
        Least::PerThousand(Count::CoreDump, 1000),
        Least::PerThousand(Count::CorePages, 700_000),
        Least::PerThousand(Count::PagesToDevice, 50_000),
    ],
    body,
};

/// Where core dumps go; as before on drop.
struct CorePattern {
    before: String,
}

impl CorePattern {
    fn set() -> Result<Self> {
        let before = fs::read_to_string(PATTERN)?;
        fs::write(PATTERN, format!("{FOLDER}/cdm-core.%p"))
            .context("cannot say where core dumps go")?;
        Ok(Self { before })
    }
}

impl Drop for CorePattern {
    fn drop(&mut self) {
        // What is dumped behind this one then has another name.
        let _ = fs::write(PATTERN, self.before.trim_end());
    }
}

/// A core dump; removed on drop.
struct Dump(PathBuf);

impl Drop for Dump {
    fn drop(&mut self) {
        // It may be that there is none, which is told elsewhere.
        let _ = fs::remove_file(&self.0);
    }
}

fn body(stage: &Stage) -> Result<()> {
    let _pattern = CorePattern::set()?;
    while_moved(stage, WORKERS, KINDS, |hand| {
        let mut regions = Region::of_each_kind(SMALL_PAGES)?;
        while hand.stage.round() {
            for region in &mut regions {
                let seed = hand.random.number();
                region.rewrite(region.own.clone(), seed);
                // What is at home is what the child can have moved.
                hand.migrate(region.memory.range(), Direction::ToSystem)?;
            }
            dump(hand, &regions)?;
        }
        Ok(())
    })
}

fn dump(hand: &mut Hand, regions: &[Region]) -> Result<()> {
    let mut child = Child::spawn(|parent| crash(hand, regions, parent))?;
    child.wait_for_arrival()?;
    let file = Dump(Path::new(FOLDER).join(format!("cdm-core.{}", child.pid())));
    child.release()?;
    // Some of it is on its way while it is dumped.
    hand.move_other(child.pid(), regions[0].memory.range())?;
    let (status, words) = child.end_message()?;
    match status {
        WaitStatus::Signaled(_, Signal::SIGABRT, true) => {}
        other => bail!("instead of a core dump: {other:?} {words}"),
    }
    let bytes = fs::read(&file.0).with_context(|| format!("no {}", file.0.display()))?;
    for (index, region) in regions.iter().enumerate() {
        compare(hand.stage, &bytes, region).with_context(|| format!("region {index}"))?;
    }
    hand.stage.add(Count::CoreDump, 1);
    Ok(())
}

/// Makes the memory the process's own, has it moved, and crashes.
fn crash(hand: &mut Hand, regions: &[Region], parent: &mut Parent) -> Result<()> {
    setrlimit(Resource::RLIMIT_CORE, u64::MAX, u64::MAX).context("no core dump allowed")?;
    for (slot, region) in regions.iter().enumerate() {
        hand.publish(slot, region.memory.range());
        let pages = hand.random.piece(region.own.len());
        let range = region.memory.page_range(pages.start, pages.len());
        hand.migrate(range, Direction::ToDevice)?;
    }
    hand.verify(regions)?;
    parent.meet()?;
    // SAFETY: `abort` ends this process.
    unsafe { libc::abort() }
}

/// Compares each page of a region with what the core dump has at its address.
fn compare(stage: &Stage, core: &[u8], region: &Region) -> Result<()> {
    let header = FileHeader64::<Endianness>::parse(core).context("the core dump is no ELF file")?;
    let endian = header.endian()?;
    let segments = header.program_headers(endian, core)?;
    for page in region.own.clone() {
        let address = region.memory.page_range(page, 1).start();
        let segment = segments
            .iter()
            .filter(|segment| segment.p_type(endian) == object::elf::PT_LOAD)
            .find(|segment| {
                let start = segment.p_vaddr(endian);
                (start..start + segment.p_memsz(endian)).contains(&address)
            })
            .with_context(|| format!("no segment has page {page} at {address:#x}"))?;
        let offset = (address - segment.p_vaddr(endian)) as usize;
        let data = segment
            .data(endian, core)
            .ok()
            .and_then(|data| data.get(offset..offset + PAGE_BYTES))
            .with_context(|| format!("page {page} at {address:#x} was left out"))?;
        ensure!(
            data == region.contents(page).bytes(),
            "page {page} at {address:#x} holds something else in the core dump"
        );
    }
    stage.add(Count::CorePages, region.own.len() as u64);
    Ok(())
}
