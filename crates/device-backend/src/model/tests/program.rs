// SPDX-License-Identifier: Apache-2.0 OR MIT

//! PROGRAM: each instruction, each fault, and two programs at once.

use super::fixture::*;
use cdm_protocol::{
    CommandHeader, Completion, Instruction, MemoryOrder, Opcode, Operator,
    PROGRAM_INSTRUCTIONS_MAX, PROGRAM_STEPS_MAX, Range, Status,
};
use std::cell::Cell;
use std::thread;
use zerocopy::{FromZeros, IntoBytes};

/// Where programs lie.
const CODE: u64 = 1 << 20;
/// Memory that they work on, unless a test has its own.
const DATA: u64 = 0x2000;

fn instruction(operator: Operator, d: u8, a: u8, b: u8, immediate: u64) -> Instruction {
    Instruction {
        operator,
        d,
        a,
        b,
        immediate: immediate.into(),
        ..Instruction::new_zeroed()
    }
}

fn access(
    operator: Operator,
    order: MemoryOrder,
    width: u8,
    [d, a, b]: [u8; 3],
    offset: u64,
) -> Instruction {
    Instruction {
        order,
        width,
        ..instruction(operator, d, a, b, offset)
    }
}

fn load(d: u8, offset: u64) -> Instruction {
    access(Operator::LOAD, MemoryOrder::RELAXED, 8, [d, 0, 0], offset)
}

fn end() -> Instruction {
    instruction(Operator::END, 0, 0, 0, 0)
}

fn program(instructions: usize, argument: u64, limit: u64) -> CommandHeader {
    CommandHeader {
        repeat: (instructions as u32).into(),
        arg0: argument.into(),
        arg1: limit.into(),
        ..header(Opcode::PROGRAM)
    }
}

/// Carries a program out on 64 bytes of device memory at [`DATA`].
fn run(fixture: &Fixture, code: &[Instruction], argument: u64) -> (Status, u64, u64) {
    outcome(&run_on(fixture, code, argument, &[device(DATA, 64)]))
}

fn run_on(fixture: &Fixture, code: &[Instruction], argument: u64, data: &[Range]) -> Completion {
    fixture.poke(CODE, code.as_bytes());
    let source = [device(CODE, code.as_bytes().len() as u64)];
    fixture.run(program(code.len(), argument, 1000), &source, data)
}

fn outcome(completion: &Completion) -> (Status, u64, u64) {
    let (result, done) = (completion.result.get(), completion.bytes_done.get());
    (completion.status, result, done)
}

#[test]
fn registers_are_moved_and_calculated_with() {
    use Operator as O;
    let fixture = Fixture::new();
    let cases: [(&[Instruction], u64); 6] = [
        (&[instruction(O::SET, 0, 0, 0, 77)], 77),
        (
            &[
                instruction(O::SET, 1, 0, 0, 78),
                instruction(O::MOVE, 0, 1, 0, 0),
            ],
            78,
        ),
        (
            &[
                instruction(O::SET, 1, 0, 0, 5),
                instruction(O::ADD, 0, 0, 1, u64::MAX),
            ],
            14,
        ),
        (
            &[
                instruction(O::SET, 1, 0, 0, 11),
                instruction(O::SUBTRACT, 0, 0, 1, 0),
            ],
            u64::MAX,
        ),
        (
            &[
                instruction(O::SET, 1, 0, 0, 6),
                instruction(O::AND, 0, 0, 1, 0),
            ],
            2,
        ),
        (&[instruction(O::SHIFT_LEFT, 0, 0, 0, 63)], 0),
    ];
    for (code, expected) in cases {
        let found = run(&fixture, code, 10);
        assert_eq!(found, (Status::OK, expected, code.len() as u64), "{code:?}");
    }
}

