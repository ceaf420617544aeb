// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Which requests faults hit, and that they do so again.

use super::*;
use crate::model::{Atomics, Capacity, Link, LinkSpeed, Shape};
use cdm_protocol::{Completion, ControlOpcode, Opcode, QUEUE_CONTROL, Status};

/// First command queue.
const COMMAND: u16 = QUEUE_FIRST_COMMAND;

/// For a device with two command queues and 65536 pages.
fn no_faults() -> Faults {
    let shape = Shape {
        memory: "256M".parse().unwrap(),
        command_queues: 2,
        engines: 1,
        translations: Capacity::default(),
        atomics: Atomics::Link,
        link: Link {
            speed: LinkSpeed::Gt16,
            width_lanes: 16,
            timing: None,
        },
    };
    Faults::new(Arc::new(Device::new(&shape).unwrap()))
}

fn faults(specs: &[&str]) -> Faults {
    let faults = no_faults();
    for spec in specs {
        faults.set(spec.parse().unwrap()).unwrap();
    }
    faults
}

/// Numbers, from 1, of the requests of a queue that something happens to.
fn hit(faults: &Faults, queue: u16, requests: u64) -> Vec<u64> {
    (1..=requests)
        .filter(|_| faults.take(queue, || None) != Effects::default())
        .collect()
}

#[test]
fn without_faults_nothing_happens() {
    let faults = faults(&[]);
    assert!(hit(&faults, COMMAND, 100).is_empty());
    assert!(!faults.look(COMMAND, || None));
}

#[test]
fn nth_and_count_choose_requests_of_each_queue_on_its_own() {
    let faults = faults(&["drop,nth=3,count=2"]);
    assert_eq!(hit(&faults, COMMAND, 10), [3, 4]);
    assert_eq!(hit(&faults, COMMAND + 1, 10), [3, 4]);
    assert!(hit(&faults, QUEUE_CONTROL, 10).is_empty());
    assert_eq!(faults.list()[0].hits, 4);
}

#[test]
fn a_fault_of_one_queue_leaves_the_others_alone() {
    let faults = faults(&["fail,queue=0,count=0"]);
    assert_eq!(hit(&faults, QUEUE_CONTROL, 3), [1, 2, 3]);
    assert!(hit(&faults, COMMAND, 3).is_empty());
}

#[test]
fn one_of_so_many_is_hit_and_the_seed_says_which() {
    let of_seed = |seed| {
        let faults = faults(&[&format!("drop,every=10,count=0,seed={seed}")]);
        hit(&faults, COMMAND, 1000)
    };
    let first = of_seed(1);
    assert!((50..200).contains(&first.len()), "{} of 1000", first.len());
    assert_eq!(first, of_seed(1));
    assert_ne!(first, of_seed(2));
}

#[test]
fn what_is_left_to_chance_is_the_same_whatever_happens_on_other_queues() {
    let specs = ["corrupt,count=0,seed=9", "wrong-length,count=0,seed=9"];
    let (alone, busy) = (faults(&specs), faults(&specs));
    for request in 0..200 {
        for _ in 0..request % 3 {
            busy.take(COMMAND + 1, || None);
        }
        assert_eq!(alone.take(COMMAND, || None), busy.take(COMMAND, || None));
    }
}

#[test]
fn chance_is_the_same_in_every_version() {
    let faults = faults(&["corrupt,count=0,seed=42"]);
    let found: Vec<Leave> = (0..4)
        .map(|_| faults.take(COMMAND, || None).leave[0])
        .collect();
    let expected = CHANCE_OF_SEED_42.map(|(offset, change)| Leave::Corrupt { offset, change });
    assert_eq!(found, expected);
}

/// Taken from the first version: who kept a seed keeps its run.
const CHANCE_OF_SEED_42: [(u32, u8); 4] = [(2, 81), (3, 79), (8, 166), (0, 126)];

