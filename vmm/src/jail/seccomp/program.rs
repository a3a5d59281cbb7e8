//! The filter as the kernel runs it: classic BPF (Linux Documentation/userspace-api/seccomp_filter.rst).
//!
//! A list of comparisons, one behind the other, would do. But the kernel runs a new filter once for each of its 450
//! system calls, to learn which it always allows, and then translates it: half a millisecond and more for each thread,
//! while a tenant waits. So calls are found by halving, and all that may be made with any arguments share one verdict.

use std::collections::BTreeMap;

use seccompiler::sock_filter;

// Instructions (Linux `bpf_common.h`).
const LOAD_WORD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const JUMP_IF_EQUAL: u16 = 0x15;
const JUMP_IF_AT_LEAST: u16 = 0x35;
const JUMP_IF_GREATER: u16 = 0x25;
const RETURN: u16 = 0x06;

// Offsets in `struct seccomp_data`; the low half of an argument comes first, the high one 4 bytes later.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `AUDIT_ARCH_X86_64`. The other two sets of numbers that the processor can use have other meanings.
const X86_64: u32 = 0xc000_003e;
const KILL_PROCESS: u32 = 0x8000_0000;
const ALLOW: u32 = 0x7fff_0000;

/// Most calls that are compared with one behind the other.
const LEAF: usize = 4;

/// Which 32 bits of an argument are looked at: classic BPF has no wider numbers.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Half {
    /// Bits 0 to 31: all that the kernel takes of an `int` or `unsigned int`, such as a descriptor.
    Low,
    /// Bits 32 to 63, which count too where the kernel takes a `long`, a pointer or a size.
    High,
}

/// What the looked-at bits have to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Test {
    /// One of these values. None of them: never.
    OneOf(Vec<u32>),
    /// Not more than this, unsigned.
    AtMost(u32),
}

/// What one half of an argument has to be.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// The argument, counted from 0 to 5.
    pub index: u8,
    /// The half of it.
    pub half: Half,
    /// The bits of the half that count.
    pub mask: u32,
    /// What they have to be.
    pub test: Test,
}

impl Condition {
    /// That the lower half is one of these.
    pub fn one_of(index: u8, values: &[u32]) -> Self {
        Self { index, half: Half::Low, mask: u32::MAX, test: Test::OneOf(values.to_vec()) }
    }

    /// That of the lower half those bits that are set in `mask` are as in `value`.
    pub fn masked(index: u8, mask: u32, value: u32) -> Self {
        Self { index, half: Half::Low, mask, test: Test::OneOf(vec![value]) }
    }

    /// That a 64-bit argument is at most this: both halves are compared.
    pub fn at_most(index: u8, bound: u32) -> [Self; 2] {
        let high = Self { index, half: Half::High, mask: u32::MAX, test: Test::OneOf(vec![0]) };
        [high, Self { index, half: Half::Low, mask: u32::MAX, test: Test::AtMost(bound) }]
    }
}

/// Conditions that have to hold together.
pub(super) type Together = Vec<Condition>;

/// The system calls that are allowed: each where all conditions of one of its lists hold, or with any arguments if it has
/// no list.
pub(super) type Rules = BTreeMap<u32, Vec<Together>>;

fn statement(code: u16, k: u32) -> sock_filter {
    sock_filter { code, jt: 0, jf: 0, k }
}

fn jump(code: u16, k: u32, jt: u8, jf: u8) -> sock_filter {
    sock_filter { code, jt, jf, k }
}

/// Leaves out the next `count` instructions.
fn skip(count: usize) -> Option<sock_filter> {
    Some(statement(JUMP, u32::try_from(count).ok()?))
}

/// Leaves out the next `count` instructions where the comparison holds. Its own distance has 8 bits.
fn skip_if(code: u16, k: u32, count: usize) -> Option<Vec<sock_filter>> {
    Some(match u8::try_from(count) {
        Ok(count) => vec![jump(code, k, count, 0)],
        Err(_) => vec![jump(code, k, 0, 1), skip(count)?],
    })
}

/// Leaves out the next `count` instructions where the comparison does not hold.
fn skip_unless(code: u16, k: u32, count: usize) -> Option<Vec<sock_filter>> {
    Some(match u8::try_from(count) {
        Ok(count) => vec![jump(code, k, 0, count)],
        Err(_) => vec![jump(code, k, 1, 0), skip(count)?],
    })
}

