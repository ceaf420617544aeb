// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The driver's device nodes, /dev/cdm0 and on.

use std::fs::{self, File};
use std::io;
use std::ops::Deref;
use std::os::fd::{AsRawFd, RawFd};

use cdm_protocol::{COMPARE_EQUAL, Opcode, Status};

use crate::memory::Mapping;
use crate::range::AddressRange;
use crate::uapi;

/// Where a migration goes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Direction {
    /// Into the memory of the device whose node is asked.
    ToDevice,
    /// Into ordinary memory.
    ToSystem,
}

impl Direction {
    fn number(self) -> u32 {
        match self {
            Self::ToDevice => uapi::CDM_TO_DEVICE,
            Self::ToSystem => uapi::CDM_TO_SYSTEM,
        }
    }
}

/// Where a page is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Place {
    /// Nowhere: not mapped, or never touched.
    Absent,
    /// In ordinary memory.
    System,
    /// In the memory of the device that was asked.
    ThisDevice,
    /// In the memory of another device.
    OtherDevice,
}

impl Place {
    fn from_number(number: u8) -> io::Result<Self> {
        match u32::from(number) {
            uapi::CDM_PLACE_ABSENT => Ok(Self::Absent),
            uapi::CDM_PLACE_SYSTEM => Ok(Self::System),
            uapi::CDM_PLACE_THIS_DEVICE => Ok(Self::ThisDevice),
            uapi::CDM_PLACE_OTHER_DEVICE => Ok(Self::OtherDevice),
            other => Err(io::Error::other(format!(
                "the driver names an unknown place {other}"
            ))),
        }
    }
}

/// What a migration did, in pages.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Migration {
    /// Pages that the call got to.
    pub asked: u64,
    /// Pages that it moved.
    pub moved: u64,
    /// Pages that were there before.
    pub there: u64,
    /// Nothing is mapped there, or the page was never touched.
    pub not_present: u64,
    /// There was no room where it should go.
    pub no_memory: u64,
    /// Locked, or used by somebody else for a moment.
    pub busy: u64,
    /// Pinned for DMA.
    pub pinned: u64,
    /// Being written to its file or to swap.
    pub writeback: u64,
    /// Page cache with private data of its file system.
    pub private_data: u64,
    /// Page cache of a mapping that cannot move.
    pub mapping: u64,
    /// Part of a larger folio that could not be split.
    pub split: u64,
    /// A kind of page that the kernel does not move to this memory.
    pub unsupported: u64,
    /// Of the pages that moved, those that moved as 2 MiB folios.
    pub large: u64,
    /// Pages that left the device to make room.
    pub evicted: u64,
}

/// How a migration is done; nothing of it unless asked for.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Options {
    /// Fault in what is not present first.
    pub populate: bool,
    /// Evict the least recently migrated pages from a device that is full.
    pub make_room: bool,
    /// Move 2 MiB folios as 4 KiB pages.
    pub small: bool,
}

impl Options {
    fn flags(self) -> u32 {
        [
            (self.populate, uapi::CDM_MIGRATE_POPULATE),
            (self.make_room, uapi::CDM_MIGRATE_MAKE_ROOM),
            (self.small, uapi::CDM_MIGRATE_SMALL),
        ]
        .iter()
        .filter(|(is_wanted, _)| *is_wanted)
        .fold(0, |flags, (_, flag)| flags | flag)
    }
}

/// What is to move to the device for being used much.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Hot {
    /// Accesses of the device to 64 KiB that make them hot.
    pub threshold: u32,
    /// Most pages in a second, in the long run.
    pub pages_per_second: u32,
    /// Most pages at once.
    pub pages_burst: u32,
    /// Evict the least recently migrated pages from a device that is full.
    pub make_room: bool,
}

/// Which pages of a device an eviction is about.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Evicted {
    /// All of them, lowest frame first.
    All,
    /// Those between two guest-physical addresses, lowest frame first.
    Frames(u64, u64),
    /// The least recently migrated ones first.
    Oldest,
}

impl Migration {
    /// Pages that did not move.
    pub fn failed(&self) -> u64 {
        self.not_present
            + self.no_memory
            + self.busy
            + self.pinned
            + self.writeback
            + self.private_data
            + self.mapping
            + self.split
            + self.unsupported
    }

    /// Whether every page is accounted for once.
    pub fn adds_up(&self) -> bool {
        self.asked == self.moved + self.there + self.failed()
    }

