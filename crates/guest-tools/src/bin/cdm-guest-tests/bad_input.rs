// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What the driver must refuse: the errno is right and nothing has changed.

use std::io;

use anyhow::{Context, Result, bail, ensure};
use cdm_guest_tools::device::{Device, Direction};
use cdm_guest_tools::memory::{Mapping, PAGE_BYTES};
use cdm_guest_tools::uapi::{
    CDM_COMMAND_UNORDERED, CDM_IOC_MAGIC, CDM_IOCTL_BATCH, CDM_IOCTL_COMMAND, CDM_IOCTL_MIGRATE,
    CDM_IOCTL_QUERY, CDM_IOCTL_RESET, CDM_IOCTL_RESIDENCY, CDM_TO_DEVICE, cdm_command, cdm_migrate,
    cdm_residency,
};
use cdm_protocol::Opcode;
use nix::errno::Errno;
use nix::sys::mman::ProtFlags;
use nix::unistd::{Gid, Uid, setresgid, setresuid};

use crate::fixture::{Fixture, expect_errno};
use crate::isolate::Child;

crate::tests!("bad_input":
    unknown_request_is_enotty,
    request_of_another_size_is_enotty,
    structure_that_cannot_be_read_or_written_is_efault,
    migrate_refuses_each_bad_field,
    residency_refuses_each_bad_field,
    command_refuses_each_bad_field,
    command_on_memory_that_is_not_there_is_efault,
    reset_needs_privilege,
    reset_leaves_memory_and_device_in_order,
    operand_in_another_process_s_place_is_the_callers_own,
);

const PAGE: u64 = PAGE_BYTES as u64;

/// A structure of the interface, as bytes.
fn bytes_of<T: Copy>(value: &T) -> Vec<u8> {
    let start = (value as *const T).cast::<u8>();
    // SAFETY: the structures of the interface have no padding (a unit test of the library checks
    // their sizes against their fields), so all their bytes are initialised.
    unsafe { std::slice::from_raw_parts(start, size_of::<T>()) }.to_vec()
}

/// Expects that a request is refused with `errno` and that its structure stays as it was.
fn refuse<T: Copy>(
    t: &Fixture,
    request: u32,
    mut value: T,
    errno: Errno,
    what: &str,
) -> Result<()> {
    let before = bytes_of(&value);
    // SAFETY: the driver may write the structure, which is a local; the addresses in it are those
    // of the test's own memory or not mapped.
    let result = unsafe { t.device.ioctl(request, (&raw mut value).cast()) };
    expect_errno(result, errno).with_context(|| what.to_owned())?;
    ensure!(
        before == bytes_of(&value),
        "{what}: the structure was changed"
    );
    Ok(())
}

fn unknown_request_is_enotty(t: &Fixture) -> Result<()> {
    let magic = CDM_IOC_MAGIC << 8;
    let mut scratch = [0u64; 64];
    // No argument; number 6 and on; our numbers without a size; a foreign letter; nothing at all.
    for request in [magic | 0x06, magic | 0xff, magic, 0x5401, 0, u32::MAX] {
        // SAFETY: whatever a driver might write fits into the scratch space.
        let result = unsafe { t.device.ioctl(request, scratch.as_mut_ptr().cast()) };
        expect_errno(result, Errno::ENOTTY).with_context(|| format!("request {request:#x}"))?;
    }
    ensure!(scratch == [0; 64], "an unknown request wrote to memory");
    Ok(())
}

fn request_of_another_size_is_enotty(t: &Fixture) -> Result<()> {
    const SIZE_SHIFT: u32 = 16;
    let mut scratch = [0u64; 64];
    for request in [
        CDM_IOCTL_QUERY,
        CDM_IOCTL_MIGRATE,
        CDM_IOCTL_RESIDENCY,
        CDM_IOCTL_COMMAND,
        CDM_IOCTL_BATCH,
    ] {
        for request in [request - (8 << SIZE_SHIFT), request + (8 << SIZE_SHIFT)] {
            // SAFETY: whatever a driver might write fits into the scratch space.
            let result = unsafe { t.device.ioctl(request, scratch.as_mut_ptr().cast()) };
            expect_errno(result, Errno::ENOTTY).with_context(|| format!("request {request:#x}"))?;
        }
    }
    ensure!(
        scratch == [0; 64],
        "a request of another size wrote to memory"
    );
    Ok(())
}

