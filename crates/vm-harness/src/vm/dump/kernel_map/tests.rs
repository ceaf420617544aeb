// SPDX-License-Identifier: Apache-2.0 OR MIT

//! A dump of a machine with a page of text and a few tables, and what is made of it.

use super::*;
use std::fs;

const TEXT: u64 = 0x1000;
const TOP: u64 = 0x2000;
const UPPER: u64 = 0x3000;
const MIDDLE: u64 = 0x4000;
const LOWEST: u64 = 0x5000;
const END: u64 = 0x40_0000;
/// Where the memory begins in the file.
const OFFSET: u64 = 0x200;

/// A file as QEMU writes it: header, one segment, memory.
fn dump(path: &Path, entries: &[(u64, usize, u64)]) {
    let mut bytes = vec![0; (OFFSET + END) as usize];
    let mut put = |at: u64, part: &[u8]| {
        bytes[at as usize..at as usize + part.len()].copy_from_slice(part);
    };
    let ident = elf::Ident {
        magic: elf::ELFMAG,
        class: elf::ELFCLASS64,
        data: elf::ELFDATA2LSB,
        version: elf::EV_CURRENT,
        os_abi: elf::ELFOSABI_NONE,
        abi_version: 0,
        padding: [0; 7],
    };
    let header = FileHeader64 {
        e_ident: ident,
        e_type: U16::new(Le, elf::ET_CORE),
        e_machine: U16::new(Le, elf::EM_X86_64),
        e_version: U32::new(Le, 1),
        e_entry: U64::new(Le, 0),
        e_phoff: U64::new(Le, 64),
        e_shoff: U64::new(Le, 0),
        e_flags: U32::new(Le, elf::FileFlags(0)),
        e_ehsize: U16::new(Le, 64),
        e_phentsize: U16::new(Le, 56),
        e_phnum: U16::new(Le, 1),
        e_shentsize: U16::new(Le, 0),
        e_shnum: U16::new(Le, 0),
        e_shstrndx: U16::new(Le, elf::SymbolSection(0)),
    };
    let segment = ProgramHeader64 {
        p_type: U32::new(Le, elf::PT_LOAD),
        p_flags: U32::new(Le, elf::ProgramFlags(0)),
        p_offset: U64::new(Le, OFFSET),
        p_vaddr: U64::new(Le, 0),
        p_paddr: U64::new(Le, 0),
        p_filesz: U64::new(Le, END),
        p_memsz: U64::new(Le, END),
        p_align: U64::new(Le, 0),
    };
    put(0, pod::bytes_of(&header));
    put(64, pod::bytes_of(&segment));
    put(
        OFFSET + TEXT,
        b"Linux version 7.3.4 (cdm@cdm) and so on and on and on and on and on",
    );
    for (table, index, entry) in entries {
        put(OFFSET + table + *index as u64 * 8, &entry.to_le_bytes());
    }
    fs::write(path, bytes).expect("written");
}

/// The index into a table of each level for an address.
fn index(virt: u64, level: usize) -> usize {
    (virt >> SHIFTS[level]) as usize % ENTRIES
}

/// A kernel stack that two pages back, in turned order, and a large page.
const STACK: u64 = 0xffff_c900_0000_4000;
const STACK_PAGES: [u64; 2] = [0x8000, 0x7000];
const LARGE_AT: u64 = 0xffff_c900_0020_0000;