/// The filter that kills the process unless `rules` allow the call, or nothing if an argument is compared with more values
/// than a jump can pass (256).
pub(super) fn assemble(rules: &Rules) -> Option<Vec<sock_filter>> {
    let mut program = vec![
        statement(LOAD_WORD, ARCHITECTURE),
        jump(JUMP_IF_EQUAL, X86_64, 1, 0),
        statement(RETURN, KILL_PROCESS),
        statement(LOAD_WORD, NUMBER),
    ];
    let calls: Vec<_> = rules.iter().map(|(number, lists)| (*number, lists.as_slice())).collect();
    program.extend(find(&calls)?);
    Some(program)
}

/// Judges the loaded number by these calls, which are in order. No way leads out of it but by a verdict.
fn find(calls: &[(u32, &[Together])]) -> Option<Vec<sock_filter>> {
    let (below, above) = calls.split_at(calls.len() / 2);
    match above.first() {
        Some((first, _)) if calls.len() > LEAF => {
            let below = find(below)?;
            let mut program = skip_if(JUMP_IF_AT_LEAST, *first, below.len())?;
            program.extend(below);
            program.extend(find(above)?);
            Some(program)
        }
        _ => leaf(calls),
    }
}

/// Compares with one call after the other.
fn leaf(calls: &[(u32, &[Together])]) -> Option<Vec<sock_filter>> {
    let (any, with): (Vec<_>, Vec<_>) = calls.iter().copied().partition(|(_, lists)| lists.is_empty());
    let mut program = Vec::new();
    for (number, lists) in with {
        let body = judge(lists)?;
        program.extend(skip_unless(JUMP_IF_EQUAL, number, body.len())?);
        program.extend(body);
    }
    program.extend(verdict(&any.iter().map(|(number, _)| *number).collect::<Vec<_>>())?);
    Some(program)
}

/// Allows the call where all conditions of one of these lists hold.
fn judge(lists: &[Together]) -> Option<Vec<sock_filter>> {
    let mut program = Vec::new();
    for list in lists {
        program.extend(all_of(list)?);
    }
    program.push(statement(RETURN, KILL_PROCESS));
    Some(program)
}

/// Allows where all of these hold, and goes on behind its end where one does not.
fn all_of(list: &[Condition]) -> Option<Vec<sock_filter>> {
    // From the end, so that each knows how much there is to be left out.
    let mut behind = vec![statement(RETURN, ALLOW)];
    for condition in list.iter().rev() {
        let half = if condition.half == Half::Low { 0 } else { 4 };
        let mut program = vec![statement(LOAD_WORD, ARGUMENTS + 8 * u32::from(condition.index) + half)];
        if condition.mask != u32::MAX {
            program.push(statement(AND, condition.mask));
        }
        program.extend(leave_unless(&condition.test, behind.len())?);
        program.extend(behind);
        behind = program;
    }
    Some(behind)
}

/// Leaves out the next `count` instructions where what is loaded does not pass the test.
fn leave_unless(test: &Test, count: usize) -> Option<Vec<sock_filter>> {
    let values = match test {
        Test::AtMost(bound) => return skip_if(JUMP_IF_GREATER, *bound, count),
        Test::OneOf(values) => values,
    };
    let Some((last, others)) = values.split_last() else {
        return Some(vec![skip(count)?]);
    };
    let leaving = skip_unless(JUMP_IF_EQUAL, *last, count)?;
    let mut program = Vec::with_capacity(others.len().checked_add(leaving.len())?);
    // From there past the comparisons that are left, and the leaving.
    for (value, left) in others.iter().zip((0..others.len()).rev()) {
        let distance = left.checked_add(leaving.len())?;
        program.push(jump(JUMP_IF_EQUAL, *value, u8::try_from(distance).ok()?, 0));
    }
    program.extend(leaving);
    Some(program)
}

/// Allows where what is loaded is one of these; else death.
fn verdict(allowed: &[u32]) -> Option<Vec<sock_filter>> {
    let mut program = Vec::with_capacity(allowed.len() + 2);
    // From there past the comparisons that are left, and the kill.
    for (value, distance) in allowed.iter().zip((1..=allowed.len()).rev()) {
        program.push(jump(JUMP_IF_EQUAL, *value, u8::try_from(distance).ok()?, 0));
    }
    program.extend([statement(RETURN, KILL_PROCESS), statement(RETURN, ALLOW)]);
    Some(program)
}

#[cfg(test)]
mod tests;
