// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What does not go into the device is refused before anything is touched, and
//! the call says why.

use std::fs::File;
use std::ops::Range;
use std::os::fd::{AsRawFd, FromRawFd, OwnedFd};
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, Result, ensure};
use cdm_guest_tools::device::{Direction, Migration};
use cdm_guest_tools::disks::{Loop, ext4};
use cdm_guest_tools::hugetlb::Reserved;
use cdm_guest_tools::iomem;
use cdm_guest_tools::memory::{HUGE_PAGE_BYTES, Mapping, PAGE_BYTES};
use cdm_guest_tools::range::AddressRange;
use nix::sys::memfd::{MFdFlags, memfd_create};

use crate::fixture::{Fixture, physical_addresses};
use crate::module;
use crate::stores::{Mounted, Stored, XFS, xfs_disk};
use crate::wait::wait_until;

crate::tests!("refusals":
    ext4_whose_folios_have_buffer_heads_is_refused_for_its_mapping,
    xfs_whose_folios_are_larger_than_a_block_is_refused_for_its_private_data,
    pages_on_their_way_to_the_disk_are_refused_until_they_are_there,
    memory_of_a_dax_file_is_unsupported,
    secret_memory_is_refused_for_its_mapping,
    ring_of_asynchronous_io_is_unsupported,
    pages_of_hugetlbfs_are_unsupported,
    pages_that_the_kernel_maps_by_itself_stay,
);

const PAGES: usize = 16;

/// A number of a [`Migration`] by its reason.
type Reason = fn(&Migration) -> u64;

/// Expects that all of `range` stays, for one reason, and is untouched: present with the same
/// frames.
fn expect_refused(t: &Fixture, range: AddressRange, reason: Reason) -> Result<()> {
    t.need_files()?;
    let free = t.free_pages()?;
    let physical = physical_addresses(range)?;
    for _ in 0..2 {
        let migration = t.device.migrate(0, range, Direction::ToDevice)?;
        ensure!(
            migration.moved == 0 && reason(&migration) == range.pages(),
            "{migration:?}"
        );
        ensure!(
            physical_addresses(range)? == physical,
            "the pages went elsewhere"
        );
    }
    t.expect_free_pages(free)
}

fn ext4_whose_folios_have_buffer_heads_is_refused_for_its_mapping(t: &Fixture) -> Result<()> {
    let disk = Loop::new(16 << 20)?;
    let stored = ext4(&disk.path, "")?;
    let bytes = PAGES * PAGE_BYTES;
    stored.file.set_len(bytes as u64)?;
    let memory = Mapping::shared_file(&stored.file, bytes)?;
    memory.fill_pattern(1);
    stored.file.sync_all()?;
    // Loads bring the entries back that writeback has protected.
    memory.check_pattern(1)?;
    expect_refused(t, memory.range(), |migration| migration.mapping)?;
    memory.check_pattern(1)?;
    // What a process has written for itself alone is its own, whatever file it came from.
    let private = Mapping::private_file(&stored.file, bytes)?;
    private.fill_pattern(2);
    t.move_all(private.range(), Direction::ToDevice)?;
    t.expect_in_device(private.range())?;
    private.check_pattern(2)?;
    memory.check_pattern(1)?;
    Ok(())
}

fn xfs_whose_folios_are_larger_than_a_block_is_refused_for_its_private_data(
    t: &Fixture,
) -> Result<()> {
    t.need_files()?;
    let bytes = PAGES * PAGE_BYTES;
    let expected = t.system_memory(PAGES, 5)?.read_bytes(bytes);
    let stored = XFS.file(0)?;
    // One call gets one large folio; as soon as it is written to the disk, xfs keeps with it which
    // of its blocks are dirty.
    stored.file.write_all_at(&expected, 0)?;
    stored.file.sync_all()?;
    let memory = Mapping::shared_file(&stored.file, bytes)?;
    memory.check_pattern(5)?;
    expect_refused(t, memory.range(), |migration| migration.private_data)?;
    memory.check_pattern(5)?;
    // The same while some of them are.
    memory.fill_pattern_pages(5, 3..5);
    expect_refused(t, memory.range(), |migration| migration.private_data)?;
    memory.check_pattern(5)?;
    let mut found = vec![0; bytes];
    stored.file.read_exact_at(&mut found, 0)?;
    ensure!(found == expected, "the file holds something else");
    Ok(())
}

/// A file system that takes no writes; thawed on drop.
struct Frozen {
    root: File,
}

