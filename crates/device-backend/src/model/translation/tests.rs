// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Address spaces without commands.

use super::*;
use crate::model::alarm::Alarm;
use cdm_protocol::{ADDRESS_SPACES_MAX, PASID_MAX, Status};
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const CAPACITY: Capacity = Capacity { small: 8, large: 2 };
const ONE: Pasid = Pasid(1);
const TWO: Pasid = Pasid(2);
const SMALL: u64 = PageSize::Small.bytes();
const LARGE: u64 = PageSize::Large.bytes();

/// Never gives up.
const PATIENT: &dyn Fn() -> bool = &|| false;

fn spaces(capacity: Capacity) -> AddressSpaces {
    let spaces = AddressSpaces::new(capacity, Arc::default());
    spaces.bind(ONE).unwrap();
    spaces.bind(TWO).unwrap();
    spaces
}

fn page(size: PageSize, address: u64, is_writable: bool) -> Answer {
    let frame = Frame::Guest(address);
    let translation = Translation {
        frame,
        is_writable,
        is_exclusive: false,
    };
    Answer::Page(size, translation)
}

/// A page of guest memory that no CPU accesses.
fn exclusive(address: u64) -> Answer {
    let translation = Translation {
        frame: Frame::Guest(address),
        is_writable: true,
        is_exclusive: true,
    };
    Answer::Page(PageSize::Small, translation)
}

fn small(address: u64, is_writable: bool) -> Answer {
    page(PageSize::Small, address, is_writable)
}

fn range(first: u64, bytes: u64) -> VirtualRange {
    VirtualRange {
        first,
        last: first + (bytes - 1),
    }
}

/// Has the driver say something about the pages from that of `address` on.
fn teach(spaces: &AddressSpaces, pasid: Pasid, address: u64, answers: &[Answer]) {
    let space = spaces.space(pasid).unwrap();
    let bytes = answers.len() as u64 * SMALL;
    let (asked, _) = spaces.ask(space, address, bytes, Access::Read).unwrap();
    let counted = spaces.answer(pasid, asked.id().into(), Some(answers));
    assert_eq!(counted, Ok(answers.len() as u64));
}

/// Where the stretch from `address` on is, as far as it is known.
fn look(
    spaces: &AddressSpaces,
    pasid: Pasid,
    address: u64,
    bytes: u64,
    access: Access,
) -> Option<Vec<(Frame, u64)>> {
    let mut pieces = Vec::new();
    let space = spaces.space(pasid).unwrap();
    let _lease = spaces.lease(space, address, bytes, access, &mut pieces)?;
    let found = pieces.iter().map(|piece| (piece.frame, piece.bytes));
    Some(found.collect())
}

fn is_known(spaces: &AddressSpaces, address: u64) -> bool {
    look(spaces, ONE, address, 1, Access::Read).is_some()
}

#[test]
fn stretch_goes_over_all_pages_that_are_known_and_begins_where_it_was_asked_for() {
    let spaces = spaces(CAPACITY);
    let answers = [0x10_0000, 0x10_1000, 0x50_0000].map(|address| small(address, false));
    teach(&spaces, ONE, 5 * SMALL, &answers);
    let found = look(&spaces, ONE, 5 * SMALL + 16, 1 << 20, Access::Read);
    let pieces = vec![
        (Frame::Guest(0x10_0010), 2 * SMALL - 16),
        (Frame::Guest(0x50_0000), SMALL),
    ];
    assert_eq!(found, Some(pieces));
    let short = look(&spaces, ONE, 6 * SMALL, 3, Access::Read);
    assert_eq!(short, Some(vec![(Frame::Guest(0x10_1000), 3)]));
}

#[test]
fn last_page_of_the_address_space_can_be_translated_and_nothing_follows_it() {
    let spaces = spaces(CAPACITY);
    let last = u64::MAX - (SMALL - 1);
    teach(&spaces, ONE, last, &[small(0x2000, false)]);
    let found = look(&spaces, ONE, u64::MAX - 1, 2, Access::Read);
    assert_eq!(found, Some(vec![(Frame::Guest(0x2ffe), 2)]));
    let space = spaces.space(ONE).unwrap();
    let (asked, _) = spaces.ask(space, last, 1, Access::Read).unwrap();
    let behind = [small(0, true), small(0, true)];
    let counted = spaces.answer(ONE, asked.id().into(), Some(&behind));
    assert_eq!(counted, Err(Status::BAD_ARGUMENT));
    assert_eq!(asked.wait(PATIENT), Err(Status::PAGE_ERROR));
    spaces.invalidate(ONE, range(u64::MAX, 1)).unwrap();
    assert_eq!(spaces.len(), (0, 0));
}