    /// Adds what another call did.
    pub fn add(&mut self, other: &Self) {
        self.asked += other.asked;
        self.moved += other.moved;
        self.there += other.there;
        self.not_present += other.not_present;
        self.no_memory += other.no_memory;
        self.busy += other.busy;
        self.pinned += other.pinned;
        self.writeback += other.writeback;
        self.private_data += other.private_data;
        self.mapping += other.mapping;
        self.split += other.split;
        self.unsupported += other.unsupported;
        self.large += other.large;
        self.evicted += other.evicted;
    }

    /// A migration in which so many pages of each reason did not move.
    pub fn of_failed(failed: &[u64; uapi::CDM_REASON_COUNT as usize]) -> Self {
        let failed = |reason: uapi::cdm_reason| failed[reason as usize];
        Self {
            not_present: failed(uapi::CDM_REASON_NOT_PRESENT),
            no_memory: failed(uapi::CDM_REASON_NO_MEMORY),
            busy: failed(uapi::CDM_REASON_BUSY),
            pinned: failed(uapi::CDM_REASON_PINNED),
            writeback: failed(uapi::CDM_REASON_WRITEBACK),
            private_data: failed(uapi::CDM_REASON_PRIVATE_DATA),
            mapping: failed(uapi::CDM_REASON_MAPPING),
            split: failed(uapi::CDM_REASON_SPLIT),
            unsupported: failed(uapi::CDM_REASON_UNSUPPORTED),
            ..Default::default()
        }
    }
}

impl From<&uapi::cdm_migrate> for Migration {
    fn from(raw: &uapi::cdm_migrate) -> Self {
        Self {
            asked: raw.pages_asked,
            moved: raw.pages_moved,
            there: raw.pages_there,
            large: raw.pages_large,
            evicted: raw.pages_evicted,
            ..Self::of_failed(&raw.failed)
        }
    }
}

impl From<&uapi::cdm_evict> for Migration {
    fn from(raw: &uapi::cdm_evict) -> Self {
        Self {
            asked: raw.pages_asked,
            moved: raw.pages_moved,
            large: raw.pages_large,
            ..Self::of_failed(&raw.failed)
        }
    }
}

/// Pages of a range by the place they are in.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Residency {
    /// Not mapped, or never touched.
    pub absent: u64,
    /// In ordinary memory.
    pub system: u64,
    /// In the memory of the device that was asked.
    pub this_device: u64,
    /// In the memory of another device.
    pub other_device: u64,
    /// Of those in the device that was asked, pages of 2 MiB folios.
    pub large: u64,
}

impl From<&uapi::cdm_residency> for Residency {
    fn from(raw: &uapi::cdm_residency) -> Self {
        let pages = |place: uapi::cdm_place| raw.pages[place as usize];
        Self {
            absent: pages(uapi::CDM_PLACE_ABSENT),
            system: pages(uapi::CDM_PLACE_SYSTEM),
            this_device: pages(uapi::CDM_PLACE_THIS_DEVICE),
            other_device: pages(uapi::CDM_PLACE_OTHER_DEVICE),
            large: raw.pages_large,
        }
    }
}

/// What the device answered to a command.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Answer {
    /// Outcome by the device specification.
    pub status: Status,
    /// Result of the operation.
    pub result: u64,
    /// Bytes that the device processed.
    pub bytes_done: u64,
}

impl Answer {
    /// The result, or the status as an error.
    pub fn ok(self) -> io::Result<u64> {
        match self.status {
            Status::OK => Ok(self.result),
            status => Err(io::Error::other(format!(
                "the device answered {status:?} after {} bytes",
                self.bytes_done
            ))),
        }
    }
}

/// Result of a comparison.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Comparison {
    /// No difference.
    Equal,
    /// Byte offset of the first difference.
    DiffersAt(u64),
}

/// An open node of the driver.
#[derive(Debug)]
pub struct Device {
    file: File,
    number: u32,
    /// Flags of every command: whether it names memory by addresses.
    flags: u32,
}

impl Device {
    /// Opens /dev/cdmN.
    pub fn open(number: u32) -> io::Result<Self> {
        let path = format!("/dev/cdm{number}");
        let file = File::options().read(true).write(true).open(path)?;
        Ok(Self {
            file,
            number,
            flags: 0,
        })
    }

    /// Numbers of the devices that have a node, lowest first.
    pub fn numbers() -> io::Result<Vec<u32>> {
        let mut numbers = Vec::new();
        for entry in fs::read_dir("/dev")? {
            let name = entry?.file_name();
            let digits = name.to_str().and_then(|name| name.strip_prefix("cdm"));
            numbers.extend(digits.and_then(|digits| digits.parse::<u32>().ok()));
        }
        numbers.sort_unstable();
        Ok(numbers)
    }