fn tables() -> Vec<(u64, usize, u64)> {
    vec![
        (TOP, index(STACK, 3), UPPER | PRESENT),
        // Of a process.
        (TOP, 1, UPPER | PRESENT),
        (UPPER, index(STACK, 2), MIDDLE | PRESENT),
        // The same tables once more, as KASAN has them.
        (UPPER, index(STACK, 2) + 1, MIDDLE | PRESENT),
        (MIDDLE, index(STACK, 1), LOWEST | PRESENT),
        (MIDDLE, index(LARGE_AT, 1), 0x20_0000 | PRESENT | LARGE),
        // Beyond the memory, as registers of a device are.
        (MIDDLE, 9, 0xfe00_0000 | PRESENT | LARGE),
        (LOWEST, index(STACK, 0), STACK_PAGES[0] | PRESENT),
        (LOWEST, index(STACK, 0) + 1, STACK_PAGES[1] | PRESENT),
        (
            LOWEST,
            index(STACK, 0) + 2,
            (STACK_PAGES[1] + PAGE) | PRESENT,
        ),
        (LOWEST, index(STACK, 0) + 3, 0x9000),
    ]
}

fn walked(path: &Path) -> Vec<Range> {
    let file = File::open(path).expect("open");
    let memory = Memory::read(&file).expect("a dump");
    let mut walk = Walk::new(&memory);
    walk.table(TOP, 3, 0, KERNEL_HALF);
    walk.ranges
}

#[test]
fn what_the_kernels_tables_map_is_found_once_and_neighbours_are_one_range() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("dump");
    dump(&path, &tables());
    let range = |virt, phys, bytes| Range { virt, phys, bytes };
    let registers = (LARGE_AT & !((1 << 30) - 1)) + (9 << 21);
    assert_eq!(
        walked(&path),
        [
            range(STACK, STACK_PAGES[0], PAGE),
            range(STACK + PAGE, STACK_PAGES[1], 2 * PAGE),
            range(LARGE_AT, 0x20_0000, 1 << 21),
            range(registers, 0xfe00_0000, 1 << 21),
        ]
    );
}

#[test]
fn added_segments_show_the_memory_behind_virtual_addresses_and_a_note_names_the_kernel() {
    let dir = tempfile::tempdir().expect("temporary folder");
    let path = dir.path().join("dump");
    dump(&path, &tables());
    let before = fs::read(&path).expect("there");
    let file = File::options()
        .read(true)
        .write(true)
        .open(&path)
        .expect("open");
    let memory = Memory::read(&file).expect("a dump");
    let release = memory.release(TEXT).expect("it has one");
    assert_eq!(release, "7.3.4");
    let symbols = Symbols {
        linux_banner: KERNEL_MAP + TEXT,
        init_top_pgt: KERNEL_MAP + TOP,
        init_uts_ns: 1,
        stext: 2,
        build_id: "ab12".into(),
    };
    let segments: Vec<_> = walked(&path)
        .into_iter()
        .filter_map(|range| memory.segment(range))
        .collect();
    // Registers are not in a dump.
    assert_eq!(segments.len(), 3);
    memory
        .append(&segments, &symbols.vmcoreinfo(&release))
        .expect("appended");

    let bytes = fs::read(&path).expect("there");
    assert_eq!(bytes[64..before.len()], before[64..], "memory has changed");
    let header = FileHeader64::<Le>::parse(&*bytes).expect("ELF");
    let all = header.program_headers(Le, &*bytes).expect("a table");
    let stack = all
        .iter()
        .find(|segment| segment.p_vaddr(Le) == STACK + PAGE)
        .expect("mapped");
    assert_eq!(stack.p_offset(Le), OFFSET + STACK_PAGES[1]);
    assert_eq!(
        (stack.p_filesz(Le), stack.p_paddr(Le)),
        (2 * PAGE, STACK_PAGES[1])
    );
    let mut notes = all
        .iter()
        .find_map(|segment| segment.notes(Le, &*bytes).expect("notes"))
        .expect("there is one");
    let note = notes.next().expect("well formed").expect("one");
    assert_eq!(note.name(), b"VMCOREINFO");
    let text = String::from_utf8_lossy(note.desc());
    for line in [
        "OSRELEASE=7.3.4",
        "BUILD-ID=ab12",
        "SYMBOL(swapper_pg_dir)=ffffffff80002000",
    ] {
        assert!(
            text.lines().any(|found| found == line),
            "{line} is not in {text}"
        );
    }
}
