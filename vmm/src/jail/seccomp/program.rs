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
const RETURN: u16 = 0x06;

// Offsets in `struct seccomp_data`; the low half of an argument comes first.
const NUMBER: u32 = 0;
const ARCHITECTURE: u32 = 4;
const ARGUMENTS: u32 = 16;

/// `AUDIT_ARCH_X86_64`. The other two sets of numbers that the processor can use have other meanings.
const X86_64: u32 = 0xc000_003e;
const KILL_PROCESS: u32 = 0x8000_0000;
const ALLOW: u32 = 0x7fff_0000;

/// Most calls that are compared with one behind the other.
const LEAF: usize = 4;

/// What an argument has to be: its lower 32 bits, of which those in `mask` count.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Condition {
    /// The argument, counted from 0 to 5.
    pub index: u8,
    /// The bits that count.
    pub mask: u32,
    /// What they have to be.
    pub value: u32,
}

impl Condition {
    /// That all 32 bits are `value`.
    pub const fn equals(index: u8, value: u32) -> Self {
        Self { index, mask: u32::MAX, value }
    }
}

/// The system calls that are allowed, each where one of its conditions holds, or with any arguments if it has none.
pub(super) type Rules = BTreeMap<u32, Vec<Condition>>;

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

/// The filter that kills the process unless `rules` allow the call, or nothing if a call has more conditions than a jump
/// can pass (255).
pub(super) fn assemble(rules: &Rules) -> Option<Vec<sock_filter>> {
    let mut program = vec![
        statement(LOAD_WORD, ARCHITECTURE),
        jump(JUMP_IF_EQUAL, X86_64, 1, 0),
        statement(RETURN, KILL_PROCESS),
        statement(LOAD_WORD, NUMBER),
    ];
    let calls: Vec<_> = rules.iter().map(|(number, conditions)| (*number, conditions.as_slice())).collect();
    program.extend(find(&calls)?);
    Some(program)
}

/// Judges the loaded number by these calls, which are in order. No way leads out of it but by a verdict.
fn find(calls: &[(u32, &[Condition])]) -> Option<Vec<sock_filter>> {
    let (below, above) = calls.split_at(calls.len() / 2);
    match above.first() {
        Some((first, _)) if calls.len() > LEAF => {
            let below = find(below)?;
            let mut program = vec![jump(JUMP_IF_AT_LEAST, *first, 0, 1), skip(below.len())?];
            program.extend(below);
            program.extend(find(above)?);
            Some(program)
        }
        _ => leaf(calls),
    }
}

/// Compares with one call after the other.
fn leaf(calls: &[(u32, &[Condition])]) -> Option<Vec<sock_filter>> {
    let (any, with): (Vec<_>, Vec<_>) = calls.iter().copied().partition(|(_, conditions)| conditions.is_empty());
    let mut program = Vec::new();
    for (number, conditions) in with {
        let body = judge(conditions)?;
        program.extend([jump(JUMP_IF_EQUAL, number, 1, 0), skip(body.len())?]);
        program.extend(body);
    }
    program.extend(verdict(&any.iter().map(|(number, _)| *number).collect::<Vec<_>>())?);
    Some(program)
}

/// Allows the loaded call where one of the conditions holds.
fn judge(conditions: &[Condition]) -> Option<Vec<sock_filter>> {
    let mut program = Vec::new();
    let mut rest = conditions;
    while let Some(first) = rest.first() {
        let same = rest.iter().take_while(|other| (other.index, other.mask) == (first.index, first.mask)).count();
        let (group, others) = rest.split_at(same);
        rest = others;
        program.push(statement(LOAD_WORD, ARGUMENTS + 8 * u32::from(first.index)));
        if first.mask != u32::MAX {
            program.push(statement(AND, first.mask));
        }
        let mut verdict = verdict(&group.iter().map(|condition| condition.value).collect::<Vec<_>>())?;
        if !rest.is_empty() {
            // Instead of the kill, past the allowing, to the next group.
            let kill = verdict.len().checked_sub(2)?;
            *verdict.get_mut(kill)? = skip(1)?;
        }
        program.extend(verdict);
    }
    Some(program)
}

/// Allows where what is loaded is one of these; else death. The last two instructions are those ends.
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