    /// Number of the device, N of /dev/cdmN.
    pub fn number(&self) -> u32 {
        self.number
    }

    /// What the device is and how much of it is in use.
    pub fn query(&self) -> io::Result<uapi::cdm_query> {
        let mut query = uapi::cdm_query::default();
        // SAFETY: the driver reads and writes exactly the structure of this request.
        unsafe { self.ioctl(uapi::CDM_IOCTL_QUERY, (&raw mut query).cast()) }?;
        Ok(query)
    }

    /// Moves the pages of `range` of process `pid`; 0 is the caller. Their
    /// contents and addresses stay.
    pub fn migrate(
        &self,
        pid: i32,
        range: AddressRange,
        direction: Direction,
    ) -> io::Result<Migration> {
        self.migrate_with(pid, range, direction, Options::default())
    }

    /// As `migrate`, with options.
    pub fn migrate_with(
        &self,
        pid: i32,
        range: AddressRange,
        direction: Direction,
        options: Options,
    ) -> io::Result<Migration> {
        let mut request = uapi::cdm_migrate {
            address: range.start(),
            length: range.bytes(),
            pid,
            direction: direction.number(),
            flags: options.flags(),
            ..Default::default()
        };
        // SAFETY: the driver reads and writes exactly the structure of this request; moving a page
        // changes nothing that a program can see.
        unsafe { self.ioctl(uapi::CDM_IOCTL_MIGRATE, (&raw mut request).cast()) }?;
        Ok(Migration::from(&request))
    }

    /// Brings pages of the device back to system memory, whoever they belong to, and stops when
    /// `pages_max` of them left; 0 is no limit.
    pub fn evict(&self, which: Evicted, pages_max: u64) -> io::Result<Migration> {
        let (start, end) = match which {
            Evicted::Frames(start, end) => (start, end),
            Evicted::All | Evicted::Oldest => (0, 0),
        };
        let mut request = uapi::cdm_evict {
            address: start,
            length: end.wrapping_sub(start),
            pages_max,
            flags: match which {
                Evicted::Oldest => uapi::CDM_EVICT_OLDEST,
                _ => 0,
            },
            ..Default::default()
        };
        // SAFETY: the driver reads and writes exactly the structure of this request; moving a page
        // changes nothing that a program can see.
        unsafe { self.ioctl(uapi::CDM_IOCTL_EVICT, (&raw mut request).cast()) }?;
        Ok(Migration::from(&request))
    }

    /// Counts the pages of `range` of process `pid` by place; 0 is the caller.
    pub fn residency(&self, pid: i32, range: AddressRange) -> io::Result<Residency> {
        let mut request = uapi::cdm_residency {
            address: range.start(),
            length: range.bytes(),
            pid,
            ..Default::default()
        };
        // SAFETY: the driver reads and writes exactly the structure of this request; no map is
        // asked for.
        unsafe { self.ioctl(uapi::CDM_IOCTL_RESIDENCY, (&raw mut request).cast()) }?;
        Ok(Residency::from(&request))
    }

    /// The place of each page of `range` of process `pid`; 0 is the caller.
    pub fn places(&self, pid: i32, range: AddressRange) -> io::Result<Vec<Place>> {
        let mut map = vec![u8::MAX; range.pages() as usize];
        let mut request = uapi::cdm_residency {
            address: range.start(),
            length: range.bytes(),
            map: map.as_mut_ptr() as u64,
            pid,
            ..Default::default()
        };
        // SAFETY: as in `residency`, and the map has one byte for each page of the range.
        unsafe { self.ioctl(uapi::CDM_IOCTL_RESIDENCY, (&raw mut request).cast()) }?;
        map.into_iter().map(Place::from_number).collect()
    }

    /// Lets the device do nothing, which it answers in order with other commands.
    pub fn nop(&self) -> io::Result<Answer> {
        self.command(Opcode::NOP, None, None, 0, 0, [0; 2])
    }

    /// Lets the device store the low `width` bytes of `value` all over `bytes` at `offset`.
    pub fn fill(&self, memory: &Mapping, span: Span, width: u32, value: u64) -> io::Result<Answer> {
        self.command(
            Opcode::FILL,
            None,
            Some((memory, span)),
            width,
            0,
            [value, 0],
        )
    }

