// SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT

//! `include/cdm_device.h`, the contract for drivers in C: every table of the specification as
//! definitions. The tables are what `spec` compares with the code, so the header agrees with
//! both. It is written where `CDM_RECORD_REFERENCE` is set, as `just reference --record` does.

extern crate std;

use std::format;
use std::string::{String, ToString as _};
use std::vec::Vec;

use super::spec::{Row, rows, specification};

const HEADER: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include/cdm_device.h");

const HEAD: &str = "\
/* SPDX-License-Identifier: GPL-2.0-only OR Apache-2.0 OR MIT */
/*
 * Wire contract of the coherent device memory (cdm) device: what its specification,
 * docs/reference/device.md, has in tables. Written from there by 'just reference --record';
 * not by hand. Everything is little-endian. Needs a linux/types.h, and static_assert().
 */
#ifndef _CDM_DEVICE_H
#define _CDM_DEVICE_H

#include <linux/types.h>

/* The magic of struct cdm_dev_config, with the zero at its end. */
#define CDM_DEV_MAGIC \"cdm-dev\"
";

/// A section: its heading's last word, which names a type if it is in backquotes, and its text.
fn sections(text: &str) -> Vec<(Option<&str>, &str)> {
    text.split("\n#")
        .skip(1)
        .map(|section| {
            let heading = section.lines().next().unwrap_or_default();
            let name = heading.split('`').nth(1).filter(|_| heading.ends_with('`'));
            (name, section)
        })
        .collect()
}

/// `PoolKind` as `POOL_KIND`.
fn upper(name: &str) -> String {
    let mut out = String::new();
    for (index, c) in name.char_indices() {
        if index > 0 && c.is_uppercase() {
            out.push('_');
        }
        out.extend(c.to_uppercase());
    }
    out
}

fn define(out: &mut String, name: &str, value: &str) {
    let tabs = "\t".repeat(40_usize.saturating_sub(name.len() + 8).div_ceil(8).max(1));
    out.push_str(&format!("#define {name}{tabs}{value}\n"));
}

/// A number for C, which wants to know of those that an int cannot hold.
fn literal(value: u64) -> String {
    match u32::try_from(value) {
        Ok(_) => value.to_string(),
        Err(_) => format!("{value}ULL"),
    }
}

fn field(row: &Row) -> String {
    let (bytes, name) = (&row[1], &row[2]);
    // Those that are made of structures of their own are the last to be defined.
    let entries = |of: &str, each: u32| {
        let count = bytes.parse::<u32>().expect("a size") / each;
        format!("struct cdm_dev_{of} {name}[{count}]")
    };
    let typed = match (name.as_str(), bytes.as_str()) {
        ("pools", _) => entries("pool", 24),
        ("agents", _) => entries("agent", 8),
        ("magic", _) => "__u8 magic[8]".to_string(),
        (_, "1") => format!("__u8 {name}"),
        (_, "2") => format!("__le16 {name}"),
        (_, "4") => format!("__le32 {name}"),
        (_, "8") => format!("__le64 {name}"),
        _ => format!("__u8 {name}[{bytes}]"),
    };
    format!("\t{typed};\n")
}

fn structure(name: &str, fields: &[Row]) -> String {
    let name = format!("cdm_dev_{}", upper(name).to_lowercase());
    let last = fields.last().expect("a field");
    let end = |row: &Row| -> u32 {
        let of = |cell: &str| cell.parse::<u32>().expect("a number");
        of(&row[0]) + of(&row[1])
    };
    let body: String = fields.iter().map(field).collect();
    format!(
        "\nstruct {name} {{\n{body}}};\nstatic_assert(sizeof(struct {name}) == {}, \"{name}\");\n",
        end(last)
    )
}