fn structure_that_cannot_be_read_or_written_is_efault(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(2, 1)?;
    let gone = {
        let mapping = Mapping::anonymous(PAGE_BYTES)?;
        mapping.address()
    };
    // Readable and not writable: a good request, so that only writing the result back can fail.
    let read_only = Mapping::anonymous(PAGE_BYTES)?;
    let good = cdm_migrate {
        address: memory.address(),
        length: memory.bytes() as u64,
        direction: CDM_TO_DEVICE,
        ..Default::default()
    };
    read_only.write_bytes(&bytes_of(&good));
    read_only.protect_pages(0, 1, ProtFlags::PROT_READ)?;
    let requests = [
        CDM_IOCTL_QUERY,
        CDM_IOCTL_MIGRATE,
        CDM_IOCTL_RESIDENCY,
        CDM_IOCTL_COMMAND,
        CDM_IOCTL_BATCH,
    ];
    for request in requests {
        for address in [0, gone, u64::MAX - 16, 1 << 63] {
            // SAFETY: nothing is mapped at these addresses, so nothing can be written.
            let result = unsafe { t.device.ioctl(request, address as *mut libc::c_void) };
            expect_errno(result, Errno::EFAULT)
                .with_context(|| format!("request {request:#x}, structure at {address:#x}"))?;
        }
    }
    for request in [CDM_IOCTL_QUERY, CDM_IOCTL_MIGRATE] {
        let address = read_only.address() as *mut libc::c_void;
        // SAFETY: the memory is the test's own and cannot be written.
        let result = unsafe { t.device.ioctl(request, address) };
        expect_errno(result, Errno::EFAULT)
            .with_context(|| format!("request {request:#x}, read-only structure"))?;
    }
    // An ioctl that failed has moved nothing.
    t.expect_in_system(memory.range())?;
    memory.check_pattern(1)?;
    Ok(())
}

fn migrate_refuses_each_bad_field(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(8, 2)?;
    let free = t.free_pages()?;
    let good = cdm_migrate {
        address: memory.address(),
        length: memory.bytes() as u64,
        direction: CDM_TO_DEVICE,
        ..Default::default()
    };
    let cases = [
        (
            "unaligned address",
            cdm_migrate {
                address: good.address + 8,
                ..good
            },
        ),
        (
            "unaligned length",
            cdm_migrate {
                length: good.length - 8,
                ..good
            },
        ),
        ("length zero", cdm_migrate { length: 0, ..good }),
        (
            "range that wraps",
            cdm_migrate {
                address: 0u64.wrapping_sub(PAGE),
                length: 2 * PAGE,
                ..good
            },
        ),
        (
            "range that wraps by its length",
            cdm_migrate {
                length: 0u64.wrapping_sub(PAGE),
                ..good
            },
        ),
        (
            "direction 0",
            cdm_migrate {
                direction: 0,
                ..good
            },
        ),
        (
            "direction 3",
            cdm_migrate {
                direction: 3,
                ..good
            },
        ),
        (
            "flag",
            cdm_migrate {
                flags: 1 << 3,
                ..good
            },
        ),
        (
            "high flag",
            cdm_migrate {
                flags: 1 << 31,
                ..good
            },
        ),
        (
            "reserved",
            cdm_migrate {
                reserved: 1,
                ..good
            },
        ),
    ];
    for (what, bad) in cases {
        refuse(t, CDM_IOCTL_MIGRATE, bad, Errno::EINVAL, what)?;
    }
    t.expect_in_system(memory.range())?;
    t.expect_free_pages(free)?;
    memory.check_pattern(2)?;
    // The good one is good, so each refusal was for the field in question.
    t.move_all(memory.range(), Direction::ToDevice)?;
    Ok(())
}

fn residency_refuses_each_bad_field(t: &Fixture) -> Result<()> {
    let memory = t.system_memory(8, 3)?;
    let good = cdm_residency {
        address: memory.address(),
        length: memory.bytes() as u64,
        ..Default::default()
    };
    let cases = [
        (
            "unaligned address",
            cdm_residency {
                address: good.address + 1,
                ..good
            },
        ),
        (
            "unaligned length",
            cdm_residency {
                length: good.length + 1,
                ..good
            },
        ),
        ("length zero", cdm_residency { length: 0, ..good }),
        (
            "range that wraps",
            cdm_residency {
                address: 0u64.wrapping_sub(PAGE),
                length: 2 * PAGE,
                ..good
            },
        ),
        ("flag", cdm_residency { flags: 1, ..good }),
    ];
    for (what, bad) in cases {
        refuse(t, CDM_IOCTL_RESIDENCY, bad, Errno::EINVAL, what)?;
    }
    let read_only = Mapping::anonymous(PAGE_BYTES)?;
    read_only.protect_pages(0, 1, ProtFlags::PROT_READ)?;
    for map in [8, u64::MAX - 4, read_only.address()] {
        let bad = cdm_residency { map, ..good };
        refuse(
            t,
            CDM_IOCTL_RESIDENCY,
            bad,
            Errno::EFAULT,
            &format!("map at {map:#x}"),
        )?;
    }
    t.device.residency(0, memory.range())?;
    Ok(())
}