#[test]
fn every_parameter_by_chance_is_one_that_shows() {
    let faults = faults(&[
        "truncate,count=0,seed=1",
        "corrupt,count=0,seed=2",
        "wrong-length,count=0,seed=3",
    ]);
    let whole = size_of::<Completion>() as u32;
    for _ in 0..1000 {
        for leave in faults.take(COMMAND, || None).leave {
            match leave {
                Leave::Truncate(bytes) => assert!(bytes < whole),
                Leave::Corrupt { offset, change } => assert!(offset < whole && change != 0),
                Leave::WrongLength(bytes) => assert_ne!(bytes, whole),
                other => panic!("{other:?}"),
            }
        }
    }
}

#[test]
fn parameters_that_are_given_are_taken() {
    let faults = faults(&[
        "truncate,bytes=7",
        "corrupt,offset=2",
        "wrong-length,bytes=99",
        "fail,status=13",
    ]);
    let effects = faults.take(COMMAND, || None);
    assert_eq!(effects.refusal, Some(Status(13.into())));
    assert_eq!(effects.leave[0], Leave::Truncate(7));
    assert!(matches!(effects.leave[1], Leave::Corrupt { offset: 2, .. }));
    assert_eq!(effects.leave[2], Leave::WrongLength(99));
}

#[test]
fn page_requests_and_invalidations_are_counted_apart_from_requests() {
    let faults = faults(&[
        "refuse-page,nth=2,status=24",
        "late-invalidation,nth=3,ms=7",
    ]);
    assert!(hit(&faults, COMMAND, 10).is_empty());
    assert!(hit(&faults, QUEUE_CONTROL, 10).is_empty());
    let refused: Vec<_> = (0..4).map(|_| faults.refuse_page(COMMAND)).collect();
    assert_eq!(refused, [None, Some(Status::NO_ACCESS), None, None]);
    // Each queue counts for itself.
    assert_eq!(faults.refuse_page(COMMAND + 1), None);
    assert_eq!(faults.refuse_page(COMMAND + 1), Some(Status::NO_ACCESS));
    let late: Vec<_> = (0..4)
        .map(|_| faults.delay_invalidation(QUEUE_CONTROL))
        .collect();
    assert_eq!(late, [None, None, Some(Duration::from_millis(7)), None]);
    let hits: Vec<_> = faults.list().iter().map(|state| state.hits).collect();
    assert_eq!(hits, [2, 1]);
}

#[test]
fn accesses_are_counted_apart_and_for_each_queue() {
    let faults = faults(&["late-access,nth=2,ms=5"]);
    assert!(hit(&faults, COMMAND, 10).is_empty());
    assert_eq!(faults.refuse_page(COMMAND), None);
    for queue in [COMMAND, COMMAND + 1] {
        let late: Vec<_> = (0..3).map(|_| faults.delay_access(queue)).collect();
        assert_eq!(late, [None, Some(Duration::from_millis(5)), None]);
    }
}

#[test]
fn page_that_is_refused_for_no_reason_is_an_error_of_the_page() {
    let faults = faults(&["refuse-page"]);
    assert_eq!(faults.refuse_page(COMMAND), Some(Status::PAGE_ERROR));
    assert_eq!(faults.refuse_page(COMMAND), None);
}

#[test]
fn fault_of_what_a_queue_does_not_have_is_refused() {
    let faults = no_faults();
    for (spec, queue) in [
        ("refuse-page,queue=0", QUEUE_CONTROL),
        ("late-invalidation,ms=1,queue=2", COMMAND),
        ("late-access,ms=1,queue=0", QUEUE_CONTROL),
    ] {
        let error = faults.set(spec.parse().unwrap()).unwrap_err();
        assert!(matches!(error, SetError::Elsewhere { queue: found, .. } if found == queue));
        assert!(error.to_string().contains("queue"), "{error}");
    }
}

