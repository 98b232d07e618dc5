//! Rules on system calls become a classic BPF program: a binary search over the call's number, then comparisons of arguments.
//!
//! The layout of what the program reads is `struct seccomp_data` (seccomp(2)): number at 0, architecture at 4, arguments from 16.

/// seccomp(2): what the kernel does.
pub(super) const ALLOW: u32 = 0x7fff_0000;
const ERRNO: u32 = 0x0005_0000;
const ENOSYS: u32 = 38;
/// The kernel's BPF_MAXINSNS.
const MAX_INSTRUCTIONS: usize = 4096;

/// The call fails with this number.
pub(super) const fn errno(number: u32) -> u32 {
    ERRNO | (number & 0xffff)
}

/// What the machine calls itself (AUDIT_ARCH_*), and where the numbers of a foreign habit of it begin (x32).
pub(super) struct Machine {
    pub(super) audit: u32,
    pub(super) foreign_from: Option<u32>,
}

/// One rule; those of one number are tried in order, the first that fits decides.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct Rule {
    pub(super) number: u32,
    pub(super) action: u32,
    /// All must hold.
    pub(super) conditions: Vec<Condition>,
}

/// `argument & mask OP value`, as 64-bit numbers without a sign.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Condition {
    pub(super) argument: u32,
    pub(super) mask: u64,
    pub(super) compare: Compare,
    pub(super) value: u64,
}

/// How to compare.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Compare {
    Equal,
    NotEqual,
    Less,
    LessOrEqual,
    Greater,
    GreaterOrEqual,
}

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
struct Instruction {
    code: u16,
    yes: u8,
    no: u8,
    value: u32,
}

const LOAD: u16 = 0x20;
const AND: u16 = 0x54;
const JUMP: u16 = 0x05;
const IF_EQUAL: u16 = 0x15;
const IF_GREATER: u16 = 0x25;
const IF_GREATER_OR_EQUAL: u16 = 0x35;
const RETURN: u16 = 0x06;

fn plain(code: u16, value: u32) -> Instruction {
    Instruction { code, yes: 0, no: 0, value }
}

/// Where a comparison leads, before it is known how far that is.
#[derive(Clone, Copy, PartialEq, Eq)]
enum To {
    Next,
    Pass,
    Fail,
}

enum Step {
    Do(Instruction),
    If(u16, u32, To, To),
}

/// The program's bytes (`struct sock_filter` one after the other); `None` when it would be longer than the kernel takes.
/// `last` = the highest number anybody knew when the rules were written: calls beyond it do not exist as far as the caller is
/// told, so that programs try the older way; it only matters when `default` refuses.
pub(super) fn program(machine: &Machine, default: u32, rules: &[Rule], last: u32) -> Option<Vec<u8>> {
    let mut code = vec![
        plain(LOAD, 4),
        Instruction { code: IF_EQUAL, yes: 1, no: 0, value: machine.audit },
        // Another machine's numbers mean other calls.
        plain(RETURN, errno(ENOSYS)),
        plain(LOAD, 0),
        // A tracer has cancelled the call and decided on its result.
        Instruction { code: IF_EQUAL, yes: 0, no: 1, value: u32::MAX },
        plain(RETURN, ALLOW),
    ];
    if let Some(from) = machine.foreign_from {
        code.push(Instruction { code: IF_GREATER_OR_EQUAL, yes: 0, no: 1, value: from });
        code.push(plain(RETURN, errno(ENOSYS)));
    }
    if default != ALLOW {
        code.push(Instruction { code: IF_GREATER, yes: 0, no: 1, value: last });
        code.push(plain(RETURN, errno(ENOSYS)));
    }
    search(&ranges(default, rules), &mut code);
    if code.len() > MAX_INSTRUCTIONS {
        return None;
    }
    let bytes = code.iter().flat_map(|one| {
        let [a, b] = one.code.to_le_bytes();
        let [c, d, e, f] = one.value.to_le_bytes();
        [a, b, one.yes, one.no, c, d, e, f]
    });
    Some(bytes.collect())
}

