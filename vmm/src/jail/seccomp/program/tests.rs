use proptest::prelude::*;
use seccompiler::{
    BpfProgram, SeccompAction, SeccompCmpArgLen, SeccompCmpOp, SeccompCondition, SeccompFilter, SeccompRule, TargetArch,
};

use super::*;

/// A call as a filter sees it.
#[derive(Clone, Copy, Debug)]
struct Call {
    architecture: u32,
    number: u32,
    arguments: [u64; 6],
}

/// What the kernel's interpreter makes of a program. No filter has other instructions.
fn run(program: &[sock_filter], call: &Call) -> u32 {
    let mut accumulator = 0;
    let mut at = 0;
    // Jumps lead forwards only, so this ends.
    loop {
        let sock_filter { code, jt, jf, k } = program[at];
        at += 1;
        let taken = match code {
            LOAD_WORD => {
                accumulator = match k {
                    NUMBER => call.number,
                    ARCHITECTURE => call.architecture,
                    _ => {
                        let argument = call.arguments[(k - ARGUMENTS) as usize / 8];
                        assert_eq!(k % 4, 0);
                        let half = if k % 8 == 0 { argument } else { argument >> 32 };
                        u32::try_from(half & u64::from(u32::MAX)).unwrap()
                    }
                };
                continue;
            }
            AND => {
                accumulator &= k;
                continue;
            }
            RETURN => return k,
            JUMP => {
                at += k as usize;
                continue;
            }
            JUMP_IF_EQUAL => accumulator == k,
            JUMP_IF_AT_LEAST => accumulator >= k,
            _ => panic!("instruction {code:#x}"),
        };
        at += usize::from(if taken { jt } else { jf });
    }
}

/// The filter that a library makes of the same rules.
fn by_the_library(rules: &Rules) -> BpfProgram {
    let rule = |condition: &Condition| {
        let operator = SeccompCmpOp::MaskedEq(u64::from(condition.mask));
        let (length, value) = (SeccompCmpArgLen::Dword, u64::from(condition.value));
        SeccompRule::new(vec![SeccompCondition::new(condition.index, length, operator, value).unwrap()]).unwrap()
    };
    let rules = rules.iter().map(|(number, conditions)| (i64::from(*number), conditions.iter().map(rule).collect()));
    let (other, these) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules.collect(), other, these, TargetArch::x86_64).unwrap().try_into().unwrap()
}

fn conditions() -> impl Strategy<Value = Vec<Condition>> {
    // Few values, so that calls meet them.
    let condition = (0..6u8, prop_oneof![Just(u32::MAX), Just(4), Just(7)], 0..8u32)
        .prop_map(|(index, mask, value)| Condition { index, mask, value: value & mask });
    prop_oneof![Just(Vec::new()), prop::collection::vec(condition, 1..12)]
}

fn call() -> impl Strategy<Value = Call> {
    let architecture = prop_oneof![9 => Just(X86_64), 1 => Just(0x4000_0003)];
    let argument = prop_oneof![0..8u64, any::<u64>()];
    (architecture, 0..70u32, prop::array::uniform6(argument)).prop_map(|(architecture, number, arguments)| Call {
        architecture,
        number,
        arguments,
    })
}

proptest! {
    #[test]
    fn verdicts_are_those_of_the_librarys_filter(
        rules in prop::collection::btree_map(0..64u32, conditions(), 0..40),
        calls in prop::collection::vec(call(), 64),
    ) {
        let (ours, theirs) = (assemble(&rules).unwrap(), by_the_library(&rules));
        for call in calls {
            prop_assert_eq!(run(&ours, &call), run(&theirs, &call), "{:?}", call);
        }
    }
}

#[test]
fn every_call_of_every_set_of_numbers_gets_its_verdict() {
    let rules: Rules = (0..400).step_by(7).map(|number| (number, Vec::new())).collect();
    let program = assemble(&rules).unwrap();
    for architecture in [X86_64, 0x4000_0003, 0xc000_00b7] {
        // Those of x32 have bit 30 set, beside the same architecture.
        for number in (0..500).chain(0x4000_0000..0x4000_0200).chain([u32::MAX]) {
            let verdict = run(&program, &Call { architecture, number, arguments: [0; 6] });
            let allowed = architecture == X86_64 && number < 400 && number % 7 == 0;
            assert_eq!(verdict, if allowed { ALLOW } else { KILL_PROCESS }, "{architecture:#x} {number:#x}");
        }
    }
}

#[test]
fn a_verdict_is_some_comparisons_away() {
    let rules: Rules = (0..64).map(|number| (number, Vec::new())).collect();
    let program = assemble(&rules).unwrap();
    // An entry for each call, two ends for four of them, two for each halving, and the head.
    assert_eq!(program.len(), 64 + 16 * 2 + 15 * 2 + 4);
    let many = |count| Rules::from([(1, (0..count).map(|value| Condition::equals(1, value)).collect())]);
    assert!(assemble(&many(255)).is_some());
    assert!(assemble(&many(256)).is_none());
}