#[test]
fn page_that_came_for_somebody_is_taken_back_after_he_has_looked() {
    let spaces = spaces(CAPACITY);
    let space = spaces.space(ONE).unwrap();
    let (asked, _) = spaces.ask(space, SMALL, 8, Access::Atomic).unwrap();
    let (later, _) = spaces.ask(space, SMALL, 8, Access::Read).unwrap();
    let counted = spaces.answer(ONE, asked.id().into(), Some(&[exclusive(0x1000)]));
    assert_eq!(counted, Ok(1));
    let is_gone = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            // Others are not concerned, nor who has no answer.
            spaces.invalidate(ONE, range(0, SMALL)).unwrap();
            spaces.invalidate(TWO, VirtualRange::ALL).unwrap();
            spaces.invalidate(ONE, range(SMALL, SMALL)).unwrap();
            is_gone.store(true, Ordering::SeqCst);
        });
        assert_eq!(asked.wait(PATIENT), Ok(()));
        thread::sleep(Duration::from_millis(50));
        assert!(!is_gone.load(Ordering::SeqCst), "he has not looked");
        let mut pieces = Vec::new();
        let lease = spaces.lease(space, SMALL, 8, Access::Atomic, &mut pieces);
        let lease = lease.expect("it came for him");
        drop(asked);
        thread::sleep(Duration::from_millis(50));
        assert!(!is_gone.load(Ordering::SeqCst), "it is in use");
        drop(lease);
    });
    assert!(is_gone.into_inner());
    assert!(!is_known(&spaces, SMALL));
    drop(later);
}

#[test]
fn page_of_the_guest_that_a_cpu_may_access_has_to_be_asked_for_to_be_used_atomically() {
    let spaces = spaces(CAPACITY);
    let device = Translation {
        frame: Frame::Device(0x3000),
        is_writable: true,
        is_exclusive: false,
    };
    let answers = [
        small(0x1000, true),
        exclusive(0x2000),
        Answer::Page(PageSize::Small, device),
    ];
    teach(&spaces, ONE, 0, &answers);
    assert_eq!(look(&spaces, ONE, 0, 1, Access::Atomic), None);
    for access in [Access::Read, Access::Write, Access::Atomic] {
        let found = look(&spaces, ONE, SMALL, 2 * SMALL, access);
        let pieces = vec![
            (Frame::Guest(0x2000), SMALL),
            (Frame::Device(0x3000), SMALL),
        ];
        assert_eq!(found, Some(pieces), "{access:?}");
    }
    // What was said last counts.
    teach(&spaces, ONE, SMALL, &[small(0x2000, true)]);
    assert_eq!(look(&spaces, ONE, SMALL, 1, Access::Atomic), None);
}

#[test]
fn answer_to_a_request_for_atomics_without_exclusive_access_is_no_access() {
    let spaces = spaces(CAPACITY);
    let space = spaces.space(ONE).unwrap();
    for (given, end) in [
        (small(0x1000, true), Err(Status::NO_ACCESS)),
        (small(0x1000, false), Err(Status::NO_ACCESS)),
        (exclusive(0x1000), Ok(())),
    ] {
        let (asked, want) = spaces.ask(space, 0, 8, Access::Atomic).unwrap();
        assert_eq!((want.pages, want.access), (1, Access::Atomic));
        assert_eq!(spaces.answer(ONE, asked.id().into(), Some(&[given])), Ok(1));
        assert_eq!(asked.wait(PATIENT), end);
    }
}

#[test]
fn page_that_may_only_be_read_has_to_be_asked_for_to_be_written() {
    let spaces = spaces(CAPACITY);
    teach(&spaces, ONE, 0, &[small(0x1000, false)]);
    assert_eq!(look(&spaces, ONE, 0, 1, Access::Write), None);
    teach(&spaces, ONE, 0, &[small(0x9000, true)]);
    let found = look(&spaces, ONE, 0, 1, Access::Write);
    assert_eq!(found, Some(vec![(Frame::Guest(0x9000), 1)]));
}