mod freeze {
    nix::ioctl_readwrite!(freeze, b'X', 119, libc::c_int);
    nix::ioctl_readwrite!(thaw, b'X', 120, libc::c_int);
}

impl Frozen {
    /// The file system of a file.
    fn of(file: &File) -> Result<Self> {
        let root = file.try_clone()?;
        // SAFETY: the argument is not looked at.
        unsafe { freeze::freeze(root.as_raw_fd(), std::ptr::null_mut()) }.context("FIFREEZE")?;
        Ok(Self { root })
    }
}

impl Drop for Frozen {
    fn drop(&mut self) {
        // SAFETY: the argument is not looked at.
        let _ = unsafe { freeze::thaw(self.root.as_raw_fd(), std::ptr::null_mut()) };
    }
}

/// Copies a disk into a file, and leaves out what is zero.
fn copy_disk(disk: &str, file: &File) -> Result<()> {
    const STEP: usize = 1 << 20;
    let disk = File::open(disk).with_context(|| format!("cannot open {disk}"))?;
    let mut buffer = vec![0; STEP];
    let mut at = 0;
    loop {
        let got = disk.read_at(&mut buffer, at)?;
        if got == 0 {
            return Ok(file.set_len(at)?);
        }
        for (index, block) in buffer[..got].chunks(PAGE_BYTES).enumerate() {
            if block.iter().any(|byte| *byte != 0) {
                file.write_all_at(block, at + (index * PAGE_BYTES) as u64)?;
            }
        }
        at += got as u64;
    }
}

fn pages_on_their_way_to_the_disk_are_refused_until_they_are_there(t: &Fixture) -> Result<()> {
    t.need_files()?;
    let template = xfs_disk()?;
    // An xfs on a disk that is a file on an ext4: as long as that is frozen, no write ends.
    let below = Loop::new(64 << 20)?;
    let image = ext4(&below.path, "")?;
    copy_disk(template, &image.file)?;
    let disk = Loop::of(image.file.try_clone()?)?;
    let mounted = Mounted::new(&disk.path, "xfs", "nouuid")?;
    let folder = mounted.path.clone();
    let stored = Stored::new(&folder, Some(mounted))?;
    let bytes = PAGES * PAGE_BYTES;
    stored.file.set_len(bytes as u64)?;
    let memory = Mapping::shared_file(&stored.file, bytes)?;
    memory.fill_pattern(8);
    // So that the blocks have their place, and writing them takes no transaction.
    stored.file.sync_all()?;
    memory.fill_pattern(9);
    let frozen = Frozen::of(&image.file)?;
    // SAFETY: the call takes numbers alone.
    let started = unsafe {
        libc::sync_file_range(
            stored.file.as_raw_fd(),
            0,
            bytes as i64,
            libc::SYNC_FILE_RANGE_WRITE,
        )
    };
    ensure!(
        started == 0,
        "sync_file_range: {}",
        std::io::Error::last_os_error()
    );
    // Loads bring the entries back that writeback has protected.
    memory.check_pattern(9)?;
    expect_refused(t, memory.range(), |migration| migration.writeback)?;
    memory.check_pattern(9)?;
    drop(frozen);
    stored.file.sync_all()?;
    memory.check_pattern(9)?;
    t.move_all(memory.range(), Direction::ToDevice)?;
    t.expect_in_device(memory.range())?;
    memory.check_pattern(9)?;
    let mut found = vec![0; bytes];
    stored.file.read_exact_at(&mut found, 0)?;
    ensure!(
        found == memory.read_bytes(bytes),
        "the file holds something else"
    );
    Ok(())
}

/// Where the machine's persistent memory is, which the harness sets aside on the command line.
fn persistent_memory() -> Result<Range<u64>> {
    const NAME: &str = "Persistent Memory (legacy)";
    let found = iomem::resources()?
        .into_iter()
        .find(|resource| resource.name == NAME)
        .with_context(|| format!("the machine has no '{NAME}'"))?;
    Ok(found.start..found.last + 1)
}

