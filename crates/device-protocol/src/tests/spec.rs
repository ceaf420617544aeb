// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! Compares the tables of `docs/reference/device.md` with the code, both ways: what one
//! has and the other lacks fails too.

extern crate std;

use crate::*;
use std::format;
use std::string::{String, ToString};
use std::vec::Vec;
use zerocopy::FromBytes;

/// One row of a table, cell by cell, without backticks.
pub(super) type Row = Vec<String>;

pub(super) fn specification() -> String {
    let path = concat!(
        env!("CARGO_MANIFEST_DIR"),
        "/../../docs/reference/device.md"
    );
    std::fs::read_to_string(path).unwrap_or_else(|error| panic!("{path}: {error}"))
}

/// Text between a heading that ends with `title` and the next heading.
fn section<'t>(text: &'t str, title: &str) -> &'t str {
    let is_wanted = |line: &&str| line.starts_with('#') && line.ends_with(&format!(" {title}"));
    let heading = text.lines().find(is_wanted);
    let heading = heading.unwrap_or_else(|| panic!("no section {title:?}"));
    let begin = text.find(&format!("\n{heading}\n")).unwrap() + heading.len() + 1;
    let rest = &text[begin..];
    rest.find("\n#").map_or(rest, |end| &rest[..end])
}

/// Rows of all tables of a section, without header and ruler.
pub(super) fn rows(section: &str) -> Vec<Row> {
    let is_row = |line: &&str| line.starts_with('|');
    let lines: Vec<&str> = section.lines().collect();
    let rulers: Vec<usize> = (0..lines.len())
        .filter(|&index| lines[index].starts_with("|---"))
        .collect();
    rulers
        .into_iter()
        .flat_map(|ruler| lines[ruler + 1..].iter().take_while(|line| is_row(line)))
        .map(|line| {
            let cells = line.trim_matches('|').split('|');
            cells.map(|cell| cell.trim().replace('`', "")).collect()
        })
        .collect()
}

fn number(cell: &str) -> u64 {
    cell.parse()
        .unwrap_or_else(|_| panic!("{cell:?} is not a number"))
}

/// Offset, size and name of each field, from the specification.
fn layout(title: &str) -> Vec<(usize, usize, String)> {
    rows(section(&specification(), &format!("`{title}`")))
        .iter()
        .map(|row| {
            (
                number(&row[0]) as usize,
                number(&row[1]) as usize,
                row[2].clone(),
            )
        })
        .collect()
}

/// Size of a field, by a pointer to it that is never followed.
const fn size_of_field<T, F>(_: fn(&T) -> &F) -> usize {
    size_of::<F>()
}

/// Checks one structure against its table.
macro_rules! assert_layout_in_spec {
    ($type:ident { $($field:ident),+ $(,)? }) => {{
        let in_code: Vec<(usize, usize, String)> = [$((
            core::mem::offset_of!($type, $field),
            size_of_field(|value: &$type| &value.$field),
            stringify!($field).to_string(),
        )),+].into();
        // The list above is complete: the fields leave no gap and reach the end.
        let mut end = 0;
        for (offset, size, name) in &in_code {
            assert_eq!(*offset, end, "gap before {}.{name}", stringify!($type));
            end += size;
        }
        assert_eq!(end, size_of::<$type>());
        assert_eq!(layout(stringify!($type)), in_code, "{}", stringify!($type));
    }};
}

/// Checks a table of `number | name` against all values of a wire number.
macro_rules! assert_numbers_in_spec {
    ($($type:ident),+ $(,)?) => {$({
        let in_code: Vec<(u64, String)> = $type::ALL
            .iter()
            .map(|(value, name)| (value.get().into(), name.to_string()))
            .collect();
        let text = specification();
        let in_spec: Vec<(u64, String)> = rows(section(&text, concat!("`", stringify!($type), "`")))
            .iter()
            .map(|row| (number(&row[0]), row[1].clone()))
            .collect();
        assert_eq!(in_spec, in_code, "{}", stringify!($type));
    })+};
}

/// Checks tables of `constant | value` against the constants.
macro_rules! assert_constants_in_spec {
    ($title:literal, $($constant:ident),+ $(,)?) => {{
        let in_code: Vec<(String, u64)> =
            [$((stringify!($constant).to_string(), $constant as u64)),+].into();
        let in_spec: Vec<(String, u64)> = rows(section(&specification(), $title))
            .iter()
            .filter(|row| row[0].chars().all(|c| c.is_ascii_uppercase() || c == '_'))
            .filter(|row| row.len() == 3)
            .map(|row| (row[0].clone(), number(&row[1])))
            .collect();
        assert_eq!(in_spec, in_code, $title);
    }};
}

