// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The kernel's own view of a memory dump, added to it.
//!
//! A dump that QEMU writes knows memory by its physical addresses. Debuggers ask by the kernel's
//! virtual ones. So the kernel's page tables are read out of the dump, and each range that they map
//! becomes a segment of the file that shares its bytes with the physical one; a VMCOREINFO
//! note, as the kernel's own crash dumps have it, tells drgn and crash where to begin. Both are
//! appended: the file's header then points to the longer table at its end.
//!
//! QEMU could walk the page tables itself, but does not stop where tables refer to the same memory
//! again and again, as KASAN's do for terabytes.

use std::collections::HashSet;
use std::fmt::Write as _;
use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;

use anyhow::{Context as _, Result, bail, ensure};
use object::elf::{self, FileHeader64, NoteHeader32, ProgramHeader64};
use object::endian::{LittleEndian as Le, U16, U32, U64};
use object::read::elf::{ElfFile64, FileHeader as _, ProgramHeader as _};
use object::{Object as _, ObjectSymbol as _, ReadCache, pod};

/// Where the kernel's image is mapped: `__START_KERNEL_map`.
const KERNEL_MAP: u64 = 0xffff_ffff_8000_0000;
/// How the kernel's banner begins, in which the symbols prove that they fit.
const BANNER: &[u8] = b"Linux version ";
/// Most segments that a file's header can count in the plain way, with some to spare.
const SEGMENTS_MAX: usize = 0xff00;

const PAGE: u64 = 4096;
const ENTRIES: usize = 512;
const PRESENT: u64 = 1 << 0;
const LARGE: u64 = 1 << 7;
const ADDRESS: u64 = 0x000f_ffff_ffff_f000;
/// First entry of the topmost table that belongs to the kernel.
const KERNEL_HALF: usize = ENTRIES / 2;
/// Address bits below the index into a table of each level, the topmost last.
const SHIFTS: [u32; 4] = [12, 21, 30, 39];

/// Adds the mappings of the kernel whose symbols are in `vmlinux`; gives how many there are.
pub fn add(dump: &Path, vmlinux: &Path) -> Result<usize> {
    let symbols = Symbols::read(vmlinux)?;
    let file = File::options()
        .read(true)
        .write(true)
        .open(dump)
        .with_context(|| format!("cannot open {}", dump.display()))?;
    let memory = Memory::read(&file).with_context(|| format!("in {}", dump.display()))?;
    let banner = memory.bytes(symbols.linux_banner - KERNEL_MAP, BANNER.len())?;
    ensure!(
        banner == BANNER,
        "the kernel is not where {} has it",
        vmlinux.display()
    );
    let mut walk = Walk::new(&memory);
    walk.table(symbols.init_top_pgt - KERNEL_MAP, 3, 0, KERNEL_HALF);
    let segments: Vec<_> = walk
        .ranges
        .iter()
        .filter_map(|range| memory.segment(*range))
        .collect();
    let release = memory.release(symbols.linux_banner - KERNEL_MAP)?;
    memory.append(&segments, &symbols.vmcoreinfo(&release))?;
    Ok(segments.len())
}

/// What has to be known of a kernel.
#[derive(Debug, PartialEq, Eq)]
struct Symbols {
    linux_banner: u64,
    init_top_pgt: u64,
    init_uts_ns: u64,
    stext: u64,
    build_id: String,
}

impl Symbols {
    fn read(vmlinux: &Path) -> Result<Self> {
        let open = || -> Result<Self> {
            let cache = ReadCache::new(File::open(vmlinux)?);
            let elf = ElfFile64::<Le, _>::parse(&cache)?;
            let mut found = [None; 4];
            let wanted: [&[u8]; 4] = [b"linux_banner", b"init_top_pgt", b"init_uts_ns", b"_stext"];
            for symbol in elf.symbols() {
                let name = symbol.name_bytes()?;
                if let Some(at) = wanted.iter().position(|wanted| *wanted == name) {
                    found[at] = Some(symbol.address());
                }
            }
            let [
                Some(linux_banner),
                Some(init_top_pgt),
                Some(init_uts_ns),
                Some(stext),
            ] = found
            else {
                bail!("it has not the symbols of an x86-64 kernel");
            };
            let id = elf.build_id()?.unwrap_or_default();
            Ok(Self {
                linux_banner,
                init_top_pgt,
                init_uts_ns,
                stext,
                build_id: id.iter().map(|byte| format!("{byte:02x}")).collect(),
            })
        };
        open().with_context(|| format!("cannot use {}", vmlinux.display()))
    }