    /// Lets the device copy from one mapping to another, or inside one.
    pub fn copy(
        &self,
        source: (&Mapping, Span),
        destination: (&Mapping, Span),
    ) -> io::Result<Answer> {
        self.command(Opcode::COPY, Some(source), Some(destination), 0, 0, [0; 2])
    }

    /// Lets the device compute the CRC-32C, continued from `crc` (0 to begin).
    pub fn checksum(&self, memory: &Mapping, span: Span, crc: u32) -> io::Result<u32> {
        let args = [u64::from(crc), 0];
        let answer = self.command(Opcode::CHECKSUM, Some((memory, span)), None, 0, 0, args)?;
        let result = answer.ok()?;
        u32::try_from(result)
            .map_err(|_| io::Error::other(format!("the device's CRC {result:#x} has over 32 bits")))
    }

    /// Lets the device compare two pieces of memory.
    pub fn compare(&self, a: (&Mapping, Span), b: (&Mapping, Span)) -> io::Result<Comparison> {
        match self
            .command(Opcode::COMPARE, Some(a), Some(b), 0, 0, [0; 2])?
            .ok()?
        {
            COMPARE_EQUAL => Ok(Comparison::Equal),
            offset => Ok(Comparison::DiffersAt(offset)),
        }
    }

    /// Lets the device add `addend` atomically, `repeat` times, to the 4 or 8 bytes of `span`; gives
    /// the value before the last addition.
    pub fn fetch_add(
        &self,
        memory: &Mapping,
        span: Span,
        addend: u64,
        repeat: u32,
    ) -> io::Result<Answer> {
        let width = span.bytes as u32;
        self.command(
            Opcode::FETCH_ADD,
            None,
            Some((memory, span)),
            width,
            repeat,
            [addend, 0],
        )
    }

    /// Lets the device store `new` atomically if the 4 or 8 bytes of `span` hold `expected`; gives
    /// what it found.
    pub fn compare_swap(
        &self,
        memory: &Mapping,
        span: Span,
        expected: u64,
        new: u64,
    ) -> io::Result<Answer> {
        let width = span.bytes as u32;
        self.command(
            Opcode::COMPARE_SWAP,
            None,
            Some((memory, span)),
            width,
            0,
            [expected, new],
        )
    }

    fn command(
        &self,
        opcode: Opcode,
        source: Option<(&Mapping, Span)>,
        destination: Option<(&Mapping, Span)>,
        width: u32,
        repeat: u32,
        args: [u64; 2],
    ) -> io::Result<Answer> {
        let address = |operand: Option<(&Mapping, Span)>| match operand {
            Some((memory, span)) => span.address_in(memory),
            None => Ok(0),
        };
        self.send(uapi::cdm_command {
            opcode: opcode.get().into(),
            source: address(source)?,
            destination: address(destination)?,
            length: source
                .or(destination)
                .map_or(0, |(_, span)| span.bytes as u64),
            width,
            repeat,
            arg0: args[0],
            arg1: args[1],
            ..Default::default()
        })
    }

    /// Lets the device use the addresses of this process, until the value is dropped.
    pub fn bind(mut self) -> io::Result<Bound> {
        let mut request = uapi::cdm_bind::default();
        // SAFETY: the driver reads and writes exactly the structure of this request. What the device
        // may touch from here on is what commands name.
        unsafe { self.ioctl(uapi::CDM_IOCTL_BIND, (&raw mut request).cast()) }?;
        self.flags |= uapi::CDM_COMMAND_SVA;
        Ok(Bound {
            device: self,
            pasid: request.pasid,
        })
    }

    /// Whether its commands name memory by addresses of this process.
    pub(crate) fn is_bound(&self) -> bool {
        self.flags & uapi::CDM_COMMAND_SVA != 0
    }

    /// Sends a command whose operands are spans of mappings.
    pub(crate) fn send(&self, mut request: uapi::cdm_command) -> io::Result<Answer> {
        request.flags |= self.flags;
        // SAFETY: the driver reads and writes exactly the structure of this request. The device
        // touches only the operands, which lie inside mappings that are accessed by atomics alone,
        // and either stay pinned by the driver until the device has answered, or are kept from it
        // from the moment on that they are mappings of this process no more.
        unsafe { self.ioctl(uapi::CDM_IOCTL_COMMAND, (&raw mut request).cast()) }?;
        Ok(Answer::from(&request))
    }

    /// Fails every outstanding command of the device.
    pub fn reset(&self) -> io::Result<()> {
        // SAFETY: the request has no structure.
        unsafe { self.ioctl(uapi::CDM_IOCTL_RESET, std::ptr::null_mut()) }
    }

