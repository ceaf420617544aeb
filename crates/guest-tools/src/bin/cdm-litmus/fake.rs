// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The device's own model in this process, to run litmus tests on it without a guest, and
//! devices that are wrong on purpose: a litmus test that none of them fails would prove
//! nothing.

use std::collections::BTreeMap;
use std::hint::spin_loop;
use std::io;
use std::sync::atomic::Ordering::{self, Relaxed};
use std::sync::atomic::fence;
use std::sync::{Mutex, PoisonError};
use std::thread;

use anyhow::Result;
use cdm_backend::model::{
    Asking, Atomics, Capacity, Command, Device, GuestMemory, Link, LinkSpeed, Means, PageAsker,
    Request, Shape,
};
use cdm_guest_tools::accelerator::Code;
use cdm_guest_tools::device::Answer;
use cdm_guest_tools::memory::Mapping;
use cdm_guest_tools::random::Random;
use cdm_guest_tools::range::AddressRange;
use cdm_protocol::{
    CommandHeader, Instruction, MemoryOrder, Opcode, Operator, PageRequest, Range, Space, Status,
};
use vm_memory::VolatileSlice;
use zerocopy::{FromZeros, IntoBytes};

use crate::catalog::TESTS;
use crate::run::{Accelerator, Place, Run, run};
use crate::shape::{Agent, Test, casting_name};
use crate::tally::{Kind, Tally, Verdict};

/// What is wrong with a device.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
enum Fault {
    /// It is the one that is tested.
    Nothing,
    /// Every access is relaxed, and barriers do nothing.
    ForgetsOrders,
    /// A store is visible only after the next one.
    StoresLate,
    /// A second load of a word finds what was there before the first.
    LoadsStale,
    /// An atomic operation is a load and a store.
    SplitsAtomics,
    /// What is moved to it is not there.
    LosesPages,
    /// Every program ends with an error.
    Refuses,
}

struct Fake {
    fault: Fault,
    model: Device,
    taken_in: Mutex<Vec<AddressRange>>,
}

/// Memory of this process as the device finds it: by its addresses.
struct Guest<'a>([&'a Mapping; 2]);

impl GuestMemory for Guest<'_> {
    fn stretch(&self, address: u64, bytes: u64) -> Option<VolatileSlice<'_>> {
        let Self(mappings) = self;
        let (mapping, left) = mappings.iter().find_map(|mapping| {
            let range = mapping.range();
            let is_inside = (range.start()..range.end()).contains(&address);
            is_inside.then(|| (mapping, range.end() - address))
        })?;
        let offset = address - mapping.address();
        let first = mapping.words().as_ptr() as usize + offset as usize;
        // SAFETY: the bytes lie in a mapping that is borrowed as long as the slice, all whose
        // accesses are atomic or by raw copies.
        Some(unsafe { VolatileSlice::new(first as *mut u8, left.min(bytes) as usize) })
    }
}

/// Nobody has bound a process, so nobody is asked.
struct NoPages;

impl PageAsker for NoPages {
    fn ask(&self, _: PageRequest) -> Asking {
        Asking::NoBuffer
    }
}

/// The device as its process makes it.
fn model() -> Device {
    Device::new(&Shape {
        memory: "256M".parse().unwrap(),
        command_queues: 4,
        engines: 0,
        translations: Capacity::default(),
        atomics: Atomics::Link,
        link: Link {
            speed: LinkSpeed::Gt16,
            width_lanes: 16,
            timing: None,
        },
    })
    .unwrap()
}

/// Carries a program out as the device's process does.
fn run_on_model(model: &Device, code: &Code, memory: &Mapping, limit: u64) -> io::Result<Answer> {
    let bytes = code.instructions().as_bytes();
    let home = Mapping::anonymous(bytes.len())?;
    home.write_bytes(bytes);
    let header = CommandHeader {
        opcode: Opcode::PROGRAM,
        num_src: 1.into(),
        num_dst: 1.into(),
        repeat: (code.instructions().len() as u32).into(),
        arg1: limit.into(),
        ..CommandHeader::new_zeroed()
    };
    let range = |mapping: &Mapping, bytes: usize| Range {
        space: Space::GUEST,
        pasid: 0.into(),
        reserved: 0.into(),
        address: mapping.address().into(),
        bytes: (bytes as u64).into(),
    };
    let ranges = [range(&home, bytes.len()), range(memory, memory.bytes())];
    let request = [header.as_bytes(), ranges.as_bytes()].concat();
    let guest = Guest([&home, memory]);
    let means = Means {
        guest: &guest,
        asker: &NoPages,
        cancelled: &|| false,
    };
    let command = Command::parse(&Request::new(&request, request.len() as u64));
    let completion = match model.begin(command, &guest) {
        Err(completion) => completion,
        Ok(task) => {
            model.work(&task, &means);
            model.finish(&task)
        }
    };
    Ok(Answer {
        status: completion.status,
        result: completion.result.get(),
        bytes_done: completion.bytes_done.get(),
    })
}

/// Looks away for a moment.
fn dawdle() {
    (0..20).for_each(|_| spin_loop());
}