#[test]
fn stores_to_a_page_that_came_read_only_are_refused_and_not_asked_for_for_ever() {
    let spaces = spaces(CAPACITY);
    let space = spaces.space(ONE).unwrap();
    let (asked, want) = spaces.ask(space, 5, 1, Access::Write).unwrap();
    assert_eq!((want.page, want.pages, want.access), (0, 1, Access::Write));
    spaces
        .answer(ONE, asked.id().into(), Some(&[small(0x1000, false)]))
        .unwrap();
    assert_eq!(asked.wait(PATIENT), Err(Status::NO_ACCESS));
}

#[test]
fn one_process_sees_nothing_of_another() {
    let spaces = spaces(CAPACITY);
    teach(&spaces, ONE, 0, &[small(0x1000, true)]);
    assert_eq!(look(&spaces, TWO, 0, 1, Access::Read), None);
    spaces.invalidate(TWO, VirtualRange::ALL).unwrap();
    assert!(is_known(&spaces, 0));
}

#[test]
fn large_page_stands_for_all_that_is_around_the_address() {
    let spaces = spaces(CAPACITY);
    let answers = [page(PageSize::Large, 8 * LARGE, true), small(0x5000, true)];
    teach(&spaces, ONE, LARGE + 3 * SMALL, &answers);
    let found = look(&spaces, ONE, LARGE + 16, 2 * LARGE, Access::Write);
    let pieces = vec![
        (Frame::Guest(8 * LARGE + 16), LARGE - 16),
        (Frame::Guest(0x5000), SMALL),
    ];
    assert_eq!(found, Some(pieces));
    assert_eq!(spaces.len(), (1, 1));
    spaces.invalidate(ONE, range(2 * LARGE - 1, 1)).unwrap();
    assert_eq!(spaces.len(), (1, 0));
}

#[test]
fn large_page_without_room_is_remembered_as_the_small_ones_that_were_asked_for() {
    let spaces = spaces(Capacity { small: 8, large: 0 });
    let space = spaces.space(ONE).unwrap();
    let (asked, want) = spaces
        .ask(space, 3 * SMALL, 3 * SMALL, Access::Read)
        .unwrap();
    assert_eq!(want.pages, 3);
    spaces
        .answer(
            ONE,
            asked.id().into(),
            Some(&[page(PageSize::Large, LARGE, true)]),
        )
        .unwrap();
    assert_eq!(spaces.len(), (3, 0));
    let found = look(&spaces, ONE, 3 * SMALL, LARGE, Access::Read);
    assert_eq!(
        found,
        Some(vec![(Frame::Guest(LARGE + 3 * SMALL), 3 * SMALL)])
    );
}

#[test]
fn page_of_the_other_size_takes_the_place_of_what_was_known() {
    let spaces = spaces(CAPACITY);
    teach(&spaces, ONE, 0, &[page(PageSize::Large, LARGE, false)]);
    teach(&spaces, ONE, SMALL, &[small(0x7000, true)]);
    assert_eq!(spaces.len(), (1, 0));
    teach(&spaces, ONE, 0, &[page(PageSize::Large, 3 * LARGE, true)]);
    assert_eq!(spaces.len(), (0, 1));
}

#[test]
fn invalidation_returns_when_the_last_user_has_ended() {
    let spaces = spaces(CAPACITY);
    teach(&spaces, ONE, 0, &[small(0x1000, true), small(0x8000, true)]);
    let space = spaces.space(ONE).unwrap();
    let lease = |address, bytes| {
        let lease = spaces.lease(space, address, bytes, Access::Write, &mut Vec::new());
        lease.expect("known")
    };
    let (used, _beside) = (lease(0, SMALL), lease(SMALL, 1));
    let has_returned = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            spaces.invalidate(ONE, range(0, SMALL)).unwrap();
            has_returned.store(true, Ordering::SeqCst);
        });
        // It has begun when the page is forgotten.
        while is_known(&spaces, 0) {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(20));
        assert!(!has_returned.load(Ordering::SeqCst), "a lease is held");
        drop(used);
    });
    assert!(has_returned.load(Ordering::SeqCst));
}

#[test]
fn invalidation_does_not_wait_for_who_asks() {
    let spaces = spaces(CAPACITY);
    let space = spaces.space(ONE).unwrap();
    let (asked, _) = spaces.ask(space, 0, 1, Access::Read).unwrap();
    spaces.invalidate(ONE, VirtualRange::ALL).unwrap();
    // What is said later holds.
    spaces
        .answer(ONE, asked.id().into(), Some(&[small(0x1000, true)]))
        .unwrap();
    assert_eq!(asked.wait(PATIENT), Ok(()));
    assert!(is_known(&spaces, 0));
}