    /// Sends any request, as tests of refusals do.
    ///
    /// # Safety
    /// Whatever the driver may write for this request, through `argument` or to an address inside
    /// its structure, must be memory that may be overwritten; a bad address is fine.
    pub unsafe fn ioctl(&self, request: u32, argument: *mut libc::c_void) -> io::Result<()> {
        // SAFETY: the caller vouches for what the request writes.
        match unsafe { libc::ioctl(self.file.as_raw_fd(), request as _, argument) } {
            0 => Ok(()),
            -1 => Err(io::Error::last_os_error()),
            other => Err(io::Error::other(format!(
                "an ioctl returned {other}, not 0"
            ))),
        }
    }
}

impl AsRawFd for Device {
    fn as_raw_fd(&self) -> RawFd {
        self.file.as_raw_fd()
    }
}

impl From<&uapi::cdm_command> for Answer {
    fn from(raw: &uapi::cdm_command) -> Self {
        // A status above 16 bits cannot come from the wire; all ones is no known status either.
        let number = u16::try_from(raw.status).unwrap_or(u16::MAX);
        Self {
            status: Status(number.into()),
            result: raw.result,
            bytes_done: raw.bytes_done,
        }
    }
}

/// A device that uses the addresses of this process. Its commands name memory by them: nothing
/// is pinned, and a page is faulted in when a command comes to it.
#[derive(Debug)]
pub struct Bound {
    device: Device,
    pasid: u32,
}

impl Bound {
    /// Opens /dev/cdmN and binds this process.
    pub fn open(number: u32) -> io::Result<Self> {
        Device::open(number)?.bind()
    }

    /// Number of the address space on the device.
    pub fn pasid(&self) -> u32 {
        self.pasid
    }

    /// The device alone; it stays bound as long as it is open.
    pub fn into_device(self) -> Device {
        self.device
    }

    /// Has what the device uses much move to it, by a rate.
    pub fn move_hot(&self, wish: Hot) -> io::Result<()> {
        self.set_hot(uapi::cdm_hot {
            threshold: wish.threshold,
            flags: if wish.make_room {
                uapi::CDM_HOT_MAKE_ROOM
            } else {
                0
            },
            pages_per_second: wish.pages_per_second,
            pages_burst: wish.pages_burst,
            reserved: 0,
        })
    }

    /// Has nothing move any more for being used much.
    pub fn leave_hot(&self) -> io::Result<()> {
        self.set_hot(uapi::cdm_hot::default())
    }

    /// Asks for what is in the structure, as tests of refusals do.
    pub fn set_hot(&self, mut request: uapi::cdm_hot) -> io::Result<()> {
        // SAFETY: the driver reads and writes exactly the structure of this request; moving a page
        // changes nothing that a program can see.
        unsafe {
            self.device
                .ioctl(uapi::CDM_IOCTL_HOT, (&raw mut request).cast())
        }
    }

    /// What became of what the device uses much.
    pub fn hot_counters(&self) -> io::Result<uapi::cdm_hot_counters> {
        let mut counters = uapi::cdm_hot_counters::default();
        // SAFETY: the driver reads and writes exactly the structure of this request.
        unsafe {
            self.device
                .ioctl(uapi::CDM_IOCTL_HOT_COUNTERS, (&raw mut counters).cast())
        }?;
        Ok(counters)
    }

    /// Ends the binding, and with it what commands are under way.
    pub fn unbind(&self) -> io::Result<()> {
        // SAFETY: the request has no structure.
        unsafe {
            self.device
                .ioctl(uapi::CDM_IOCTL_UNBIND, std::ptr::null_mut())
        }
    }
}

impl Deref for Bound {
    type Target = Device;

    fn deref(&self) -> &Device {
        &self.device
    }
}

/// A piece of a mapping.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Span {
    /// First byte, from the start of the mapping.
    pub offset: usize,
    /// Length in bytes.
    pub bytes: usize,
}

impl Span {
    /// The whole of a mapping.
    pub fn all(memory: &Mapping) -> Self {
        Self {
            offset: 0,
            bytes: memory.bytes(),
        }
    }

    pub(crate) fn address_in(self, memory: &Mapping) -> io::Result<u64> {
        match self.offset.checked_add(self.bytes) {
            Some(end) if end <= memory.bytes() => Ok(memory.address() + self.offset as u64),
            _ => Err(io::Error::other(format!(
                "{} bytes at offset {:#x} lie outside a mapping of {} bytes",
                self.bytes,
                self.offset,
                memory.bytes()
            ))),
        }
    }
}

