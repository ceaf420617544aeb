// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The tests. The names of the shapes are those of the literature; what is behind the
//! name says which orders the accesses have. docs/reference/device.md has the same list.

use std::sync::atomic::Ordering;

use crate::shape::Agent::{Cpu as C, Device as D};
use crate::shape::{Access, Agent, Reads, Rule, Test, Thread, X, Y, Z, end, read, thread};

/// Two threads that do different things.
const TWO: &[&[Agent]] = &[&[C, D], &[D, C], &[D, D]];
/// Two threads that do the same thing.
const TWINS: &[&[Agent]] = &[&[C, D], &[D, D]];
const THREE: &[&[Agent]] = &[&[C, D, C], &[D, C, D]];
/// Two that write, and two that read.
const FOUR: &[&[Agent]] = &[&[C, C, D, D], &[D, D, C, C], &[C, D, C, D]];

/// What a thread must not see of two stores: the second one and not the first.
const MP: &[crate::shape::Value] = &[read(1, 0, 1), read(1, 1, 0)];
/// Neither thread sees the other one's store.
const SB: &[crate::shape::Value] = &[read(0, 0, 0), read(1, 0, 0)];
/// Each thread sees the store that the other one makes after its load.
const LB: &[crate::shape::Value] = &[read(0, 0, 1), read(1, 0, 1)];