#[test]
fn every_offset_and_size_is_that_of_the_specification() {
    assert_layout_in_spec!(Config {
        magic,
        version_major,
        version_minor,
        config_bytes,
        features,
        memory_bytes,
        num_command_queues,
        num_pools,
        num_agents,
        link_width_lanes,
        link_speed_mts,
        reserved,
        pools,
        agents,
    });
    assert_layout_in_spec!(Pool {
        base,
        bytes,
        kind,
        reserved
    });
    assert_layout_in_spec!(Agent {
        id,
        kind,
        pool,
        reserved
    });
    assert_layout_in_spec!(ControlRequest {
        opcode,
        flags,
        pasid,
        arg0,
        arg1
    });
    assert_layout_in_spec!(CommandHeader {
        opcode,
        flags,
        num_src,
        num_dst,
        width,
        reserved,
        repeat,
        arg0,
        arg1,
    });
    assert_layout_in_spec!(CommandTag { tag });
    assert_layout_in_spec!(Range {
        space,
        reserved,
        pasid,
        address,
        bytes
    });
    assert_layout_in_spec!(Instruction {
        operator,
        order,
        width,
        d,
        a,
        b,
        immediate
    });
    assert_layout_in_spec!(Completion {
        status,
        reserved,
        range_index,
        result,
        bytes_done
    });
    assert_layout_in_spec!(Event {
        kind,
        queue,
        reserved,
        lost
    });
    assert_layout_in_spec!(PageRequest {
        kind,
        queue,
        pasid,
        address,
        id,
        pages,
        flags,
        reserved,
    });
    assert_layout_in_spec!(MemoryError {
        kind,
        reserved,
        address,
        bytes,
        lost
    });
    assert_layout_in_spec!(AccessReport {
        kind,
        queue,
        pasid,
        address,
        accesses,
        lost,
    });
}

#[test]
fn every_wire_number_is_that_of_the_specification() {
    assert_numbers_in_spec!(
        AgentKind,
        PoolKind,
        ControlOpcode,
        Opcode,
        Space,
        Operator,
        MemoryOrder,
        Status,
        EventKind,
    );
}

#[test]
fn every_constant_is_that_of_the_specification() {
    assert_constants_in_spec!(
        "3. Discovery",
        VIRTIO_ID,
        SHMEM_REGION_ID,
        VERSION_MAJOR,
        VERSION_MINOR,
    );
    assert_constants_in_spec!(
        "3.2 Limits",
        MEMORY_BYTES_MIN,
        MEMORY_BYTES_MAX,
        COMMAND_QUEUES_MAX,
        QUEUE_SIZE,
        RANGES_MAX,
        TRANSFER_BYTES_MAX,
        REPEAT_MAX,
        BINS_MAX,
        PROGRAM_INSTRUCTIONS_MAX,
        PROGRAM_STEPS_MAX,
        PROGRAM_REGISTERS,
        PASID_MAX,
        ADDRESS_SPACES_MAX,
        PAGE_REQUEST_PAGES_MAX,
        PAGE_BYTES_SMALL,
        PAGE_BYTES_LARGE,
        ERROR_BYTES,
        GRANULE_BYTES,
        ACCESS_BYTES,
        GRANULES_PER_SPACE_MAX,
        GRANULES_MAX,
        REPORT_BUFFERS_SPARED,
        POOLS_MAX,
        AGENTS_MAX,
    );
    assert_constants_in_spec!("5. Queues", QUEUE_CONTROL, QUEUE_EVENT, QUEUE_FIRST_COMMAND);
}

#[test]
fn every_feature_bit_is_that_of_the_specification() {
    let in_spec: Vec<(u64, String)> = rows(section(&specification(), "3.1 Device features"))
        .iter()
        .map(|row| (1 << number(&row[0]), row[1].clone()))
        .collect();
    let in_code = [
        (FEATURE_METADATA_GUARD, "FEATURE_METADATA_GUARD".to_string()),
        (FEATURE_ATOMICS, "FEATURE_ATOMICS".to_string()),
        (FEATURE_COMPUTE, "FEATURE_COMPUTE".to_string()),
        (FEATURE_PROGRAM, "FEATURE_PROGRAM".to_string()),
        (FEATURE_UNORDERED, "FEATURE_UNORDERED".to_string()),
        (FEATURE_CANCEL, "FEATURE_CANCEL".to_string()),
        (FEATURE_SVA, "FEATURE_SVA".to_string()),
        (FEATURE_MEMORY_ERROR, "FEATURE_MEMORY_ERROR".to_string()),
        (
            FEATURE_ACCESS_COUNTERS,
            "FEATURE_ACCESS_COUNTERS".to_string(),
        ),
        (
            FEATURE_EXCLUSIVE_ATOMICS,
            "FEATURE_EXCLUSIVE_ATOMICS".to_string(),
        ),
    ];
    assert_eq!(in_spec, in_code);
    let all = in_code.iter().fold(0, |all, (bit, _)| all | bit);
    assert_eq!(all, FEATURES_ALL);
}