/// What is done from which number on, ascending, from 0; neighbours of the same fate are one.
fn ranges(default: u32, rules: &[Rule]) -> Vec<(u32, Vec<Instruction>)> {
    let mut by_number = std::collections::BTreeMap::<u32, Vec<&Rule>>::new();
    for rule in rules {
        by_number.entry(rule.number).or_default().push(rule);
    }
    let otherwise = vec![plain(RETURN, default)];
    let mut ranges: Vec<(u32, Vec<Instruction>)> = vec![(0, otherwise.clone())];
    let mut push = |from: u32, code: Vec<Instruction>| match ranges.last_mut() {
        Some((_, before)) if *before == code => {}
        Some((start, before)) if *start == from => *before = code,
        _ => ranges.push((from, code)),
    };
    let mut next = 0;
    for (number, rules) in by_number {
        if number > next {
            push(next, otherwise.clone());
        }
        push(number, fate(default, &rules));
        next = number + 1;
    }
    push(next, otherwise);
    ranges
}

/// The end of the search for one number.
fn fate(default: u32, rules: &[&Rule]) -> Vec<Instruction> {
    let mut code = Vec::new();
    for rule in rules {
        let conditions: Vec<Vec<Step>> = rule.conditions.iter().map(steps).collect();
        let end = conditions.iter().map(Vec::len).sum::<usize>() + 1;
        let mut at = 0;
        for condition in conditions {
            let after = at + condition.len();
            for step in condition {
                // The kernel counts from the instruction that follows. At most six conditions of seven steps: it fits.
                let far = |to: To| {
                    let target = match to {
                        To::Next => at + 1,
                        To::Pass => after,
                        To::Fail => end,
                    };
                    u8::try_from(target - at - 1).unwrap_or(u8::MAX)
                };
                code.push(match step {
                    Step::Do(instruction) => instruction,
                    Step::If(code, value, yes, no) => Instruction { code, yes: far(yes), no: far(no), value },
                });
                at += 1;
            }
        }
        code.push(plain(RETURN, rule.action));
        if rule.conditions.is_empty() {
            return code;
        }
    }
    code.push(plain(RETURN, default));
    code
}

/// A comparison of two halves, the high one first.
fn steps(condition: &Condition) -> Vec<Step> {
    let half = |high: bool| {
        let shift = if high { 32 } else { 0 };
        let (mask, value) = ((condition.mask >> shift) as u32, (condition.value >> shift) as u32);
        let offset = 16 + 8 * condition.argument + if high { 4 } else { 0 };
        let mut load = vec![Step::Do(plain(LOAD, offset))];
        if mask != u32::MAX {
            load.push(Step::Do(plain(AND, mask)));
        }
        (load, value)
    };
    let ((mut steps, high), (low_load, low)) = (half(true), half(false));
    let (greater, pass, fail) = match condition.compare {
        Compare::Equal | Compare::NotEqual => (None, To::Pass, To::Fail),
        Compare::Greater => (Some(IF_GREATER), To::Pass, To::Fail),
        Compare::GreaterOrEqual => (Some(IF_GREATER_OR_EQUAL), To::Pass, To::Fail),
        // Less is not greater-or-equal.
        Compare::Less => (Some(IF_GREATER_OR_EQUAL), To::Fail, To::Pass),
        Compare::LessOrEqual => (Some(IF_GREATER), To::Fail, To::Pass),
    };
    match greater {
        Some(code) => {
            steps.push(Step::If(IF_GREATER, high, pass, To::Next));
            steps.push(Step::If(IF_EQUAL, high, To::Next, fail));
            steps.extend(low_load);
            steps.push(Step::If(code, low, pass, fail));
        }
        None if condition.compare == Compare::Equal => {
            steps.push(Step::If(IF_EQUAL, high, To::Next, To::Fail));
            steps.extend(low_load);
            steps.push(Step::If(IF_EQUAL, low, To::Pass, To::Fail));
        }
        None => {
            steps.push(Step::If(IF_EQUAL, high, To::Next, To::Pass));
            steps.extend(low_load);
            steps.push(Step::If(IF_EQUAL, low, To::Fail, To::Pass));
        }
    }
    steps
}

/// Halves the ranges until one is left.
fn search(ranges: &[(u32, Vec<Instruction>)], code: &mut Vec<Instruction>) {
    if let [(_, only)] = ranges {
        code.extend_from_slice(only);
        return;
    }
    let (left, right) = ranges.split_at(ranges.len() / 2);
    let mut below = Vec::new();
    search(left, &mut below);
    // A conditional jump reaches 255 instructions only: the long way goes through an unconditional one.
    code.push(Instruction { code: IF_GREATER_OR_EQUAL, yes: 0, no: 1, value: right[0].0 });
    code.push(plain(JUMP, u32::try_from(below.len()).unwrap_or(u32::MAX)));
    code.extend(below);
    search(right, code);
}

#[cfg(test)]
pub(super) mod tests {
    use super::*;
    use proptest::prelude::*;