#[test]
fn a_hang_holds_its_queue_until_the_request_is_taken_all_the_same() {
    let faults = faults(&["hang,nth=2"]);
    assert!(!faults.look(COMMAND, || None));
    faults.take(COMMAND, || None);
    for _ in 0..3 {
        assert!(faults.look(COMMAND, || None) && faults.is_stalled(COMMAND));
    }
    assert!(!faults.look(COMMAND + 1, || None));
    // As a RESET does.
    faults.take(COMMAND, || None);
    assert!(!faults.look(COMMAND, || None) && !faults.is_stalled(COMMAND));
}

#[test]
fn a_delay_ends_by_itself_and_the_longest_counts() {
    let faults = faults(&["delay,ms=1", "delay,ms=30"]);
    let begin = Instant::now();
    while faults.look(COMMAND, || None) {
        faults.wait();
    }
    assert!(begin.elapsed() >= Duration::from_millis(30));
}

#[test]
fn a_fault_that_is_cleared_lets_go_and_the_others_stay() {
    let faults = faults(&["hang", "drop,nth=2,count=0"]);
    assert!(faults.look(COMMAND, || None));
    assert_eq!(faults.clear(Some(0)), 1);
    assert!(!faults.look(COMMAND, || None));
    assert_eq!(faults.list().len(), 1);
    assert_eq!(faults.clear(Some(7)), 0);
    assert_eq!(faults.clear(None), 1);
    assert!(hit(&faults, COMMAND, 10).is_empty());
}

#[test]
fn new_rings_have_nothing_of_the_old_ones() {
    let faults = faults(&["hang"]);
    assert!(faults.look(COMMAND, || None));
    faults.forget_requests();
    assert!(!faults.look(COMMAND, || None));
}

#[test]
fn queues_without_completions_and_too_many_faults_are_refused() {
    let faults = no_faults();
    for queue in [QUEUE_EVENT, 4] {
        let fault = format!("drop,queue={queue}").parse().unwrap();
        assert!(matches!(faults.set(fault), Err(SetError::Queue(found)) if found == queue));
    }
    for _ in 0..FAULTS_MAX {
        faults.set("drop,nth=1000000".parse().unwrap()).unwrap();
    }
    let result = faults.set("drop".parse().unwrap());
    assert!(matches!(result, Err(SetError::TooMany)));
}

fn bad_pages(faults: &Faults) -> Vec<u64> {
    faults.device.bad_pages().iter().flatten().collect()
}

#[test]
fn poison_lets_the_named_pages_fail_at_once_and_hits_no_request() {
    let faults = faults(&["poison,page=7,count=3", "poison,page=9,count=2"]);
    assert_eq!(bad_pages(&faults), [7, 8, 9, 10]);
    let hits: Vec<u64> = faults.list().iter().map(|state| state.hits).collect();
    assert_eq!(hits, [3, 1]);
    assert!(hit(&faults, COMMAND, 10).is_empty());
}

#[test]
fn poison_by_the_seed_lets_so_many_pages_fail_and_the_same_ones_again() {
    let of_seed = |seed| {
        // Half of the memory: chance meets what has failed already.
        let first = format!("poison,count=32768,seed={seed}");
        let faults = faults(&[&first, "poison,count=2000"]);
        bad_pages(&faults)
    };
    let pages = of_seed(1);
    assert_eq!(pages.len(), 34768);
    assert_eq!(pages, of_seed(1));
    assert_ne!(pages, of_seed(2));
}

#[test]
fn poison_beyond_the_memory_is_refused_and_changes_nothing() {
    let faults = faults(&["poison,page=65535"]);
    for spec in ["poison,page=65536", "poison,page=65535,count=2"] {
        let result = faults.set(spec.parse().unwrap());
        assert!(matches!(result, Err(SetError::Page(65536))), "{spec}");
    }
    let result = faults.set("poison,count=65536".parse().unwrap());
    assert!(matches!(result, Err(SetError::AllBad(65535))));
    assert_eq!(bad_pages(&faults), [65535]);
}

#[test]
fn memory_does_not_mend_when_its_fault_is_cleared() {
    let faults = faults(&["poison,page=1"]);
    assert_eq!(faults.clear(None), 1);
    assert_eq!(bad_pages(&faults), [1]);
}