#[test]
fn pasids_are_bound_once_within_their_limits() {
    let spaces = AddressSpaces::new(CAPACITY, Arc::default());
    for pasid in [0, PASID_MAX + 1, u32::MAX] {
        assert_eq!(spaces.bind(Pasid(pasid)), Err(Status::BAD_PASID));
    }
    assert_eq!(spaces.bind(Pasid(PASID_MAX)), Ok(()));
    assert_eq!(spaces.bind(Pasid(PASID_MAX)), Err(Status::BAD_PASID));
    for pasid in 1..ADDRESS_SPACES_MAX as u32 {
        assert_eq!(spaces.bind(Pasid(pasid)), Ok(()));
    }
    let one_more = Pasid(ADDRESS_SPACES_MAX as u32);
    assert_eq!(spaces.bind(one_more), Err(Status::TOO_MANY_SPACES));
    assert_eq!(spaces.unbind(ONE), Ok(()));
    assert_eq!(spaces.unbind(ONE), Err(Status::BAD_PASID));
    assert_eq!(
        spaces.invalidate(ONE, VirtualRange::ALL),
        Err(Status::BAD_PASID)
    );
    assert_eq!(spaces.bind(one_more), Ok(()));
}

#[test]
fn new_binding_of_a_pasid_is_another_space() {
    let spaces = spaces(CAPACITY);
    let old = spaces.space(ONE).unwrap();
    teach(&spaces, ONE, 0, &[small(0x1000, true)]);
    let (asked, _) = spaces.ask(old, SMALL, 1, Access::Read).unwrap();
    spaces.unbind(ONE).unwrap();
    assert_eq!(asked.wait(PATIENT), Err(Status::UNBOUND));
    spaces.bind(ONE).unwrap();
    assert!(!is_known(&spaces, 0));
    teach(&spaces, ONE, 0, &[small(0x1000, true)]);
    let stale = spaces.lease(old, 0, 1, Access::Read, &mut Vec::new());
    assert!(stale.is_none(), "a command from before");
    let asked = spaces.ask(old, 0, 1, Access::Read);
    assert_eq!(asked.err(), Some(Status::UNBOUND));
}

#[test]
fn answers_that_nobody_waits_for_change_nothing() {
    let spaces = spaces(CAPACITY);
    let space = spaces.space(ONE).unwrap();
    let answers = [small(0x1000, true)];
    for id in [0, 7, u64::MAX] {
        assert_eq!(spaces.answer(ONE, id, Some(&answers)), Ok(0));
        assert_eq!(spaces.answer(ONE, id, None), Ok(0));
    }
    let (asked, _) = spaces.ask(space, 0, 1, Access::Read).unwrap();
    let id = asked.id().into();
    drop(asked);
    assert_eq!(spaces.answer(ONE, id, Some(&answers)), Ok(0));
    let (asked, _) = spaces.ask(space, 0, 1, Access::Read).unwrap();
    let id = asked.id().into();
    let refused = [Answer::Refused(Status::UNMAPPED)];
    assert_eq!(spaces.answer(ONE, id, Some(&refused)), Ok(1));
    assert_eq!(spaces.answer(ONE, id, Some(&answers)), Ok(0), "said twice");
    assert_eq!(asked.wait(PATIENT), Err(Status::UNMAPPED));
    assert_eq!(spaces.len(), (0, 0));
}

#[test]
fn answer_for_another_space_ends_the_question_and_is_not_believed() {
    let spaces = spaces(CAPACITY);
    let space = spaces.space(ONE).unwrap();
    let (asked, _) = spaces.ask(space, 0, 1, Access::Read).unwrap();
    let answer = spaces.answer(TWO, asked.id().into(), Some(&[small(0x1000, true)]));
    assert_eq!(answer, Err(Status::BAD_PASID));
    assert_eq!(asked.wait(PATIENT), Err(Status::PAGE_ERROR));
    assert_eq!(spaces.len(), (0, 0));
}