    /// The kernel's interpreter, as far as these programs need it.
    pub(in super::super) fn run(program: &[u8], audit: u32, number: u32, arguments: [u64; 6]) -> u32 {
        let mut data = Vec::new();
        data.extend_from_slice(&number.to_le_bytes());
        data.extend_from_slice(&audit.to_le_bytes());
        data.extend_from_slice(&[0; 8]);
        arguments.iter().for_each(|argument| data.extend_from_slice(&argument.to_le_bytes()));
        let (mut at, mut accumulator) = (0_usize, 0_u32);
        loop {
            let one = &program[at * 8..at * 8 + 8];
            let code = u16::from_le_bytes([one[0], one[1]]);
            let value = u32::from_le_bytes([one[4], one[5], one[6], one[7]]);
            let mut branch = |yes: bool| at += usize::from(if yes { one[2] } else { one[3] });
            match code {
                LOAD => {
                    accumulator = u32::from_le_bytes(data[value as usize..value as usize + 4].try_into().unwrap());
                }
                AND => accumulator &= value,
                JUMP => at += value as usize,
                IF_EQUAL => branch(accumulator == value),
                IF_GREATER => branch(accumulator > value),
                IF_GREATER_OR_EQUAL => branch(accumulator >= value),
                RETURN => return value,
                other => panic!("instruction {other:#x}"),
            }
            at += 1;
        }
    }

    const MACHINE: Machine = Machine { audit: 7, foreign_from: Some(0x4000_0000) };

    fn naive(default: u32, rules: &[Rule], number: u32, arguments: [u64; 6]) -> u32 {
        let holds = |condition: &Condition| {
            let found = arguments[condition.argument as usize] & condition.mask;
            match condition.compare {
                Compare::Equal => found == condition.value,
                Compare::NotEqual => found != condition.value,
                Compare::Less => found < condition.value,
                Compare::LessOrEqual => found <= condition.value,
                Compare::Greater => found > condition.value,
                Compare::GreaterOrEqual => found >= condition.value,
            }
        };
        let fits = |rule: &&Rule| rule.number == number && rule.conditions.iter().all(holds);
        rules.iter().find(fits).map_or(default, |rule| rule.action)
    }

    /// Few values, near each other in both halves: that is where comparisons go wrong.
    fn edge() -> impl Strategy<Value = u64> {
        (0_u64..3, 0_u64..3).prop_map(|(high, low)| high << 32 | low)
    }

    fn condition() -> impl Strategy<Value = Condition> {
        use Compare as C;
        let compares = [C::Equal, C::NotEqual, C::Less, C::LessOrEqual, C::Greater, C::GreaterOrEqual];
        let masks = prop_oneof![Just(u64::MAX), edge()];
        (0_u32..6, masks, proptest::sample::select(compares.to_vec()), edge())
            .prop_map(|(argument, mask, compare, value)| Condition { argument, mask, compare, value })
    }

    proptest! {
        #[test]
        fn a_program_decides_as_its_rules_say(
            rules in proptest::collection::vec((0_u32..40, 0_u32..4, proptest::collection::vec(condition(), 0..4)), 0..60),
            number in 0_u32..45,
            arguments in proptest::array::uniform6(edge()),
        ) {
            let rules: Vec<Rule> =
                rules.into_iter().map(|(number, action, conditions)| Rule { number, action, conditions }).collect();
            let code = program(&MACHINE, 99, &rules, 44).unwrap();
            prop_assert_eq!(run(&code, 7, number, arguments), naive(99, &rules, number, arguments));
        }
    }

    #[test]
    fn foreign_and_future_calls_do_not_exist() {
        let rules: Vec<Rule> = (0..10).map(|number| Rule { number, action: ALLOW, conditions: Vec::new() }).collect();
        let code = program(&MACHINE, errno(1), &rules, 20).unwrap();
        assert_eq!(run(&code, 7, 5, [0; 6]), ALLOW);
        assert_eq!(run(&code, 8, 5, [0; 6]), errno(ENOSYS));
        assert_eq!(run(&code, 7, 15, [0; 6]), errno(1));
        assert_eq!(run(&code, 7, 21, [0; 6]), errno(ENOSYS));
        assert_eq!(run(&code, 7, 0x4000_0001, [0; 6]), errno(ENOSYS));
        assert_eq!(run(&code, 7, u32::MAX, [0; 6]), ALLOW);
        // Ten neighbours of one fate are one range: the program stays small.
        assert!(code.len() / 8 < 20, "{} instructions", code.len() / 8);
    }
}
