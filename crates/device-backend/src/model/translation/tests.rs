// SPDX-License-Identifier: Apache-2.0 OR MIT

use super::*;
use proptest::prelude::*;
use std::collections::BTreeMap;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread;
use std::time::Duration;

const CAPACITY: Capacity = Capacity { small: 8, large: 2 };
const ONE: Pasid = Pasid(1);
const SMALL: u64 = PageSize::Small.bytes();
const LARGE: u64 = PageSize::Large.bytes();

fn to(address: u64, is_writable: bool) -> Translation {
    Translation {
        address,
        is_writable,
    }
}

fn range(first: u64, bytes: u64) -> VirtualRange {
    VirtualRange {
        first,
        last: first + (bytes - 1),
    }
}

fn teach(cache: &TranslationCache, page: u64, translation: Translation) {
    let asked = cache.ask(ONE, page).answer(PageSize::Small, translation);
    assert_eq!(asked, Ok(()));
}

#[test]
fn stretch_ends_with_its_page_and_begins_where_it_was_asked_for() {
    let cache = TranslationCache::new(CAPACITY);
    teach(&cache, 5 * SMALL, to(0x10_0000, false));
    let lease = cache.lease(ONE, 5 * SMALL + 16, 1 << 20, Access::Read);
    let lease = lease.expect("known");
    assert_eq!((lease.address(), lease.bytes()), (0x10_0010, SMALL - 16));
    let short = cache.lease(ONE, 5 * SMALL, 3, Access::Read).expect("known");
    assert_eq!((short.address(), short.bytes()), (0x10_0000, 3));
}

#[test]
fn last_page_of_the_address_space_can_be_translated() {
    let cache = TranslationCache::new(CAPACITY);
    teach(&cache, u64::MAX, to(0x2000, false));
    let lease = cache.lease(ONE, u64::MAX - 1, 100, Access::Read);
    let lease = lease.expect("known");
    assert_eq!((lease.address(), lease.bytes()), (0x2ffe, 2));
    drop(lease);
    cache.invalidate(ONE, range(u64::MAX, 1));
    assert_eq!(cache.len(), 0);
}

#[test]
fn page_that_may_only_be_read_has_to_be_asked_for_to_be_written() {
    let cache = TranslationCache::new(CAPACITY);
    teach(&cache, 0, to(0x1000, false));
    assert!(cache.lease(ONE, 0, 1, Access::Write).is_none());
    teach(&cache, 0, to(0x9000, true));
    let lease = cache.lease(ONE, 0, 1, Access::Write).expect("known");
    assert_eq!(lease.address(), 0x9000);
}

#[test]
fn one_process_sees_nothing_of_another() {
    let cache = TranslationCache::new(CAPACITY);
    teach(&cache, 0, to(0x1000, true));
    assert!(cache.lease(Pasid(2), 0, 1, Access::Read).is_none());
    cache.invalidate(Pasid(2), VirtualRange::ALL);
    assert!(cache.lease(ONE, 0, 1, Access::Read).is_some());
}

#[test]
fn answer_that_an_invalidation_overtook_is_not_taken() {
    let cache = TranslationCache::new(CAPACITY);
    let question = cache.ask(ONE, 7 * SMALL);
    let elsewhere = cache.ask(ONE, LARGE);
    cache.invalidate(ONE, range(7 * SMALL, 1));
    let late = question.answer(PageSize::Small, to(0x1000, true));
    assert_eq!(late, Err(Stale));
    assert!(cache.lease(ONE, 7 * SMALL, 1, Access::Read).is_none());
    assert_eq!(elsewhere.answer(PageSize::Small, to(0x1000, true)), Ok(()));
}

#[test]
fn answer_of_a_large_page_is_stale_if_any_part_of_it_changed() {
    let cache = TranslationCache::new(CAPACITY);
    let question = cache.ask(ONE, 3 * SMALL);
    cache.invalidate(ONE, range(LARGE - SMALL, 1));
    let late = question.answer(PageSize::Large, to(0, true));
    assert_eq!(late, Err(Stale));
}

#[test]
fn invalidation_returns_when_the_last_user_has_ended() {
    let cache = TranslationCache::new(CAPACITY);
    teach(&cache, 0, to(0x1000, true));
    teach(&cache, SMALL, to(0x8000, true));
    let lease = cache.lease(ONE, 0, SMALL, Access::Write).expect("known");
    let _beside = cache.lease(ONE, SMALL, 1, Access::Write).expect("known");
    let has_returned = AtomicBool::new(false);
    thread::scope(|scope| {
        scope.spawn(|| {
            cache.invalidate(ONE, range(0, SMALL));
            has_returned.store(true, Ordering::SeqCst);
        });
        // It has begun when the page is forgotten.
        while cache.lease(ONE, 0, 1, Access::Read).is_some() {
            thread::yield_now();
        }
        thread::sleep(Duration::from_millis(20));
        assert!(!has_returned.load(Ordering::SeqCst), "a lease is held");
        drop(lease);
    });
    assert!(has_returned.load(Ordering::SeqCst));
}