#[test]
fn every_access_does_what_it_says_in_both_widths_and_every_order() {
    use MemoryOrder as M;
    let fixture = Fixture::new();
    let all = [
        M::RELAXED,
        M::ACQUIRE,
        M::RELEASE,
        M::ACQUIRE_RELEASE,
        M::SEQ_CST,
    ];
    let (loads, stores) = (
        [M::RELAXED, M::ACQUIRE, M::SEQ_CST],
        [M::RELAXED, M::RELEASE, M::SEQ_CST],
    );
    // Register 1 is the operand, 2 the expected value, then the outcome; the word is at 8.
    let cases: [(Operator, &[M], u64, u64, u64); 6] = [
        // What it does, the operand, the word before, the outcome, the word after.
        (Operator::LOAD, &loads, 0, 0x1_0000_0003, 0x1_0000_0003),
        (Operator::STORE, &stores, 0x2_0000_0005, 0, 0x2_0000_0005),
        (
            Operator::ATOMIC_ADD,
            &all,
            0xffff_ffff_ffff_ffff,
            0x1_0000_0003,
            0x1_0000_0002,
        ),
        (Operator::ATOMIC_SWAP, &all, 9, 0x1_0000_0003, 9),
        (Operator::ATOMIC_COMPARE_SWAP, &all, 9, 0x1_0000_0003, 9),
        (
            Operator::ATOMIC_COMPARE_SWAP,
            &all,
            9,
            0x1_0000_0003,
            0x1_0000_0003,
        ),
    ];
    for (index, (operator, orders, operand, outcome, after)) in cases.into_iter().enumerate() {
        for (&order, width) in orders.iter().flat_map(|order| [(order, 4u8), (order, 8)]) {
            let word = 0x1_0000_0003u64;
            fixture.poke(
                DATA,
                &[u64::MAX, word, u64::MAX].map(u64::to_le_bytes).concat(),
            );
            // The last comparison fails.
            let expected = if index == 5 { word + 1 } else { word };
            let is_store = operator == Operator::STORE;
            let d = if is_store { 0 } else { 2 };
            let b = if operator == Operator::LOAD { 0 } else { 1 };
            let code = [
                instruction(Operator::SET, 1, 0, 0, operand),
                instruction(Operator::SET, 2, 0, 0, if is_store { 0 } else { expected }),
                access(operator, order, width, [d, 0, b], 8),
                instruction(Operator::MOVE, 0, 2, 0, 0),
            ];
            let narrow = |value: u64, rest: u64| match width {
                4 => rest & !0xffff_ffff | value & 0xffff_ffff,
                _ => value,
            };
            let context = format!("{operator:?} {order:?} {width}");
            assert_eq!(
                run(&fixture, &code, 0),
                (Status::OK, narrow(outcome, 0), 4),
                "{context}"
            );
            let found = fixture.peek(DATA, 24);
            let expected = [u64::MAX, narrow(after, word), u64::MAX]
                .map(u64::to_le_bytes)
                .concat();
            assert_eq!(found, expected, "{context}");
        }
    }
}

#[test]
fn jumps_make_loops_and_the_end_of_the_list_ends_the_program() {
    let fixture = Fixture::new();
    use Operator as O;
    // Adds 1 to 10 up.
    let code = [
        instruction(O::SET, 2, 0, 0, 11),
        instruction(O::ADD, 1, 1, 3, 1),
        instruction(O::JUMP_EQUAL, 0, 1, 2, 5),
        instruction(O::ADD, 0, 0, 1, 0),
        instruction(O::JUMP_NOT_EQUAL, 0, 1, 2, 1),
    ];
    assert_eq!(run(&fixture, &code, 0), (Status::OK, 55, 1 + 4 * 10 + 2));
    let less = [
        instruction(O::SET, 1, 0, 0, 100),
        instruction(O::ADD, 0, 0, 2, 30),
        instruction(O::JUMP_LESS, 0, 0, 1, 1),
        end(),
        instruction(O::SET, 0, 0, 0, 0),
    ];
    assert_eq!(run(&fixture, &less, 0), (Status::OK, 120, 1 + 2 * 4 + 1));
}

#[test]
fn a_program_that_does_not_end_ends_at_its_limit_and_one_that_does_is_not_hurt() {
    let fixture = Fixture::new();
    let forever = [instruction(Operator::JUMP_EQUAL, 0, 0, 0, 0)];
    assert_eq!(run(&fixture, &forever, 0), (Status::STEP_LIMIT, 0, 1000));
    let thousand = [
        instruction(Operator::ADD, 0, 0, 2, 1),
        instruction(Operator::JUMP_NOT_EQUAL, 0, 0, 1, 0),
    ];
    fixture.poke(CODE, thousand.as_bytes());
    let limited = |limit| {
        // Register 1 is zero: the loop ends when register 0 wraps, after 500 rounds.
        let header = program(2, 500u64.wrapping_neg(), limit);
        outcome(&fixture.run(header, &[device(CODE, 32)], &[device(DATA, 8)]))
    };
    assert_eq!(limited(1000), (Status::OK, 0, 1000));
    assert_eq!(limited(999), (Status::STEP_LIMIT, 0, 999));
}