    /// What a kernel says of itself in its own crash dumps, as far as debuggers ask.
    fn vmcoreinfo(&self, release: &str) -> String {
        let mut text = format!("OSRELEASE={release}\n");
        if !self.build_id.is_empty() {
            let _ = writeln!(text, "BUILD-ID={}", self.build_id);
        }
        let _ = write!(
            text,
            "PAGESIZE={PAGE}\nSYMBOL(init_uts_ns)={:x}\nSYMBOL(_stext)={:x}\n\
             SYMBOL(swapper_pg_dir)={:x}\nNUMBER(phys_base)=0\nNUMBER(pgtable_l5_enabled)=0\n\
             KERNELOFFSET=0\n",
            self.init_uts_ns, self.stext, self.init_top_pgt
        );
        text
    }
}

/// A range of addresses that follow each other on both sides.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
struct Range {
    virt: u64,
    phys: u64,
    bytes: u64,
}

/// Memory as the dump has it.
struct Memory<'a> {
    file: &'a File,
    header: FileHeader64<Le>,
    segments: Vec<ProgramHeader64<Le>>,
}

impl<'a> Memory<'a> {
    fn read(file: &'a File) -> Result<Self> {
        let cache = ReadCache::new(file);
        let header = *FileHeader64::<Le>::parse(&cache)?;
        ensure!(
            header.e_type(Le) == elf::ET_CORE && header.e_machine(Le) == elf::EM_X86_64,
            "it is no dump of an x86-64 machine"
        );
        let segments = header.program_headers(Le, &cache)?.to_vec();
        Ok(Self {
            file,
            header,
            segments,
        })
    }

    /// Where in the file a physical address is, and how many bytes follow it there.
    fn place(&self, phys: u64) -> Option<(u64, u64)> {
        self.segments
            .iter()
            .filter(|segment| segment.p_type(Le) == elf::PT_LOAD)
            .find_map(|segment| {
                let offset = phys.checked_sub(segment.p_paddr(Le))?;
                let left = segment.p_filesz(Le).checked_sub(offset)?;
                (left > 0).then(|| (segment.p_offset(Le) + offset, left))
            })
    }

    fn bytes(&self, phys: u64, count: usize) -> Result<Vec<u8>> {
        let place = self.place(phys).filter(|(_, left)| *left >= count as u64);
        let (offset, _) = place.with_context(|| format!("nothing at {phys:#x}"))?;
        let mut bytes = vec![0; count];
        self.file.read_exact_at(&mut bytes, offset)?;
        Ok(bytes)
    }

    fn table(&self, phys: u64) -> Option<[u64; ENTRIES]> {
        let bytes = self.bytes(phys, PAGE as usize).ok()?;
        let mut entries = [0; ENTRIES];
        for (entry, bytes) in entries.iter_mut().zip(bytes.chunks_exact(8)) {
            *entry = u64::from_le_bytes(bytes.try_into().ok()?);
        }
        Some(entries)
    }

    /// The kernel's release, from its banner.
    fn release(&self, banner: u64) -> Result<String> {
        /// As long as a release may be.
        const RELEASE_MAX: usize = 64;
        let text = self.bytes(banner + BANNER.len() as u64, RELEASE_MAX)?;
        let end = text.iter().position(|byte| *byte == b' ');
        let end = end.context("the kernel's banner names no release")?;
        Ok(String::from_utf8_lossy(&text[..end]).into_owned())
    }

    /// The segment for a range, as far as its memory is in the dump: devices have registers.
    fn segment(&self, range: Range) -> Option<ProgramHeader64<Le>> {
        let (offset, left) = self.place(range.phys)?;
        let bytes = U64::new(Le, range.bytes.min(left));
        Some(ProgramHeader64 {
            p_type: U32::new(Le, elf::PT_LOAD),
            p_flags: U32::new(Le, elf::PF_R | elf::PF_W | elf::PF_X),
            p_offset: U64::new(Le, offset),
            p_vaddr: U64::new(Le, range.virt),
            p_paddr: U64::new(Le, range.phys),
            p_filesz: bytes,
            p_memsz: bytes,
            p_align: U64::new(Le, 0),
        })
    }