/// Every test.
pub const TESTS: &[Test] = &[
    Test {
        name: "MP+release+acquire",
        threads: &[
            thread!(store(X, 1, Relaxed), store(Y, 1, Release)),
            thread!(load(Y, Acquire), load(X, Relaxed)),
        ],
        castings: TWO,
        ends: &[],
        weak: MP,
        rule: Rule::Forbidden,
    },
    Test {
        name: "MP+barriers",
        threads: &[
            thread!(store(X, 1, Relaxed), fence(Release), store(Y, 1, Relaxed)),
            thread!(load(Y, Relaxed), fence(Acquire), load(X, Relaxed)),
        ],
        castings: TWO,
        ends: &[],
        weak: MP,
        rule: Rule::Forbidden,
    },
    Test {
        name: "MP+atomics",
        threads: &[
            thread!(store(X, 1, Relaxed), add(Y, 1, Release)),
            thread!(swap(Y, 2, Acquire), load(X, Relaxed)),
        ],
        castings: TWO,
        ends: &[],
        weak: &[read(1, 0, 1), read(1, 1, 0)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "MP+relaxed",
        threads: &[
            thread!(store(X, 1, Relaxed), store(Y, 1, Relaxed)),
            thread!(load(Y, Relaxed), load(X, Relaxed)),
        ],
        castings: TWO,
        ends: &[],
        weak: MP,
        rule: Rule::Allowed,
    },
    Test {
        name: "SB+relaxed",
        threads: &[
            thread!(store(X, 1, Relaxed), load(Y, Relaxed)),
            thread!(store(Y, 1, Relaxed), load(X, Relaxed)),
        ],
        castings: TWINS,
        ends: &[],
        weak: SB,
        rule: Rule::Expected,
    },
    Test {
        name: "SB+release+acquire",
        threads: &[
            thread!(store(X, 1, Release), load(Y, Acquire)),
            thread!(store(Y, 1, Release), load(X, Acquire)),
        ],
        castings: TWINS,
        ends: &[],
        weak: SB,
        rule: Rule::Expected,
    },
    Test {
        name: "SB+seq-cst",
        threads: &[
            thread!(store(X, 1, SeqCst), load(Y, SeqCst)),
            thread!(store(Y, 1, SeqCst), load(X, SeqCst)),
        ],
        castings: TWINS,
        ends: &[],
        weak: SB,
        rule: Rule::Forbidden,
    },
    Test {
        name: "SB+barriers",
        threads: &[
            thread!(store(X, 1, Relaxed), fence(SeqCst), load(Y, Relaxed)),
            thread!(store(Y, 1, Relaxed), fence(SeqCst), load(X, Relaxed)),
        ],
        castings: TWINS,
        ends: &[],
        weak: SB,
        rule: Rule::Forbidden,
    },
    Test {
        name: "SB+atomics",
        threads: &[
            thread!(swap(X, 1, SeqCst), load(Y, SeqCst)),
            thread!(add(Y, 1, SeqCst), load(X, SeqCst)),
        ],
        castings: TWO,
        ends: &[],
        weak: &[read(0, 1, 0), read(1, 1, 0)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "LB+acquire+release",
        threads: &[
            thread!(load(X, Acquire), store(Y, 1, Release)),
            thread!(load(Y, Acquire), store(X, 1, Release)),
        ],
        castings: TWINS,
        ends: &[],
        weak: LB,
        rule: Rule::Forbidden,
    },
    Test {
        name: "LB+relaxed",
        threads: &[
            thread!(load(X, Relaxed), store(Y, 1, Relaxed)),
            thread!(load(Y, Relaxed), store(X, 1, Relaxed)),
        ],
        castings: TWINS,
        ends: &[],
        weak: LB,
        rule: Rule::Allowed,
    },
    Test {
        name: "S+release+acquire",
        threads: &[
            thread!(store(X, 2, Relaxed), store(Y, 1, Release)),
            thread!(load(Y, Acquire), store(X, 1, Relaxed)),
        ],
        castings: TWO,
        ends: &[X],
        weak: &[read(1, 0, 1), end(X, 2)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "R+seq-cst",
        threads: &[
            thread!(store(X, 1, SeqCst), store(Y, 1, SeqCst)),
            thread!(store(Y, 2, SeqCst), load(X, SeqCst)),
        ],
        castings: TWO,
        ends: &[Y],
        weak: &[read(1, 0, 0), end(Y, 2)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "2+2W+seq-cst",
        threads: &[
            thread!(store(X, 1, SeqCst), store(Y, 2, SeqCst)),
            thread!(store(Y, 1, SeqCst), store(X, 2, SeqCst)),
        ],
        castings: TWINS,
        ends: &[X, Y],
        weak: &[end(X, 1), end(Y, 1)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "CoRR",
        threads: &[
            thread!(store(X, 1, Relaxed)),
            thread!(load(X, Relaxed), load(X, Relaxed)),
        ],
        castings: TWO,
        ends: &[],
        weak: &[read(1, 0, 1), read(1, 1, 0)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "CoWW",
        threads: &[
            thread!(store(X, 1, Relaxed), store(X, 2, Relaxed)),
            thread!(load(X, Relaxed), load(X, Relaxed)),
        ],
        castings: TWO,
        ends: &[X],
        weak: &[read(1, 0, 2), read(1, 1, 1)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "CoWR",
        threads: &[
            thread!(store(X, 1, Relaxed), load(X, Relaxed)),
            thread!(store(X, 2, Relaxed)),
        ],
        castings: TWO,
        ends: &[X],
        weak: &[read(0, 0, 2), end(X, 1)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "CoRW",
        threads: &[
            thread!(load(X, Relaxed), store(X, 1, Relaxed)),
            thread!(store(X, 2, Relaxed)),
        ],
        castings: TWO,
        ends: &[X],
        weak: &[read(0, 0, 2), end(X, 2)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "CoRR+CoRR",
        threads: &[
            thread!(store(X, 1, Relaxed)),
            thread!(store(X, 2, Relaxed)),
            thread!(load(X, Relaxed), load(X, Relaxed)),
            thread!(load(X, Relaxed), load(X, Relaxed)),
        ],
        castings: FOUR,
        ends: &[],
        weak: &[read(2, 0, 1), read(2, 1, 2), read(3, 0, 2), read(3, 1, 1)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "WRC+release+acquire",
        threads: &[
            thread!(store(X, 1, Relaxed)),
            thread!(load(X, Relaxed), store(Y, 1, Release)),
            thread!(load(Y, Acquire), load(X, Relaxed)),
        ],
        castings: THREE,
        ends: &[],
        weak: &[read(1, 0, 1), read(2, 0, 1), read(2, 1, 0)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "ISA2+release+acquire",
        threads: &[
            thread!(store(X, 1, Relaxed), store(Y, 1, Release)),
            thread!(load(Y, Acquire), store(Z, 1, Release)),
            thread!(load(Z, Acquire), load(X, Relaxed)),
        ],
        castings: THREE,
        ends: &[],
        weak: &[read(1, 0, 1), read(2, 0, 1), read(2, 1, 0)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "IRIW+seq-cst",
        threads: &[
            thread!(store(X, 1, SeqCst)),
            thread!(store(Y, 1, SeqCst)),
            thread!(load(X, SeqCst), load(Y, SeqCst)),
            thread!(load(Y, SeqCst), load(X, SeqCst)),
        ],
        castings: FOUR,
        ends: &[],
        weak: &[read(2, 0, 1), read(2, 1, 0), read(3, 0, 1), read(3, 1, 0)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "IRIW+release+acquire",
        threads: &[
            thread!(store(X, 1, Release)),
            thread!(store(Y, 1, Release)),
            thread!(load(X, Acquire), load(Y, Acquire)),
            thread!(load(Y, Acquire), load(X, Acquire)),
        ],
        castings: FOUR,
        ends: &[],
        weak: &[read(2, 0, 1), read(2, 1, 0), read(3, 0, 1), read(3, 1, 0)],
        rule: Rule::Allowed,
    },
    Test {
        name: "ADD+ADD",
        threads: &[thread!(add(X, 1, Relaxed)), thread!(add(X, 1, Relaxed))],
        castings: TWINS,
        ends: &[X],
        weak: &[end(X, 1)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "SWAP+SWAP",
        threads: &[thread!(swap(X, 1, Relaxed)), thread!(swap(X, 2, Relaxed))],
        castings: TWINS,
        ends: &[X],
        weak: &[read(0, 0, 0), read(1, 0, 0)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "CAS+CAS",
        threads: &[
            thread!(compare_swap(X, 0, 1, AcqRel)),
            thread!(compare_swap(X, 0, 2, AcqRel)),
        ],
        castings: TWINS,
        ends: &[X],
        weak: &[read(0, 0, 0), read(1, 0, 0)],
        rule: Rule::Forbidden,
    },
    Test {
        name: "ADD+STORE",
        threads: &[thread!(add(X, 1, Relaxed)), thread!(store(X, 2, Relaxed))],
        castings: TWO,
        ends: &[X],
        weak: &[read(0, 0, 0), end(X, 1)],
        rule: Rule::Forbidden,
    },
];

#[cfg(test)]
mod tests {
    use super::*;
    use crate::interleave::outcomes;
    use crate::shape::{LOCATIONS_MAX, READS_MAX, casting_name};
    use std::collections::HashSet;
    use std::sync::atomic::AtomicU64;

    #[test]
    fn names_and_castings_are_unique_and_fit_their_tests() {
        let names: HashSet<&str> = TESTS.iter().map(|test| test.name).collect();
        assert_eq!(names.len(), TESTS.len());
        for test in TESTS {
            let castings: HashSet<String> = test
                .castings
                .iter()
                .map(|casting| casting_name(casting))
                .collect();
            assert_eq!(castings.len(), test.castings.len(), "{}", test.name);
            for casting in test.castings {
                assert_eq!(casting.len(), test.threads.len(), "{}", test.name);
                assert!(casting.contains(&D), "{}: no device", test.name);
            }
            assert!(test.locations() <= LOCATIONS_MAX);
            assert!(
                test.threads
                    .iter()
                    .all(|thread| thread.reads() <= READS_MAX)
            );
        }
    }

    #[test]
    fn outcome_that_a_test_is_about_is_that_of_no_interleaving() {
        for test in TESTS {
            assert!(
                outcomes(test).iter().all(|outcome| !test.is_weak(outcome)),
                "{}: an interleaving leads to {}",
                test.name,
                test.shown_weak()
            );
        }
    }

    #[test]
    fn what_a_cpu_does_alone_is_an_interleaving() {
        // Thread after thread, so that the code of each is seen to do what its data says.
        for test in TESTS {
            let cells: [AtomicU64; LOCATIONS_MAX] = Default::default();
            let places = [&cells[0], &cells[1], &cells[2]];
            let mut outcome = Vec::new();
            for thread in test.threads {
                let reads = (thread.on_cpu)(&places);
                outcome.extend_from_slice(&reads.all()[..thread.reads()]);
            }
            let ends = test.ends.iter();
            outcome.extend(ends.map(|&location| cells[location].load(Ordering::Relaxed)));
            assert!(
                outcomes(test).contains(&outcome),
                "{}: {outcome:?}",
                test.name
            );
        }
    }

    /// Rows of the specification's table of shapes.
    fn specified() -> Vec<[String; 4]> {
        let path = concat!(
            env!("CARGO_MANIFEST_DIR"),
            "/../../docs/reference/device.md"
        );
        let text = std::fs::read_to_string(path).expect("the specification");
        let section = text.split("\n### 10.2 Litmus tests\n").nth(1);
        let section = section.expect("a section for them");
        let section = section.split("\n## ").next().unwrap_or(section);
        let rows = section.lines().filter(|line| line.starts_with("| `"));
        rows.map(|line| {
            let cells: Vec<String> = line
                .trim_matches('|')
                .split(" | ")
                .map(|cell| cell.trim().replace('`', ""))
                .collect();
            cells.try_into().expect("four cells")
        })
        .collect()
    }

    #[test]
    fn every_test_is_in_the_specification_with_its_rule_and_nothing_else_is() {
        let in_code: Vec<[String; 4]> = TESTS
            .iter()
            .map(|test| {
                let threads: Vec<String> = test.threads.iter().map(Thread::to_string).collect();
                [
                    test.name.to_owned(),
                    threads.join(" ‖ "),
                    test.shown_weak(),
                    test.rule.to_string(),
                ]
            })
            .collect();
        let rows: Vec<String> = in_code
            .iter()
            .map(|[name, threads, weak, rule]| {
                format!("| `{name}` | {threads} | {weak} | {rule} |")
            })
            .collect();
        assert_eq!(
            specified(),
            in_code,
            "the table should be:\n{}",
            rows.join("\n")
        );
    }
}
