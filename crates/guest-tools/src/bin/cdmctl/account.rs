// SPDX-License-Identifier: Apache-2.0 OR MIT

//! How the account of a migration is said, and judged.

use cdm_guest_tools::device::Migration;

use crate::Verdict;

/// A page that was never touched or cannot be moved at all is no failure.
pub fn verdict(total: &Migration) -> Verdict {
    match total.no_memory + total.busy + total.pinned + total.writeback + total.split {
        0 => Verdict::Done,
        _ => Verdict::CheckFailed,
    }
}

/// The account in one line, without what is zero.
pub fn sentence(total: &Migration) -> String {
    let parts = [
        (total.large, "in folios of 2 MiB"),
        (total.evicted, "others evicted"),
        (total.there, "already there"),
        (total.not_present, "not present"),
        (total.no_memory, "without room"),
        (total.busy, "busy"),
        (total.pinned, "pinned"),
        (total.writeback, "under writeback"),
        (total.private_data, "with private data"),
        (total.mapping, "of a mapping that cannot move"),
        (total.split, "of a folio that did not split"),
        (total.unsupported, "of an unsupported kind"),
    ];
    let rest: Vec<_> = parts
        .iter()
        .filter(|(pages, _)| *pages > 0)
        .map(|(pages, what)| format!("{pages} {what}"))
        .collect();
    let head = format!("{} of {} pages moved", total.moved, total.asked);
    match rest.as_slice() {
        [] => head,
        rest => format!("{head}; {}", rest.join(", ")),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn sentence_names_each_reason_that_occurred() {
        let all = Migration {
            asked: 4,
            moved: 4,
            ..Default::default()
        };
        assert_eq!(sentence(&all), "4 of 4 pages moved");
        let part = Migration {
            asked: 9,
            moved: 4,
            there: 1,
            no_memory: 3,
            busy: 1,
            ..all
        };
        assert_eq!(
            sentence(&part),
            "4 of 9 pages moved; 1 already there, 3 without room, 1 busy"
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
        assert_eq!(
            verdict(&Migration {
                no_memory: 1,
                ..total
            }),
            Verdict::CheckFailed
        );
        assert_eq!(
            verdict(&Migration { busy: 1, ..total }),
            Verdict::CheckFailed
        );
        assert_eq!(
            verdict(&Migration { pinned: 1, ..total }),
            Verdict::CheckFailed
        );
    }
}