    /// Appends a note and a longer table of segments, then has the header point to it.
    fn append(&self, more: &[ProgramHeader64<Le>], vmcoreinfo: &str) -> Result<()> {
        let count = self.segments.len() + more.len() + 1;
        ensure!(
            count <= SEGMENTS_MAX,
            "{count} segments are more than {SEGMENTS_MAX}"
        );
        let note = note(b"VMCOREINFO\0", vmcoreinfo.as_bytes());
        let note_at = self.file.metadata()?.len().next_multiple_of(8);
        let table_at = note_at + note.len() as u64;
        let note_segment = ProgramHeader64 {
            p_type: U32::new(Le, elf::PT_NOTE),
            p_flags: U32::new(Le, elf::ProgramFlags(0)),
            p_offset: U64::new(Le, note_at),
            p_vaddr: U64::new(Le, 0),
            p_paddr: U64::new(Le, 0),
            p_filesz: U64::new(Le, note.len() as u64),
            p_memsz: U64::new(Le, note.len() as u64),
            p_align: U64::new(Le, 0),
        };
        let table: Vec<_> = self
            .segments
            .iter()
            .chain([&note_segment])
            .chain(more)
            .copied()
            .collect();
        self.file.write_all_at(&note, note_at)?;
        self.file
            .write_all_at(pod::bytes_of_slice(&table), table_at)?;
        let mut header = self.header;
        header.e_phoff = U64::new(Le, table_at);
        header.e_phnum = U16::new(Le, u16::try_from(count)?);
        self.file.write_all_at(pod::bytes_of(&header), 0)?;
        Ok(())
    }
}

/// An ELF note of type 0, padded to a multiple of eight.
fn note(name: &[u8], text: &[u8]) -> Vec<u8> {
    let header = NoteHeader32 {
        n_namesz: U32::new(Le, name.len() as u32),
        n_descsz: U32::new(Le, text.len() as u32),
        n_type: U32::new(Le, elf::NoteType(0)),
    };
    let mut bytes = pod::bytes_of(&header).to_vec();
    for part in [name, text] {
        bytes.extend_from_slice(part);
        bytes.resize(bytes.len().next_multiple_of(4), 0);
    }
    bytes.resize(bytes.len().next_multiple_of(8), 0);
    bytes
}

/// What page tables map.
struct Walk<'a> {
    memory: &'a Memory<'a>,
    /// Tables that were gone through: one that is used for many ranges counts for the first.
    seen: HashSet<(usize, u64)>,
    ranges: Vec<Range>,
}

impl<'a> Walk<'a> {
    fn new(memory: &'a Memory<'a>) -> Self {
        Self {
            memory,
            seen: HashSet::new(),
            ranges: Vec::new(),
        }
    }

    /// Goes through a table of a level, from its entry `first` on; `base` is the address that its
    /// first entry maps.
    fn table(&mut self, phys: u64, level: usize, base: u64, first: usize) {
        if !self.seen.insert((level, phys)) {
            return;
        }
        let Some(entries) = self.memory.table(phys) else {
            return;
        };
        for (index, entry) in entries.iter().enumerate().skip(first) {
            if entry & PRESENT == 0 {
                continue;
            }
            let shift = SHIFTS[level];
            let virt = canonical(base | ((index as u64) << shift));
            if level == 0 || (level < 3 && entry & LARGE != 0) {
                let bytes = 1 << shift;
                self.map(virt, entry & ADDRESS & !(bytes - 1), bytes);
            } else {
                self.table(entry & ADDRESS, level - 1, virt, 0);
            }
        }
    }

    fn map(&mut self, virt: u64, phys: u64, bytes: u64) {
        if let Some(last) = self.ranges.last_mut()
            && last.virt.wrapping_add(last.bytes) == virt
            && last.phys + last.bytes == phys
        {
            last.bytes += bytes;
            return;
        }
        self.ranges.push(Range { virt, phys, bytes });
    }
}

/// An address as the processor wants it: its topmost bits are all the same.
fn canonical(address: u64) -> u64 {
    const UNUSED_BITS: u32 = 16;
    ((address << UNUSED_BITS).cast_signed() >> UNUSED_BITS).cast_unsigned()
}

#[cfg(test)]
mod tests;