/// One run of a program.
struct Machine<'a> {
    fault: Fault,
    memory: &'a Mapping,
    registers: [u64; 16],
    /// A store that is not visible yet.
    late: Option<(usize, u64)>,
    /// What the next load of a word finds.
    stale: BTreeMap<usize, u64>,
}

impl Machine<'_> {
    fn order(&self, order: MemoryOrder) -> Ordering {
        match order {
            _ if self.fault == Fault::ForgetsOrders => Relaxed,
            MemoryOrder::RELAXED => Relaxed,
            MemoryOrder::ACQUIRE => Ordering::Acquire,
            MemoryOrder::RELEASE => Ordering::Release,
            MemoryOrder::ACQUIRE_RELEASE => Ordering::AcqRel,
            _ => Ordering::SeqCst,
        }
    }

    fn store(&mut self, at: usize, value: u64, order: Ordering, is_paced: bool) {
        let late = self.late.take();
        if self.fault == Fault::StoresLate && late.is_none() && !is_paced {
            self.late = Some((at, value));
            return;
        }
        self.memory.word(at).store(value, order);
        if let Some((at, value)) = late {
            dawdle();
            self.memory.word(at).store(value, order);
        }
    }

    fn load(&mut self, at: usize, order: Ordering, is_paced: bool) -> u64 {
        let word = self.memory.word(at);
        if self.fault != Fault::LoadsStale || is_paced {
            return word.load(order);
        }
        if let Some(value) = self.stale.remove(&at) {
            return value;
        }
        self.stale.insert(at, word.load(order));
        dawdle();
        word.load(order)
    }

    fn update(&mut self, instruction: &Instruction, at: usize, order: Ordering) -> u64 {
        let word = self.memory.word(at);
        let b = self.registers[usize::from(instruction.b)];
        let d = self.registers[usize::from(instruction.d)];
        if self.fault == Fault::SplitsAtomics {
            let found = word.load(order_of_load(order));
            dawdle();
            match instruction.operator {
                Operator::ATOMIC_ADD => word.store(found + b, Relaxed),
                Operator::ATOMIC_COMPARE_SWAP if found != d => {}
                _ => word.store(b, Relaxed),
            }
            return found;
        }
        match instruction.operator {
            Operator::ATOMIC_ADD => word.fetch_add(b, order),
            Operator::ATOMIC_SWAP => word.swap(b, order),
            _ => {
                let (Ok(found) | Err(found)) =
                    word.compare_exchange(d, b, order, order_of_load(order));
                found
            }
        }
    }

    /// Carries a program out; what register 0 ends with, or nothing if it does not end.
    fn run(&mut self, code: &[Instruction], limit: u64) -> Option<u64> {
        let mut next = 0;
        for _ in 0..limit {
            let Some(instruction) = code.get(next) else {
                return Some(self.registers[0]);
            };
            next += 1;
            let register = |number: u8| self.registers[usize::from(number)];
            let (a, b) = (register(instruction.a), register(instruction.b));
            let immediate = instruction.immediate.get();
            let at = a.wrapping_add(immediate) as usize;
            // The words that pace the threads are addressed by the register that is never written.
            let is_paced = instruction.a == 15;
            let order = self.order(instruction.order);
            let outcome = match instruction.operator {
                Operator::SET => immediate,
                Operator::ADD => a.wrapping_add(b).wrapping_add(immediate),
                Operator::LOAD => self.load(at, order, is_paced),
                Operator::STORE => {
                    self.store(at, b, order, is_paced);
                    continue;
                }
                Operator::ATOMIC_ADD | Operator::ATOMIC_SWAP | Operator::ATOMIC_COMPARE_SWAP => {
                    self.update(instruction, at, order)
                }
                Operator::BARRIER => {
                    if order != Relaxed {
                        fence(order);
                    }
                    continue;
                }
                Operator::PAUSE => {
                    thread::yield_now();
                    continue;
                }
                operator => {
                    let is_taken = match operator {
                        Operator::JUMP_EQUAL => a == b,
                        Operator::JUMP_NOT_EQUAL => a != b,
                        Operator::JUMP_LESS => a < b,
                        _ => panic!("no program here has a {operator:?}"),
                    };
                    if is_taken {
                        next = immediate as usize;
                    }
                    continue;
                }
            };
            self.registers[usize::from(instruction.d)] = outcome;
        }
        None
    }
}

fn order_of_load(order: Ordering) -> Ordering {
    match order {
        Ordering::SeqCst => Ordering::SeqCst,
        Ordering::Acquire | Ordering::AcqRel => Ordering::Acquire,
        _ => Relaxed,
    }
}

impl Accelerator for Fake {
    fn queues(&self) -> Result<usize> {
        Ok(64)
    }