#[test]
fn an_access_outside_or_not_aligned_ends_the_program_and_leaves_what_was_done() {
    let fixture = Fixture::new();
    for (offset, width) in [
        (64, 8),
        (60, 8),
        (4, 8),
        (62, 4),
        (u64::MAX - 7, 8),
        (1 << 40, 4),
    ] {
        for operator in [
            Operator::LOAD,
            Operator::STORE,
            Operator::ATOMIC_ADD,
            Operator::ATOMIC_SWAP,
            Operator::ATOMIC_COMPARE_SWAP,
        ] {
            fixture.poke(DATA, &[0; 80]);
            let (d, b) = match operator {
                Operator::LOAD => (1, 0),
                Operator::STORE => (0, 1),
                _ => (1, 1),
            };
            let code = [
                instruction(Operator::SET, 1, 0, 0, 5),
                access(Operator::STORE, MemoryOrder::SEQ_CST, 8, [0, 2, 1], 0),
                access(operator, MemoryOrder::SEQ_CST, width, [d, 0, b], offset),
            ];
            assert_eq!(
                run(&fixture, &code, 0),
                (Status::BAD_POINTER, 0, 2),
                "{operator:?} {offset}"
            );
            let mut expected = [0; 80];
            expected[0] = 5;
            assert_eq!(fixture.peek(DATA, 80), expected);
        }
    }
}

#[test]
fn memory_of_both_spaces_is_one_operand() {
    let fixture = Fixture::new();
    let data = [
        device(DATA, 8),
        guest(GUEST_BORDER - 8, 16),
        device(DATA + 64, 8),
    ];
    fixture.poke_guest(GUEST_BORDER, &41u64.to_le_bytes());
    let code = [
        load(1, 16),
        instruction(Operator::ADD, 1, 1, 2, 1),
        access(Operator::STORE, MemoryOrder::RELEASE, 8, [0, 0, 1], 24),
        instruction(Operator::MOVE, 0, 1, 0, 0),
    ];
    assert_eq!(
        outcome(&run_on(&fixture, &code, 0, &data)),
        (Status::OK, 42, 4)
    );
    assert_eq!(fixture.peek(DATA + 64, 8), 42u64.to_le_bytes());
}

#[test]
fn what_is_no_instruction_is_refused_by_its_number_before_anything_is_done() {
    use MemoryOrder as M;
    let fixture = Fixture::new();
    let good = access(Operator::STORE, M::RELAXED, 8, [0, 0, 0], 0);
    let bad = [
        instruction(Operator(0.into()), 0, 0, 0, 0),
        instruction(Operator(18.into()), 0, 0, 0, 0),
        instruction(Operator::SET, 16, 0, 0, 0),
        instruction(Operator::MOVE, 0, 16, 0, 0),
        instruction(Operator::ADD, 0, 0, 16, 0),
        // Fields that the operator does not use.
        instruction(Operator::END, 1, 0, 0, 0),
        instruction(Operator::SET, 0, 1, 0, 0),
        instruction(Operator::MOVE, 0, 0, 1, 0),
        instruction(Operator::MOVE, 0, 0, 0, 1),
        instruction(Operator::PAUSE, 0, 0, 0, 1),
        instruction(Operator::JUMP_LESS, 1, 0, 0, 0),
        access(Operator::ADD, M::RELAXED, 0, [0; 3], 0),
        access(Operator::BARRIER, M::SEQ_CST, 8, [0; 3], 0),
        access(Operator::LOAD, M::RELAXED, 8, [0, 0, 1], 0),
        access(Operator::STORE, M::RELAXED, 8, [1, 0, 0], 0),
        // Widths and orders that there are not.
        access(Operator::LOAD, M::RELAXED, 2, [0; 3], 0),
        access(Operator::LOAD, M(0.into()), 8, [0; 3], 0),
        access(Operator::LOAD, M(6.into()), 8, [0; 3], 0),
        access(Operator::LOAD, M::RELEASE, 8, [0; 3], 0),
        access(Operator::STORE, M::ACQUIRE, 8, [0; 3], 0),
        access(Operator::BARRIER, M::RELAXED, 0, [0; 3], 0),
        instruction(Operator::SHIFT_LEFT, 0, 0, 0, 64),
        instruction(Operator::JUMP_EQUAL, 0, 0, 0, 4),
        instruction(Operator::JUMP_EQUAL, 0, 0, 0, u64::MAX),
    ];
    for bad in bad {
        fixture.poke(DATA, &[3; 8]);
        let found = run_on(&fixture, &[good, good, bad], 0, &[device(DATA, 8)]);
        assert_eq!(outcome(&found), (Status::BAD_PROGRAM, 0, 0), "{bad:?}");
        assert_eq!(found.range_index.get(), 2);
        assert_eq!(fixture.peek(DATA, 8), [3; 8]);
    }
}