fn memory_of_a_dax_file_is_unsupported(t: &Fixture) -> Result<()> {
    const DISK: &str = "/dev/pmem0";
    /// How long the kernel may take to find the disk.
    const PATIENCE: Duration = Duration::from_secs(10);
    t.need_files()?;
    module::load_of_kernel("nd_e820")?;
    module::load_of_kernel("nd_pmem")?;
    wait_until(PATIENCE, "no disk of persistent memory", || {
        Ok(Path::new(DISK).exists())
    })?;
    let stored = ext4(DISK, "dax=always")?;
    let bytes = PAGES * PAGE_BYTES;
    stored.file.set_len(bytes as u64)?;
    let memory = Mapping::shared_file(&stored.file, bytes)?;
    memory.fill_pattern(6);
    let inside = persistent_memory()?;
    for address in physical_addresses(memory.range())? {
        ensure!(
            inside.contains(&address),
            "the file's page is at {address:#x}, so this is no DAX"
        );
    }
    expect_refused(t, memory.range(), |migration| migration.unsupported)?;
    memory.check_pattern(6)?;
    // The area is refused with whatever is in it, so a private copy of a page stays as well.
    let private = Mapping::private_file(&stored.file, bytes)?;
    private.fill_pattern(7);
    expect_refused(t, private.range(), |migration| migration.unsupported)?;
    private.check_pattern(7)?;
    memory.check_pattern(6)?;
    Ok(())
}

fn secret_memory_is_refused_for_its_mapping(t: &Fixture) -> Result<()> {
    // SAFETY: the call takes flags alone.
    let fd = unsafe { libc::syscall(libc::SYS_memfd_secret, 0) };
    ensure!(fd >= 0, "memfd_secret: {}", std::io::Error::last_os_error());
    // SAFETY: the descriptor is new and nobody else's.
    let file = unsafe { File::from_raw_fd(fd as i32) };
    let bytes = PAGES * PAGE_BYTES;
    file.set_len(bytes as u64)?;
    let memory = Mapping::shared_file(&file, bytes)?;
    memory.fill_pattern(3);
    expect_refused(t, memory.range(), |migration| migration.mapping)?;
    memory.check_pattern(3)?;
    Ok(())
}

fn ring_of_asynchronous_io_is_unsupported(t: &Fixture) -> Result<()> {
    let mut context: libc::c_ulong = 0;
    // SAFETY: the kernel writes one word.
    let made = unsafe { libc::syscall(libc::SYS_io_setup, 128, &raw mut context) };
    ensure!(made == 0, "io_setup: {}", std::io::Error::last_os_error());
    // The handle is the address of the ring.
    let vma = cdm_guest_tools::process::maps(0)?
        .into_iter()
        .find(|vma| vma.range.start() == context)
        .with_context(|| format!("no mapping at {context:#x}"))?;
    for address in (vma.range.start()..vma.range.end()).step_by(PAGE_BYTES) {
        // SAFETY: the ring is mapped and readable until it is destroyed; any value is fine.
        unsafe { (address as *const u64).read_volatile() };
    }
    // The kernel refuses the whole area (VM_DONTEXPAND), whatever its pages are.
    let refused = expect_refused(t, vma.range, |migration| migration.unsupported);
    // SAFETY: the handle is the one from above.
    let gone = unsafe { libc::syscall(libc::SYS_io_destroy, context) };
    ensure!(gone == 0, "io_destroy: {}", std::io::Error::last_os_error());
    refused.with_context(|| vma.name)
}

fn pages_of_hugetlbfs_are_unsupported(t: &Fixture) -> Result<()> {
    let _reserved = Reserved::new(2)?;
    let fd: OwnedFd = memfd_create(c"cdm-hugetlb", MFdFlags::MFD_HUGETLB)?;
    let file = File::from(fd);
    file.set_len(HUGE_PAGE_BYTES as u64)?;
    let memory = Mapping::shared_file(&file, HUGE_PAGE_BYTES)?;
    memory.fill_pattern(4);
    expect_refused(t, memory.range(), |migration| migration.unsupported)?;
    memory.check_pattern(4)?;
    Ok(())
}

fn pages_that_the_kernel_maps_by_itself_stay(t: &Fixture) -> Result<()> {
    let vma = cdm_guest_tools::process::maps(0)?
        .into_iter()
        .find(|vma| vma.name == "[vdso]")
        .context("no vdso")?;
    // SAFETY: the vdso is mapped and readable for as long as the process lives.
    let before = unsafe { *(vma.range.start() as *const u64) };
    let migration = t.device.migrate(0, vma.range, Direction::ToDevice)?;
    // The page tables have no folio there that a driver could see.
    ensure!(
        migration.moved == 0 && migration.unsupported + migration.not_present == migration.asked,
        "{migration:?}"
    );
    // SAFETY: as above.
    let after = unsafe { *(vma.range.start() as *const u64) };
    ensure!(before == after, "the vdso changed");
    ensure!(Path::new("/dev/cdm0").exists(), "the device is gone");
    Ok(())
}