    fn run(&self, code: &Code, memory: &Mapping, limit: u64) -> io::Result<Answer> {
        let answer = |status, result| Answer {
            status,
            result,
            bytes_done: 0,
        };
        if self.fault == Fault::Nothing {
            return run_on_model(&self.model, code, memory, limit);
        }
        if self.fault == Fault::Refuses {
            return Ok(answer(Status::HOST_ERROR, 0));
        }
        let mut machine = Machine {
            fault: self.fault,
            memory,
            registers: [0; 16],
            late: None,
            stale: BTreeMap::new(),
        };
        let ended = machine.run(code.instructions(), limit);
        if let Some((at, value)) = machine.late {
            memory.word(at).store(value, Relaxed);
        }
        Ok(match ended {
            Some(result) => answer(Status::OK, result),
            None => answer(Status::STEP_LIMIT, 0),
        })
    }

    fn take_in(&self, range: AddressRange) -> Result<()> {
        let taken_in = self.taken_in.lock();
        taken_in.unwrap_or_else(PoisonError::into_inner).push(range);
        Ok(())
    }

    fn pages_inside(&self, range: AddressRange) -> Result<u64> {
        let taken_in = self.taken_in.lock();
        let is_inside = taken_in
            .unwrap_or_else(PoisonError::into_inner)
            .iter()
            .any(|taken| taken.start() <= range.start() && range.end() <= taken.end());
        Ok(match is_inside && self.fault != Fault::LosesPages {
            true => range.pages(),
            false => 0,
        })
    }
}

fn find(name: &str) -> &'static Test {
    TESTS.iter().find(|test| test.name == name).unwrap()
}

fn run_on(
    fault: Fault,
    test: &'static Test,
    casting: &'static [Agent],
    is_enough: &mut dyn FnMut(&Tally) -> bool,
) -> Result<Tally> {
    let fake = Fake {
        fault,
        model: model(),
        taken_in: Mutex::default(),
    };
    let place = Place::Mixed;
    let one = Run {
        test,
        casting,
        place,
    };
    run(one, &fake, &mut Random::new(1), is_enough)
}

/// Instances after which a fault that was not seen is not seen at all: seconds.
const ENOUGH: u64 = 4_000_000;

#[test]
fn device_passes_every_test_with_every_casting() {
    for test in TESTS {
        for &casting in test.castings {
            let mut batches = 0;
            let mut is_enough = |_: &Tally| {
                batches += 1;
                batches > 2
            };
            let tally = run_on(Fault::Nothing, test, casting, &mut is_enough).unwrap();
            let name = format!("{} {}", test.name, casting_name(casting));
            assert_eq!(tally.of(Kind::Forbidden), 0, "{name}: {tally:?}");
            assert_eq!(tally.instances(), 2 * crate::layout::INSTANCES as u64);
        }
    }
}

#[test]
fn threads_meet_so_that_store_buffering_is_seen() {
    for &casting in find("SB+relaxed").castings {
        let mut is_enough = |tally: &Tally| tally.of(Kind::Weak) > 0 || tally.instances() >= ENOUGH;
        let tally = run_on(Fault::Nothing, find("SB+relaxed"), casting, &mut is_enough).unwrap();
        assert_eq!(tally.verdict(), Verdict::Good, "{tally:?}");
    }
}

/// Whether a test catches a device with a fault, with the device in a certain part.
fn catches(fault: Fault, name: &str, casting: &str) -> bool {
    let test = find(name);
    let casting = test
        .castings
        .iter()
        .find(|known| casting_name(known) == casting)
        .unwrap();
    let mut is_enough =
        |tally: &Tally| tally.verdict() == Verdict::ForbiddenSeen || tally.instances() >= ENOUGH;
    let tally = run_on(fault, test, casting, &mut is_enough).unwrap();
    tally.verdict() == Verdict::ForbiddenSeen
}

#[test]
fn device_that_forgets_orders_is_caught() {
    for name in ["SB+seq-cst", "SB+barriers"] {
        assert!(catches(Fault::ForgetsOrders, name, "CD"), "{name}");
    }
}

#[test]
fn device_whose_stores_overtake_each_other_is_caught() {
    for name in ["MP+release+acquire", "MP+barriers"] {
        assert!(catches(Fault::StoresLate, name, "DC"), "{name}");
    }
}

#[test]
fn device_that_goes_back_in_time_is_caught() {
    assert!(catches(Fault::LoadsStale, "CoRR", "CD"));
}

#[test]
fn device_whose_atomics_are_not_is_caught() {
    for name in ["ADD+ADD", "SWAP+SWAP", "CAS+CAS"] {
        assert!(catches(Fault::SplitsAtomics, name, "CD"), "{name}");
    }
}

#[test]
fn run_on_other_memory_than_asked_for_is_no_run() {
    let casting = find("CoRR").castings[0];
    let error = run_on(Fault::LosesPages, find("CoRR"), casting, &mut |_| true);
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.contains("0 pages of location 0"), "{error}");
}

#[test]
fn program_that_fails_ends_the_run_and_leaves_nobody_waiting() {
    let casting = find("SB+relaxed").castings[0];
    let error = run_on(Fault::Refuses, find("SB+relaxed"), casting, &mut |_| false);
    let error = format!("{:#}", error.unwrap_err());
    assert!(error.contains("HOST_ERROR"), "{error}");
}