#[test]
fn full_cache_forgets_its_oldest_page() {
    let cache = TranslationCache::new(CAPACITY);
    for page in 0..9 {
        teach(&cache, page * SMALL, to(page << 20, true));
    }
    assert_eq!(cache.len(), CAPACITY.small);
    assert!(cache.lease(ONE, 0, 1, Access::Read).is_none());
    assert!(cache.lease(ONE, SMALL, 1, Access::Read).is_some());
}

#[test]
fn cache_without_room_knows_nothing() {
    let cache = TranslationCache::new(Capacity { small: 0, large: 0 });
    teach(&cache, 0, to(0x1000, true));
    assert_eq!(cache.len(), 0);
}

/// What is done to a cache.
#[derive(Clone, Debug)]
enum Step {
    Teach(u32, u64, PageSize, Translation),
    Invalidate(u32, VirtualRange),
    Look(u32, u64, u64, Access),
}

/// Addresses in a few pages of either size, so that they meet.
fn address() -> impl Strategy<Value = u64> {
    (0u64..3, 0u64..5, 0..SMALL)
        .prop_map(|(large, small, byte)| large * LARGE + small * SMALL + byte)
}

fn step() -> impl Strategy<Value = Step> {
    let size = prop_oneof![Just(PageSize::Small), Just(PageSize::Large)];
    let access = prop_oneof![Just(Access::Read), Just(Access::Write)];
    let translation = (0u64..1 << 20, any::<bool>()).prop_map(|(page, w)| to(page * LARGE, w));
    prop_oneof![
        (0u32..2, address(), size, translation).prop_map(|(p, a, s, t)| Step::Teach(p, a, s, t)),
        (0u32..2, address(), 1..LARGE).prop_map(|(p, a, n)| Step::Invalidate(p, range(a, n))),
        (0u32..2, address(), 1..LARGE, access).prop_map(|(p, a, n, x)| Step::Look(p, a, n, x)),
    ]
}

/// What the driver said last of each page and has not taken back.
#[derive(Default)]
struct Model(BTreeMap<(u32, bool, u64), Translation>);

impl Model {
    fn key(pasid: u32, size: PageSize, address: u64) -> (u32, bool, u64) {
        (pasid, size == PageSize::Large, size.page_of(address).first)
    }

    /// All that may be said of an address.
    fn valid(&self, pasid: u32, address: u64, access: Access) -> Vec<(u64, u64)> {
        let found = PageSize::ALL.into_iter().filter_map(|size| {
            let known = self.0.get(&Self::key(pasid, size, address))?;
            let page = size.page_of(address);
            let bytes = page.last - address + 1;
            known
                .allows(access)
                .then_some((known.address + (address - page.first), bytes))
        });
        found.collect()
    }
}

proptest! {
    #[test]
    fn cache_says_nothing_but_what_was_said_last_and_not_taken_back(
        steps in prop::collection::vec(step(), 0..60),
    ) {
        let cache = TranslationCache::new(CAPACITY);
        let mut model = Model::default();
        for step in steps {
            match step {
                Step::Teach(pasid, address, size, translation) => {
                    let asked = cache.ask(Pasid(pasid), address);
                    prop_assert_eq!(asked.answer(size, translation), Ok(()));
                    model.0.insert(Model::key(pasid, size, address), translation);
                }
                Step::Invalidate(pasid, gone) => {
                    cache.invalidate(Pasid(pasid), gone);
                    model.0.retain(|(whose, is_large, first), _| {
                        let size = PageSize::ALL[usize::from(!is_large)];
                        *whose != pasid || !size.page_of(*first).overlaps(gone)
                    });
                }
                Step::Look(pasid, address, bytes, access) => {
                    let Some(lease) = cache.lease(Pasid(pasid), address, bytes, access) else {
                        continue;
                    };
                    let valid = model.valid(pasid, address, access);
                    let is_valid = valid.iter().any(|(place, room)| {
                        *place == lease.address() && lease.bytes() == bytes.min(*room)
                    });
                    prop_assert!(is_valid, "{:?} is none of {:?}", lease, valid);
                }
            }
            prop_assert!(cache.len() <= CAPACITY.small + CAPACITY.large);
        }
    }
}
