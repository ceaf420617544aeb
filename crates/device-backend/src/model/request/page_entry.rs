// SPDX-License-Identifier: Apache-2.0 OR MIT

//! What a PAGE_RESPONSE says of pages.

use crate::model::translation::{Answer, Frame, PageSize, Translation};
use cdm_protocol::{PageEntry, Status};

/// Refusals that a driver may give a reason for.
const REASONS: [Status; 4] = [
    Status::UNMAPPED,
    Status::NO_ACCESS,
    Status::UNBOUND,
    Status::PAGE_ERROR,
];

/// Reads a list of entries; `None` if one makes no sense, or one follows a refusal.
pub fn parse_entries(entries: &[PageEntry]) -> Option<Vec<Answer>> {
    let answers = entries.iter().map(parse).collect::<Option<Vec<_>>>()?;
    let refused = |answer: &Answer| matches!(answer, Answer::Refused(_));
    let is_last = |place| place + 1 == answers.len();
    answers
        .iter()
        .position(refused)
        .is_none_or(is_last)
        .then_some(answers)
}

fn parse(entry: &PageEntry) -> Option<Answer> {
    let bits = entry.0.get();
    if bits & PageEntry::REFUSED != 0 {
        let reason = bits >> PageEntry::STATUS_SHIFT;
        let is_plain = bits == reason << PageEntry::STATUS_SHIFT | PageEntry::REFUSED;
        let mut reasons = REASONS.into_iter();
        let status = reasons.find(|status| u64::from(status.get()) == reason)?;
        return is_plain.then_some(Answer::Refused(status));
    }
    let address = bits & PageEntry::ADDRESS_MASK;
    let is_writable = bits & PageEntry::WRITABLE != 0;
    let is_exclusive = bits & PageEntry::EXCLUSIVE != 0;
    let flags = PageEntry::WRITABLE | PageEntry::DEVICE | PageEntry::LARGE | PageEntry::EXCLUSIVE;
    let size = match bits & PageEntry::LARGE {
        0 => PageSize::Small,
        _ => PageSize::Large,
    };
    if bits & !(PageEntry::ADDRESS_MASK | flags) != 0
        || !address.is_multiple_of(size.bytes())
        || (is_exclusive && !is_writable)
    {
        return None;
    }
    let frame = match bits & PageEntry::DEVICE {
        0 => Frame::Guest(address),
        _ => Frame::Device(address),
    };
    let translation = Translation {
        frame,
        is_writable,
        is_exclusive,
    };
    Some(Answer::Page(size, translation))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn read(entries: &[u64]) -> Option<Vec<Answer>> {
        let entries: Vec<_> = entries.iter().map(|&bits| PageEntry(bits.into())).collect();
        parse_entries(&entries)
    }

    #[test]
    fn entries_say_where_how_large_and_what_for() {
        let page = |size, frame, is_writable, is_exclusive| {
            let translation = Translation {
                frame,
                is_writable,
                is_exclusive,
            };
            Answer::Page(size, translation)
        };
        let expected = vec![
            page(PageSize::Small, Frame::Guest(0x5000), false, false),
            page(PageSize::Small, Frame::Device(0x6000), true, false),
            page(PageSize::Large, Frame::Guest(4 << 20), true, false),
            page(PageSize::Small, Frame::Guest(0x7000), true, true),
            Answer::Refused(Status::NO_ACCESS),
        ];
        let reason = u64::from(Status::NO_ACCESS.get()) << 16;
        let bits = [0x5000, 0x6003, 4 << 20 | 5, 0x7011, reason | 8];
        assert_eq!(read(&bits), Some(expected));
    }

    #[test]
    fn what_makes_no_sense_is_not_taken() {
        let refused = |status: Status| u64::from(status.get()) << 16 | 8;
        for bits in [
            // Exclusive, and only to be read.
            0x5010,
            0x5020,
            0x5800,
            // Not at a multiple of its size.
            0x1000 | PageEntry::LARGE,
            // No reasons for a refusal.
            8,
            refused(Status::OK),
            refused(Status::CANCELLED),
            refused(Status::UNMAPPED) | PageEntry::WRITABLE,
            refused(Status::UNMAPPED) | 1 << 40,
        ] {
            assert_eq!(read(&[bits]), None, "{bits:#x}");
        }
        assert_eq!(read(&[refused(Status::UNMAPPED), 0x5000]), None);
    }
}