fn command_refuses_each_bad_field(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(4, 4)?;
    let good = cdm_command {
        opcode: Opcode::FILL.get().into(),
        destination: memory.address(),
        length: 64,
        width: 8,
        ..Default::default()
    };
    let cases = [
        (
            "flag of a batch",
            cdm_command {
                flags: CDM_COMMAND_UNORDERED,
                ..good
            },
        ),
        (
            "high flag",
            cdm_command {
                flags: 1 << 31,
                ..good
            },
        ),
        (
            "reserved",
            cdm_command {
                reserved: 1,
                ..good
            },
        ),
        ("length zero", cdm_command { length: 0, ..good }),
        (
            "range that wraps",
            cdm_command {
                length: u64::MAX,
                ..good
            },
        ),
        (
            "length without an operand",
            cdm_command {
                destination: 0,
                ..good
            },
        ),
    ];
    for (what, bad) in cases {
        refuse(t, CDM_IOCTL_COMMAND, bad, Errno::EINVAL, what)?;
    }
    memory.check_pattern(4)?;
    t.device.nop()?.ok()?;
    Ok(())
}

fn command_on_memory_that_is_not_there_is_efault(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(4, 5)?;
    let gone = {
        let mapping = Mapping::anonymous(4 * PAGE_BYTES)?;
        mapping.address()
    };
    let copy = cdm_command {
        opcode: Opcode::COPY.get().into(),
        source: memory.address(),
        destination: gone,
        length: 4 * PAGE,
        ..Default::default()
    };
    refuse(
        t,
        CDM_IOCTL_COMMAND,
        copy,
        Errno::EFAULT,
        "destination not mapped",
    )?;
    let back = cdm_command {
        source: gone,
        destination: memory.address(),
        ..copy
    };
    refuse(
        t,
        CDM_IOCTL_COMMAND,
        back,
        Errno::EFAULT,
        "source not mapped",
    )?;
    let kernel = cdm_command {
        source: 1 << 63,
        destination: memory.address(),
        ..copy
    };
    refuse(
        t,
        CDM_IOCTL_COMMAND,
        kernel,
        Errno::EFAULT,
        "source in the kernel's half",
    )?;
    // Mapped at its start only: nothing of the good part is touched either.
    let tail = cdm_command {
        source: memory.address() + PAGE,
        destination: gone,
        ..copy
    };
    refuse(
        t,
        CDM_IOCTL_COMMAND,
        tail,
        Errno::EFAULT,
        "source that runs out",
    )?;
    memory.check_pattern(5)?;
    t.device.nop()?.ok()?;
    Ok(())
}

fn reset_needs_privilege(t: &Fixture) -> Result<()> {
    Child::spawn(|_| {
        let (uid, gid) = (Uid::from_raw(1000), Gid::from_raw(1000));
        setresgid(gid, gid, gid)?;
        setresuid(uid, uid, uid)?;
        expect_errno(t.device.reset(), Errno::EPERM)
    })?
    .finish()?;
    // SAFETY: the request has no structure, whatever its argument is.
    unsafe { t.device.ioctl(CDM_IOCTL_RESET, std::ptr::null_mut()) }?;
    Ok(())
}

fn reset_leaves_memory_and_device_in_order(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(64, 6)?;
    std::thread::scope(|scope| -> Result<()> {
        // Commands that run into a reset fail with EIO, or are done before.
        let busy = scope.spawn(|| -> io::Result<u32> {
            let mut cancelled = 0;
            for _ in 0..200 {
                match t.device.nop() {
                    Ok(_) => {}
                    Err(error) if error.raw_os_error() == Some(libc::EIO) => cancelled += 1,
                    Err(error) => return Err(error),
                }
            }
            Ok(cancelled)
        });
        for _ in 0..20 {
            t.device.reset()?;
        }
        let cancelled = busy
            .join()
            .map_err(|_| anyhow::anyhow!("the commands panicked"))??;
        t.note(format!("{cancelled} commands were cancelled"));
        Ok(())
    })?;
    memory.check_pattern(6)?;
    t.expect_in_device(memory.range())?;
    t.device.nop()?.ok()?;
    Ok(())
}

/// A command has no pid: a child that inherits the node works on its own memory.
fn operand_in_another_process_s_place_is_the_callers_own(t: &Fixture) -> Result<()> {
    let memory = t.resident_memory(4, 7)?;
    let child = Child::spawn(|_| {
        let device = Device::open(0)?;
        for device in [&device, &t.device] {
            let span = cdm_guest_tools::device::Span::all(&memory);
            device.fill(&memory, span, 8, 0x1234)?.ok()?;
        }
        memory.check_fill(0x1234)?;
        Ok(())
    })?;
    child.finish()?;
    if memory.check_pattern(7).is_err() {
        bail!("the child's command wrote to the parent's memory");
    }
    Ok(())
}