/// The header, from the specification.
fn header(text: &str) -> String {
    let mut out = HEAD.to_string();
    let mut structures = Vec::new();
    for (name, section) in sections(text) {
        let all = rows(section);
        let is = |header: &str| section.contains(&format!("\n| {header} |"));
        if is("offset | size | field") {
            let name = name.expect("a table of offsets stands below its structure's name");
            structures.push((name, all));
        } else if is("number | name") {
            let name = name.expect("a table of numbers stands below its type's name");
            out.push_str(&format!("\n/* {name} */\n"));
            for row in &all {
                let value = row[1].to_uppercase().replace([' ', '-'], "_");
                define(
                    &mut out,
                    &format!("CDM_DEV_{}_{value}", upper(name)),
                    &row[0],
                );
            }
        } else if is("constant | value") {
            out.push('\n');
            for row in all.iter().filter(|row| row.len() == 3) {
                if let Ok(value) = row[1].parse() {
                    define(&mut out, &format!("CDM_DEV_{}", row[0]), &literal(value));
                }
            }
        } else if is("bit | constant") {
            out.push('\n');
            for row in &all {
                define(
                    &mut out,
                    &format!("CDM_DEV_{}", row[1]),
                    &format!("(1ULL << {})", row[0]),
                );
            }
        }
    }
    // The config space is made of others, which come after it in the text.
    structures.sort_by_key(|(name, _)| *name == "Config");
    for (name, fields) in &structures {
        out.push_str(&structure(name, fields));
    }
    out.push_str("\n#endif /* _CDM_DEVICE_H */\n");
    out
}

#[test]
fn reference_header_is_what_the_specification_says() {
    let header = header(&specification());
    if std::env::var_os("CDM_RECORD_REFERENCE").is_some() {
        std::fs::write(HEADER, header).expect("written");
        return;
    }
    let there = std::fs::read_to_string(HEADER).unwrap_or_default();
    assert!(
        there == header,
        "{HEADER} is not what the specification says; run 'just reference --record'"
    );
}

/// The headers of versions before this one, as drivers were built with them.
const RELEASED: &str = concat!(env!("CARGO_MANIFEST_DIR"), "/include/released");

/// The first line of a released header that is not in the present one, behind those before it. What
/// numbers the version is the one thing that changes.
fn first_change<'a>(released: &'a str, present: &str) -> Option<&'a str> {
    let mut rest = present.lines();
    released
        .lines()
        .filter(|line| !line.starts_with("#define CDM_DEV_VERSION_MINOR"))
        .find(|line| !rest.any(|other| other == *line))
}

#[test]
fn driver_of_an_earlier_version_means_by_everything_what_the_device_of_today_does() {
    let present = header(&specification());
    let mut seen = 0;
    for entry in std::fs::read_dir(RELEASED).expect("headers of earlier versions") {
        let path = entry.expect("an entry").path();
        let released = std::fs::read_to_string(&path).expect("a header");
        let change = first_change(&released, &present);
        assert_eq!(change, None, "{} has it otherwise", path.display());
        seen += 1;
    }
    assert!(seen > 0, "{RELEASED} has no header");
}

#[test]
fn changed_number_and_missing_field_of_a_released_header_show() {
    let present = header(&specification());
    let renumbered = present.replace("POOL_KIND_GENERAL\t1", "POOL_KIND_GENERAL\t2");
    let grown = present.replace("__le64 address;", "__le32 address;");
    for other in [renumbered, grown] {
        assert_ne!(other, present);
        assert!(first_change(&present, &other).is_some());
    }
    assert_eq!(first_change(&present, &present), None);
}

#[test]
fn tables_become_definitions_of_their_kind() {
    let text = "# A\n### 1 `PoolKind`\n\n| number | name | meaning |\n|---|---|---|\n| 1 | general \
                | x |\n### 2 `Pool`\n\n| offset | size | field | access | value \
                |\n|---|---|---|---|---|\n| 0 | 8 | `base` | read | x |\n| 8 | 6 | `reserved` | \
                read | x |\n### Limits\n\n| constant | value | meaning |\n|---|---|---|\n| `A_MAX` | \
                68719476736 | x |\n";
    let header = header(text);
    for part in [
        "#define CDM_DEV_POOL_KIND_GENERAL\t",
        "struct cdm_dev_pool {\n\t__le64 base;\n\t__u8 reserved[6];\n};",
        "sizeof(struct cdm_dev_pool) == 14",
        "\t68719476736ULL\n",
    ] {
        assert!(header.contains(part), "{part:?} is not in\n{header}");
    }
}
