// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How the account of a migration is shown, and judged.

use cdm_guest_tools::device::Migration;
use cdm_guest_tools::memory::PAGE_BYTES;
use cdm_guest_tools::size::Size;

use crate::Verdict;
use crate::table::{self, figures, words};

/// A page that was never touched or cannot be moved at all is no failure.
pub fn verdict(total: &Migration) -> Verdict {
    match total.no_memory + total.busy + total.pinned + total.writeback + total.split {
        0 => Verdict::Done,
        _ => Verdict::CheckFailed,
    }
}

/// The account as a table, without reasons that nothing stayed for.
pub fn table(total: &Migration) -> String {
    let mut counts = vec![("asked", total.asked), ("moved", total.moved)];
    let rest = [
        ("moved in folios of 2 MiB", total.large),
        ("others evicted", total.evicted),
        ("already there", total.there),
    ];
    counts.extend(rest.into_iter().chain(reasons(total)).filter(is_any));
    pages(&counts)
}

/// Why pages did not move, and how many for each reason.
pub fn reasons(total: &Migration) -> impl Iterator<Item = (&'static str, u64)> {
    [
        ("not present", total.not_present),
        ("without room", total.no_memory),
        ("busy", total.busy),
        ("pinned", total.pinned),
        ("under writeback", total.writeback),
        ("with private data", total.private_data),
        ("of a mapping that cannot move", total.mapping),
        ("of a folio that did not split", total.split),
        ("of an unsupported kind", total.unsupported),
    ]
    .into_iter()
}

/// Whether there is a page in this row.
pub fn is_any((_, pages): &(&'static str, u64)) -> bool {
    *pages > 0
}

/// Numbers of pages, each with the memory that they are.
pub fn pages(counts: &[(&'static str, u64)]) -> String {
    let rows = counts.iter().map(|(what, pages)| {
        let size = Size(pages * PAGE_BYTES as u64);
        vec![(*what).to_owned(), pages.to_string(), size.to_string()]
    });
    let columns = [words("WHAT"), figures("PAGES"), figures("SIZE")];
    table::text(&columns, &rows.collect::<Vec<_>>())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn table_names_each_reason_that_occurred() {
        let all = Migration {
            asked: 4,
            moved: 4,
            ..Default::default()
        };
        assert_eq!(
            table(&all),
            "WHAT   PAGES    SIZE\n\
             asked      4  16 KiB\n\
             moved      4  16 KiB\n"
        );
        let part = Migration {
            asked: 516,
            moved: 512,
            large: 512,
            there: 1,
            no_memory: 3,
            ..all
        };
        assert_eq!(
            table(&part),
            "WHAT                      PAGES     SIZE\n\
             asked                       516  2.0 MiB\n\
             moved                       512    2 MiB\n\
             moved in folios of 2 MiB    512    2 MiB\n\
             already there                 1    4 KiB\n\
             without room                  3   12 KiB\n"
        );
    }

    #[test]
    fn untouched_and_unsupported_pages_are_no_failed_check() {
        let total = Migration {
            not_present: 3,
            unsupported: 2,
            ..Default::default()
        };
        assert_eq!(verdict(&total), Verdict::Done);
        for failed in [
            Migration {
                no_memory: 1,
                ..total
            },
            Migration { busy: 1, ..total },
            Migration { pinned: 1, ..total },
        ] {
            assert_eq!(verdict(&failed), Verdict::CheckFailed, "{failed:?}");
        }
    }
}