#[test]
fn question_ends_when_who_asked_gives_up() {
    let alarm = Arc::<Alarm>::default();
    let spaces = AddressSpaces::new(CAPACITY, alarm.clone());
    spaces.bind(ONE).unwrap();
    let space = spaces.space(ONE).unwrap();
    let (asked, _) = spaces.ask(space, 0, 1, Access::Read).unwrap();
    let has_given_up = AtomicBool::new(false);
    thread::scope(|scope| {
        let waiting = scope.spawn(|| asked.wait(&|| has_given_up.load(Ordering::Relaxed)));
        thread::sleep(Duration::from_millis(10));
        assert!(!waiting.is_finished());
        has_given_up.store(true, Ordering::Relaxed);
        alarm.ring();
        assert_eq!(waiting.join().unwrap(), Err(Status::CANCELLED));
    });
}

#[test]
fn full_cache_forgets_its_oldest_page() {
    let spaces = spaces(CAPACITY);
    for number in 0..9 {
        teach(&spaces, ONE, number * SMALL, &[small(number << 20, true)]);
    }
    assert_eq!(spaces.len(), (CAPACITY.small, 0));
    assert!(!is_known(&spaces, 0));
    assert!(is_known(&spaces, SMALL));
}

#[test]
fn page_that_somebody_was_waiting_for_is_not_forgotten_before_he_looked() {
    let spaces = spaces(CAPACITY);
    let space = spaces.space(ONE).unwrap();
    for is_large in [false, true] {
        let answer = match is_large {
            true => page(PageSize::Large, LARGE, true),
            false => small(0x1000, true),
        };
        let (asked, _) = spaces.ask(space, 0, 1, Access::Read).unwrap();
        spaces
            .answer(ONE, asked.id().into(), Some(&[answer]))
            .unwrap();
        for number in 10..40 {
            teach(&spaces, TWO, number * SMALL, &[small(number << 20, true)]);
            let large = page(PageSize::Large, number * LARGE, true);
            teach(&spaces, TWO, number * LARGE, &[large]);
        }
        assert!(is_known(&spaces, 0), "large: {is_large}");
        drop(asked);
        teach(&spaces, TWO, 50 * LARGE, &[page(PageSize::Large, 0, true)]);
        teach(&spaces, TWO, 51 * LARGE, &[page(PageSize::Large, 0, true)]);
        for number in 10..18 {
            teach(&spaces, TWO, number * SMALL, &[small(number << 20, true)]);
        }
        assert!(!is_known(&spaces, 0), "large: {is_large}");
    }
}

#[test]
fn answer_does_not_push_out_what_it_brought() {
    let spaces = spaces(CAPACITY);
    let space = spaces.space(ONE).unwrap();
    let (_asked, want) = spaces.ask(space, 0, 1 << 30, Access::Read).unwrap();
    assert!(usize::from(want.pages) < CAPACITY.small);
    let roomy = AddressSpaces::new(Capacity::default(), Arc::default());
    roomy.bind(ONE).unwrap();
    let space = roomy.space(ONE).unwrap();
    let (_asked, want) = roomy.ask(space, 0, 1 << 30, Access::Read).unwrap();
    assert_eq!(want.pages, cdm_protocol::PAGE_REQUEST_PAGES_MAX);
    // The page of the last byte counts, however little of it is needed.
    let (_asked, want) = roomy.ask(space, SMALL - 1, 2, Access::Read).unwrap();
    assert_eq!((want.page, want.pages), (0, 2));
}

/// What is done to a cache.
#[derive(Clone, Debug)]
enum Step {
    Teach(u32, u64, Vec<Answer>),
    Invalidate(u32, VirtualRange),
    Rebind(u32),
    DropAll,
    Look(u32, u64, u64, Access),
}

/// Addresses in a few pages of either size, so that they meet.
fn address() -> impl Strategy<Value = u64> {
    (0u64..3, 0u64..5, 0..SMALL)
        .prop_map(|(large, small, byte)| large * LARGE + small * SMALL + byte)
}

fn answer() -> impl Strategy<Value = Answer> {
    let frame = |page: u64, is_device| match is_device {
        true => Frame::Device(page * LARGE),
        false => Frame::Guest(page * LARGE),
    };
    let place = (0u64..1 << 20, any::<bool>(), 0u8..3);
    (prop::bool::weighted(0.2), place).prop_map(move |(is_large, (page, is_device, rights))| {
        let translation = Translation {
            frame: frame(page, is_device),
            is_writable: rights > 0,
            is_exclusive: rights > 1,
        };
        let size = if is_large {
            PageSize::Large
        } else {
            PageSize::Small
        };
        Answer::Page(size, translation)
    })
}