/// Numbers, from 1, of the control requests that something happens to, which are of these
/// operations.
fn hit_of(faults: &Faults, requests: &[ControlOpcode]) -> Vec<u64> {
    (1..)
        .zip(requests)
        .filter(|(_, opcode)| {
            faults.take(QUEUE_CONTROL, || Some(opcode.get())) != Effects::default()
        })
        .map(|(number, _)| number)
        .collect()
}

const BIND: ControlOpcode = ControlOpcode::BIND;
const UNBIND: ControlOpcode = ControlOpcode::UNBIND;
const INVALIDATE: ControlOpcode = ControlOpcode::INVALIDATE;

#[test]
fn fault_of_an_operation_counts_and_hits_no_other_request() {
    let faults = faults(&["drop,opcode=INVALIDATE,nth=2,count=2"]);
    let requests = [
        BIND, INVALIDATE, UNBIND, INVALIDATE, BIND, INVALIDATE, INVALIDATE,
    ];
    assert_eq!(hit_of(&faults, &requests), [4, 6]);
    assert_eq!(faults.list()[0].hits, 2);
}

#[test]
fn fault_of_an_operation_is_on_all_queues_that_have_it_and_on_no_other() {
    let copy = || Some(Opcode::COPY.get());
    let faults = faults(&["fail,opcode=COPY,count=0"]);
    // The number of a COPY is that of another operation on the control queue.
    assert_eq!(ControlOpcode::RESET.get(), Opcode::COPY.get());
    assert!(hit_of(&faults, &[ControlOpcode::RESET]).is_empty());
    for queue in [COMMAND, COMMAND + 1] {
        assert_ne!(faults.take(queue, copy), Effects::default());
        assert_eq!(faults.take(queue, || None), Effects::default());
    }
}

#[test]
fn fault_of_an_operation_on_one_queue_is_on_that_one() {
    let copy = || Some(Opcode::COPY.get());
    let faults = faults(&["fail,opcode=COPY,queue=3,count=0"]);
    assert_eq!(faults.take(COMMAND, copy), Effects::default());
    assert_ne!(faults.take(COMMAND + 1, copy), Effects::default());
    let error = no_faults().set(Fault {
        queue: Some(QUEUE_CONTROL),
        ..faults.list()[0].fault.clone()
    });
    assert!(matches!(error, Err(SetError::Fault(_))), "{error:?}");
}

#[test]
fn seed_chooses_among_requests_of_an_operation_as_if_there_were_no_others() {
    let faults_of = || faults(&["drop,opcode=INVALIDATE,every=4,count=0,seed=3"]);
    let alone = hit_of(&faults_of(), &[INVALIDATE; 200]);
    let requests: Vec<_> = (0..200).flat_map(|_| [BIND, INVALIDATE]).collect();
    let among = hit_of(&faults_of(), &requests);
    assert!(alone.len() > 20, "{alone:?}");
    let expected: Vec<_> = alone.iter().map(|number| number * 2).collect();
    assert_eq!(among, expected);
}

#[test]
fn request_that_was_looked_at_is_decided_about_and_not_asked_again() {
    let faults = faults(&["hang,opcode=UNBIND,nth=2"]);
    let look = |opcode: ControlOpcode| faults.look(QUEUE_CONTROL, || Some(opcode.get()));
    let take = || faults.take(QUEUE_CONTROL, || panic!("asked twice"));
    for opcode in [UNBIND, BIND] {
        assert!(!look(opcode));
        take();
    }
    assert!(look(UNBIND));
    // What waits there stays there, so nobody looks at what it says now.
    assert!(faults.look(QUEUE_CONTROL, || panic!("asked twice")));
    take();
    assert!(!look(UNBIND));
}

#[test]
fn opcodes_are_looked_at_only_if_a_fault_is_of_one() {
    let faults = faults(&["drop,nth=3", "late-invalidation,ms=1"]);
    assert!(!faults.look(COMMAND, || panic!("no fault asks for it")));
}
