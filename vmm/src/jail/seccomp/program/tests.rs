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
            JUMP_IF_GREATER => accumulator > k,
            _ => panic!("instruction {code:#x}"),
        };
        at += usize::from(if taken { jt } else { jf });
    }
}

/// What the library knows of a condition: one comparison for each value.
fn comparisons(condition: &Condition) -> Vec<SeccompCondition> {
    let one = |operator, length, value| SeccompCondition::new(condition.index, length, operator, value).unwrap();
    let (mask, dword, qword) = (u64::from(condition.mask), SeccompCmpArgLen::Dword, SeccompCmpArgLen::Qword);
    match (&condition.test, condition.half) {
        (Test::OneOf(values), Half::Low) => {
            values.iter().map(|value| one(SeccompCmpOp::MaskedEq(mask), dword.clone(), u64::from(*value))).collect()
        }
        (Test::OneOf(values), Half::High) => {
            let mask = mask << 32;
            values
                .iter()
                .map(|value| one(SeccompCmpOp::MaskedEq(mask), qword.clone(), u64::from(*value) << 32))
                .collect()
        }
        (Test::AtMost(bound), Half::Low) => vec![one(SeccompCmpOp::Le, dword, u64::from(*bound))],
        (Test::AtMost(bound), Half::High) => {
            vec![one(SeccompCmpOp::Le, qword, (u64::from(*bound) << 32) | u64::from(u32::MAX))]
        }
    }
}

/// All ways to take one of each.
fn product(conditions: &[Condition]) -> Vec<Vec<SeccompCondition>> {
    conditions.iter().fold(vec![Vec::new()], |ways, condition| {
        let values = comparisons(condition);
        ways.iter().flat_map(|way| values.iter().map(|value| [way.clone(), vec![value.clone()]].concat())).collect()
    })
}

/// The filter that a library makes of the same rules.
fn by_the_library(rules: &Rules) -> BpfProgram {
    let lists = |lists: &Vec<Together>| {
        lists.iter().flat_map(|list| product(list)).map(|way| SeccompRule::new(way).unwrap()).collect()
    };
    let rules = rules.iter().map(|(number, all)| (i64::from(*number), lists(all)));
    let (other, these) = (SeccompAction::KillProcess, SeccompAction::Allow);
    SeccompFilter::new(rules.collect(), other, these, TargetArch::x86_64).unwrap().try_into().unwrap()
}

fn condition() -> impl Strategy<Value = Condition> {
    let half = prop_oneof![3 => Just(Half::Low), 1 => Just(Half::High)];
    let mask = prop_oneof![Just(u32::MAX), Just(4), Just(7)];
    // Few values, so that calls meet them.
    let test = prop_oneof![
        3 => prop::collection::vec(0..8u32, 1..4).prop_map(Test::OneOf),
        1 => (0..8u32).prop_map(Test::AtMost),
    ];
    (0..6u8, half, mask, test).prop_map(|(index, half, mask, test)| match test {
        Test::OneOf(values) => {
            let values = values.into_iter().map(|value| value & mask).collect();
            Condition { index, half, mask, test: Test::OneOf(values) }
        }
        // The library masks equality only.
        at_most @ Test::AtMost(_) => Condition { index, half, mask: u32::MAX, test: at_most },
    })
}

fn conditions() -> impl Strategy<Value = Vec<Together>> {
    prop_oneof![Just(Vec::new()), prop::collection::vec(prop::collection::vec(condition(), 1..4), 1..6)]
}

fn call() -> impl Strategy<Value = Call> {
    let architecture = prop_oneof![9 => Just(X86_64), 1 => Just(0x4000_0003)];
    let argument = prop_oneof![4 => 0..8u64, 1 => (0..8u64).prop_map(|high| high << 32 | high), 1 => any::<u64>()];
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
    // An entry for each call, two ends for four of them, one for each halving, and the head.
    assert_eq!(program.len(), 64 + 16 * 2 + 15 + 4);
    let values = |count| (0..count).collect::<Vec<_>>();
    let many = |count| Rules::from([(1, vec![vec![Condition::one_of(1, &values(count))]])]);
    assert!(assemble(&many(256)).is_some());
    assert!(assemble(&many(257)).is_none());
}

#[test]
fn what_is_left_out_may_be_longer_than_a_comparison_can_pass() {
    let many = Condition::one_of(2, &(0..250).collect::<Vec<_>>());
    let [high, low] = Condition::at_most(1, 5);
    // Behind a bound, behind a value, behind one of several, and behind a call's number and half of all calls.
    let lists = |first: Condition| vec![vec![first, many.clone()], vec![Condition::one_of(3, &[1])]];
    let any = (20..30).map(|number| (number, Vec::new()));
    let with = [low, high, Condition::one_of(0, &[4]), Condition::one_of(0, &[4, 5])];
    let rules: Rules = (0..8).zip(with.into_iter().cycle()).map(|(number, first)| (number, lists(first))).collect();
    let rules: Rules = rules.into_iter().chain(any).collect();
    let program = assemble(&rules).unwrap();
    // The library's filter would be longer than the kernel takes.
    let holds = |condition: &Condition, arguments: &[u64; 6]| {
        let argument = arguments[usize::from(condition.index)];
        let half = if condition.half == Half::Low { argument & u64::from(u32::MAX) } else { argument >> 32 };
        match &condition.test {
            Test::OneOf(values) => values.iter().any(|value| u64::from(*value) == half),
            Test::AtMost(bound) => half <= u64::from(*bound),
        }
    };
    for number in 0..32 {
        for (first, second, third, fourth) in
            [(4, 5, 249, 0), (5, 6, 249, 0), (6, 5, 249, 0), (4, 5, 250, 0), (6, 6, 250, 1), (5, 1 << 32, 249, 0)]
        {
            let arguments = [first, second, third, fourth, 0, 0];
            let call = Call { architecture: X86_64, number, arguments };
            let allowed = rules.get(&number).is_some_and(|lists| {
                lists.is_empty() || lists.iter().any(|list| list.iter().all(|one| holds(one, &arguments)))
            });
            assert_eq!(run(&program, &call), if allowed { ALLOW } else { KILL_PROCESS }, "{call:?}");
        }
    }
}

#[test]
fn a_bound_holds_for_both_halves_and_all_conditions_of_a_list_have_to() {
    let list = [Condition::at_most(1, 100).as_slice(), &[Condition::one_of(0, &[3, 4])]].concat();
    let program = assemble(&Rules::from([(1, vec![list, vec![Condition::one_of(0, &[9])]])])).unwrap();
    let verdict = |first, second| {
        let arguments = [first, second, 0, 0, 0, 0];
        run(&program, &Call { architecture: X86_64, number: 1, arguments })
    };
    for (first, second) in [(3, 0), (4, 100), (9, 0), (9, u64::MAX)] {
        assert_eq!(verdict(first, second), ALLOW, "{first} {second}");
    }
    for (first, second) in [(3, 101), (4, 1 << 32), (5, 100), (3, (1 << 32) + 50), (0, 0)] {
        assert_eq!(verdict(first, second), KILL_PROCESS, "{first} {second}");
    }
    // A list of values without a value never holds.
    let never = assemble(&Rules::from([(1, vec![vec![Condition::one_of(0, &[])]])])).unwrap();
    assert_eq!(run(&never, &Call { architecture: X86_64, number: 1, arguments: [0; 6] }), KILL_PROCESS);
}