#[test]
fn each_fault_of_the_command_has_its_status() {
    let fixture = Fixture::new();
    fixture.poke(CODE, [end(); 2].as_bytes());
    let (code, data) = ([device(CODE, 32)], [device(DATA, 8)]);
    let most = PROGRAM_INSTRUCTIONS_MAX as usize;
    let cases: [(CommandHeader, &[Range], &[Range], Status); 8] = [
        (program(2, 0, 1), &code, &data, Status::OK),
        (program(0, 0, 1), &code, &data, Status::BAD_REPEAT),
        (program(most + 1, 0, 1), &code, &data, Status::BAD_REPEAT),
        (program(2, 0, 0), &code, &data, Status::BAD_ARGUMENT),
        (
            program(2, 0, PROGRAM_STEPS_MAX + 1),
            &code,
            &data,
            Status::BAD_ARGUMENT,
        ),
        (program(3, 0, 1), &code, &data, Status::LENGTH_MISMATCH),
        (
            program(2, 0, 1),
            &code,
            &[device(DATA, 12)],
            Status::MISALIGNED,
        ),
        (program(2, 0, 1), &code, &[], Status::BAD_RANGE_COUNT),
    ];
    for (header, src, dst, status) in cases {
        assert_eq!(fixture.run(header, src, dst).status, status, "{header:?}");
    }
}

#[test]
fn a_program_that_waits_is_cancelled_at_its_pause() {
    let fixture = Fixture::new();
    let wait = [
        instruction(Operator::PAUSE, 0, 0, 0, 0),
        load(1, 0),
        instruction(Operator::JUMP_EQUAL, 0, 1, 2, 0),
    ];
    fixture.poke(CODE, wait.as_bytes());
    let request = command(
        program(3, 0, PROGRAM_STEPS_MAX),
        &[device(CODE, 48)],
        &[device(DATA, 8)],
    );
    let looks = Cell::new(0);
    let completion = fixture.run_until(&request, &|| {
        looks.set(looks.get() + 1);
        looks.get() > 5
    });
    // Two looks at the beginning, then one at each pause.
    assert_eq!(outcome(&completion), (Status::CANCELLED, 0, 3 * 3));
}

#[test]
fn two_programs_hand_a_counter_to_each_other() {
    const ROUNDS: u64 = 2000;
    let fixture = Fixture::new();
    use Operator as O;
    // Waits until the word is register 0, then stores one more: register 3 rounds.
    let player = [
        instruction(O::SET, 3, 0, 0, ROUNDS),
        instruction(O::PAUSE, 0, 0, 0, 0),
        access(O::LOAD, MemoryOrder::ACQUIRE, 8, [1, 4, 0], 0),
        instruction(O::JUMP_NOT_EQUAL, 0, 1, 0, 1),
        instruction(O::ADD, 1, 1, 4, 1),
        access(O::STORE, MemoryOrder::RELEASE, 8, [0, 4, 1], 0),
        instruction(O::ADD, 0, 0, 4, 2),
        instruction(O::ADD, 3, 3, 4, u64::MAX),
        instruction(O::JUMP_NOT_EQUAL, 0, 3, 4, 1),
    ];
    fixture.poke(CODE, player.as_bytes());
    let play = |first: u64| {
        let header = program(player.len(), first, PROGRAM_STEPS_MAX);
        let code = [device(CODE, player.as_bytes().len() as u64)];
        fixture.run(header, &code, &[device(DATA, 8)]).status
    };
    thread::scope(|scope| {
        let other = scope.spawn(|| play(1));
        assert_eq!(play(0), Status::OK);
        assert_eq!(other.join().unwrap(), Status::OK);
    });
    assert_eq!(fixture.peek(DATA, 8), (2 * ROUNDS).to_le_bytes());
}