/// Name of a memory type, as `cdmctl info` prints it.
pub fn memory_type_name(number: u32) -> String {
    match number {
        uapi::CDM_MEMORY_PRIVATE => "private".into(),
        uapi::CDM_MEMORY_COHERENT => "coherent".into(),
        uapi::CDM_MEMORY_PUBLIC => "public".into(),
        other => format!("unknown-{other}"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::mem::offset_of;

    #[test]
    fn migration_adds_up_only_if_every_page_is_counted_once() {
        let mut raw = uapi::cdm_migrate {
            pages_asked: 50,
            pages_moved: 4,
            pages_there: 1,
            ..Default::default()
        };
        raw.failed = [1, 2, 3, 4, 5, 6, 7, 8, 9];
        let migration = Migration::from(&raw);
        assert!(migration.adds_up());
        assert_eq!((migration.not_present, migration.no_memory), (1, 2));
        assert_eq!((migration.busy, migration.pinned), (3, 4));
        assert_eq!((migration.writeback, migration.private_data), (5, 6));
        assert_eq!((migration.mapping, migration.split), (7, 8));
        assert_eq!(migration.unsupported, 9);
        assert!(
            !Migration {
                asked: 51,
                ..migration
            }
            .adds_up()
        );
    }

    #[test]
    fn span_outside_its_mapping_is_refused_before_the_driver_sees_it() {
        let memory = Mapping::anonymous(4096).unwrap();
        assert!(
            Span {
                offset: 4096,
                bytes: 1
            }
            .address_in(&memory)
            .is_err()
        );
        assert!(
            Span {
                offset: usize::MAX,
                bytes: 2
            }
            .address_in(&memory)
            .is_err()
        );
        assert!(
            Span {
                offset: 4088,
                bytes: 8
            }
            .address_in(&memory)
            .is_ok()
        );
    }

    #[test]
    fn status_that_does_not_fit_the_wire_is_never_ok() {
        let raw = uapi::cdm_command {
            status: 0x1_0000,
            ..Default::default()
        };
        assert!(Answer::from(&raw).ok().is_err());
    }

    #[test]
    fn structures_have_no_hole_that_the_header_does_not_name() {
        // The driver checks reserved fields; a hole would carry whatever the stack held.
        assert_eq!(size_of::<uapi::cdm_query>(), 112);
        assert_eq!(size_of::<uapi::cdm_migrate>(), 32 + 8 * (3 + 9 + 4));
        assert_eq!(size_of::<uapi::cdm_evict>(), 32 + 8 * (2 + 9 + 3));
        assert_eq!(size_of::<uapi::cdm_residency>(), 32 + 8 * (4 + 2));
        assert_eq!(size_of::<uapi::cdm_command>(), 80);
        assert_eq!(size_of::<uapi::cdm_bind>(), 16);
        assert_eq!(size_of::<uapi::cdm_range>(), 16);
        assert_eq!(size_of::<uapi::cdm_batch_command>(), 88);
        assert_eq!(size_of::<uapi::cdm_batch>(), 32);
        assert_eq!(size_of::<uapi::cdm_hot>(), 24);
        assert_eq!(
            size_of::<uapi::cdm_hot_counters>(),
            16 + 8 * (4 + 9 + 4 + 2)
        );
    }

    #[test]
    fn words_of_64_bits_lie_where_a_32_bit_program_puts_them_too() {
        // There they need an alignment of four bytes only, so an odd place would be another one.
        assert!(offset_of!(uapi::cdm_batch_command, source).is_multiple_of(8));
        assert!(offset_of!(uapi::cdm_batch_command, arg0).is_multiple_of(8));
        assert!(offset_of!(uapi::cdm_batch_command, result).is_multiple_of(8));
        assert!(offset_of!(uapi::cdm_batch, reserved).is_multiple_of(8));
        let of_words = |words: usize, halves: usize| 8 * words + 4 * halves;
        assert_eq!(size_of::<uapi::cdm_batch_command>(), of_words(7, 8));
        assert_eq!(size_of::<uapi::cdm_batch>(), of_words(2, 4));
        assert_eq!(size_of::<uapi::cdm_command>(), of_words(7, 6));
        assert_eq!(size_of::<uapi::cdm_hot>(), of_words(1, 4));
        assert_eq!(size_of::<uapi::cdm_hot_counters>(), of_words(19, 4));
    }
}