#[test]
fn every_command_flag_is_that_of_the_specification() {
    let in_spec: Vec<(u16, String)> = rows(section(&specification(), "Flags"))
        .iter()
        .map(|row| (1 << number(&row[0]), row[1].clone()))
        .collect();
    let in_code = [
        (FLAG_FLOAT, "FLAG_FLOAT".to_string()),
        (FLAG_UNORDERED, "FLAG_UNORDERED".to_string()),
        (FLAG_TAGGED, "FLAG_TAGGED".to_string()),
    ];
    assert_eq!(in_spec, in_code);
}

#[test]
fn every_bit_of_page_entries_and_page_requests_is_that_of_the_specification() {
    let bits = |title| -> Vec<(u64, String)> {
        let text = specification();
        let rows = rows(section(&text, title));
        let bit = |row: &Row| (1 << number(&row[0]), row[1].clone());
        rows.iter().map(bit).collect()
    };
    let entries = [
        (PageEntry::WRITABLE, "WRITABLE".to_string()),
        (PageEntry::DEVICE, "DEVICE".to_string()),
        (PageEntry::LARGE, "LARGE".to_string()),
        (PageEntry::REFUSED, "REFUSED".to_string()),
        (PageEntry::EXCLUSIVE, "EXCLUSIVE".to_string()),
    ];
    assert_eq!(bits("Page entries"), entries);
    let text = specification();
    let begin = PageEntry::STATUS_SHIFT;
    let place = format!("bits {begin} to {} are the `Status`", begin + 15);
    assert!(section(&text, "Page entries").contains(&place));
    // The bits that say something are none of the address.
    let all = entries.iter().fold(0, |all, (bit, _)| all | bit);
    assert_eq!(all & PageEntry::ADDRESS_MASK, 0);
    assert_eq!(PageEntry::ADDRESS_MASK, !(PAGE_BYTES_SMALL - 1));
    let flags = [
        (PAGE_REQUEST_WRITE.into(), "PAGE_REQUEST_WRITE".to_string()),
        (
            PAGE_REQUEST_ATOMIC.into(),
            "PAGE_REQUEST_ATOMIC".to_string(),
        ),
    ];
    assert_eq!(bits("Page request flags"), flags);
}

#[test]
fn magic_and_equal_marker_are_spelt_as_in_the_specification() {
    let text = specification();
    let spelt: Vec<String> = MAGIC.iter().map(|byte| format!("{byte:02x}")).collect();
    assert!(section(&text, "`Config`").contains(&spelt.join(" ")));
    let marker = format!("`COMPARE_EQUAL` ({COMPARE_EQUAL:x})");
    assert!(section(&text, "7.10 COMPARE").contains(&marker));
}

#[test]
fn every_operation_has_a_section_whose_statuses_exist() {
    let text = specification();
    let control = ControlOpcode::ALL.iter().map(|(_, name)| name);
    for name in Opcode::ALL.iter().map(|(_, name)| name).chain(control) {
        let rows = rows(section(&text, name));
        assert_eq!(rows[0][0], "OK", "{name}");
        for row in &rows {
            let is_known = Status::ALL.iter().any(|(_, status)| *status == row[0]);
            assert!(is_known, "{name}: {}", row[0]);
        }
    }
}

/// The byte blocks of the worked exchange.
fn worked_exchange() -> Vec<Vec<u8>> {
    let text = specification();
    let section = section(&text, "12. A worked exchange");
    let blocks = section.split("```text\n").skip(1);
    blocks
        .map(|block| {
            let bytes = block.split("```").next().unwrap().split_whitespace();
            bytes
                .map(|byte| u8::from_str_radix(byte, 16).unwrap())
                .collect()
        })
        .collect()
}

#[test]
fn the_worked_exchange_means_what_it_says() {
    let [map, mapped, checksum, sum] = &worked_exchange()[..] else {
        panic!("the exchange has two requests and two completions");
    };
    let map = ControlRequest::read_from_bytes(map).unwrap();
    assert_eq!(map.opcode, ControlOpcode::MAP_MEMORY);
    assert_eq!((map.arg0.get(), map.arg1.get()), (0, 0));
    let mapped = Completion::read_from_bytes(mapped).unwrap();
    assert_eq!((mapped.status, mapped.result.get()), (Status::OK, 1 << 30));

    let (header, ranges) = CommandHeader::read_from_prefix(checksum).unwrap();
    assert_eq!(header.opcode, Opcode::CHECKSUM);
    assert_eq!((header.num_src.get(), header.num_dst.get()), (1, 0));
    let range = Range::read_from_bytes(ranges).unwrap();
    assert_eq!(range.space, Space::DEVICE);
    assert_eq!((range.address.get(), range.bytes.get()), (0x1000, 9));
    let sum = Completion::read_from_bytes(sum).unwrap();
    assert_eq!((sum.status, sum.result.get()), (Status::OK, 0xe306_9283));
    assert_eq!(sum.bytes_done.get(), 9);
}