fn step() -> impl Strategy<Value = Step> {
    let access = prop_oneof![
        Just(Access::Read),
        Just(Access::Write),
        Just(Access::Atomic)
    ];
    let pasid = || 1u32..3;
    let answers = prop::collection::vec(answer(), 1..5);
    prop_oneof![
        4 => (pasid(), address(), answers).prop_map(|(p, a, s)| Step::Teach(p, a, s)),
        2 => (pasid(), address(), 1..LARGE).prop_map(|(p, a, n)| Step::Invalidate(p, range(a, n))),
        1 => pasid().prop_map(Step::Rebind),
        1 => Just(Step::DropAll),
        6 => (pasid(), address(), 1..LARGE, access).prop_map(|(p, a, n, x)| Step::Look(p, a, n, x)),
    ]
}

/// What the driver said last of each small page and has not taken back.
#[derive(Default)]
struct Reference(BTreeMap<(u32, u64), Translation>);

impl Reference {
    fn teach(&mut self, pasid: u32, address: u64, answers: &[Answer]) {
        let mut place = PageSize::Small.page_of(address).first;
        for answer in answers {
            let Answer::Page(size, translation) = answer else {
                unreachable!("no step refuses");
            };
            let page = size.page_of(place);
            for offset in (0..size.bytes()).step_by(SMALL as usize) {
                let key = (pasid, page.first + offset);
                self.0.insert(key, translation.plus(offset));
            }
            place = page.last + 1;
        }
    }

    fn forget(&mut self, pasid: u32, gone: VirtualRange) {
        self.0.retain(|(whose, first), _| {
            *whose != pasid || !PageSize::Small.page_of(*first).overlaps(gone)
        });
    }

    /// Where a byte is, if the access may be made.
    fn place(&self, pasid: u32, address: u64, access: Access) -> Option<Frame> {
        let page = PageSize::Small.page_of(address).first;
        let known = self.0.get(&(pasid, page))?;
        let place = known.frame.plus(address - page);
        known.allows(access).then_some(place)
    }
}

proptest! {
    #[test]
    fn cache_says_nothing_but_what_was_said_last_and_not_taken_back(
        steps in prop::collection::vec(step(), 0..60),
        (small, large) in (1usize..40, 0usize..4),
    ) {
        let spaces = spaces(Capacity { small, large });
        let mut reference = Reference::default();
        for step in steps {
            match step {
                Step::Teach(pasid, address, answers) => {
                    teach(&spaces, Pasid(pasid), address, &answers);
                    reference.teach(pasid, address, &answers);
                }
                Step::Invalidate(pasid, gone) => {
                    spaces.invalidate(Pasid(pasid), gone).unwrap();
                    // A page is forgotten as a whole.
                    reference.forget(pasid, gone);
                }
                Step::Rebind(pasid) => {
                    spaces.unbind(Pasid(pasid)).unwrap();
                    spaces.bind(Pasid(pasid)).unwrap();
                    reference.forget(pasid, VirtualRange::ALL);
                }
                Step::DropAll => {
                    spaces.drop_translations();
                    reference.0.clear();
                }
                Step::Look(pasid, address, bytes, access) => {
                    let found = look(&spaces, Pasid(pasid), address, bytes, access);
                    let mut place = address;
                    for (frame, count) in found.into_iter().flatten() {
                        prop_assert!(count > 0);
                        for offset in (0..count).step_by(512).chain([count - 1]) {
                            let known = reference.place(pasid, place + offset, access);
                            prop_assert_eq!(known, Some(frame.plus(offset)));
                        }
                        place += count;
                    }
                    prop_assert!(place - address <= bytes);
                }
            }
            let (known_small, known_large) = spaces.len();
            prop_assert!(known_small <= small && known_large <= large);
        }
    }

    #[test]
    fn cache_with_room_forgets_nothing_by_itself(
        pages in prop::collection::btree_map(0u64..100, any::<bool>(), 0..60),
    ) {
        let spaces = spaces(Capacity { small: 60, large: 0 });
        for (&number, &is_writable) in &pages {
            teach(&spaces, ONE, number * SMALL, &[small(number << 20, is_writable)]);
        }
        for number in 0..100 {
            let found = look(&spaces, ONE, number * SMALL, 1, Access::Write);
            let expected = pages.get(&number).filter(|w| **w);
            prop_assert_eq!(found.is_some(), expected.is_some());
        }
    }
}
