//! Which devices a container's cgroup lets it open: the spec's rules, and what every container may use anyway.

use oci_spec::runtime::{LinuxDeviceCgroup, LinuxDeviceType};

use crate::CompileError;

/// What the device cgroup allows.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub enum Devices {
    /// Everything: a privileged container.
    All,
    /// These, and nothing else.
    Only(Vec<DeviceRule>),
}

/// Kind of a device node.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum DeviceKind {
    /// Block.
    Block,
    /// Character.
    Character,
}

/// One allowance. `None` is any number.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub struct DeviceRule {
    /// Block or character.
    pub kind: DeviceKind,
    /// Major number.
    pub major: Option<u32>,
    /// Minor number.
    pub minor: Option<u32>,
    /// May make a node (mknod(2)).
    pub make: bool,
    /// May open for reading.
    pub read: bool,
    /// May open for writing.
    pub write: bool,
}

impl std::fmt::Display for DeviceRule {
    /// As `devices.allow` of cgroup v1 takes it: `c 1:3 rwm`.
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        let number = |number: Option<u32>| number.map_or_else(|| "*".to_owned(), |number| number.to_string());
        let kind = if self.kind == DeviceKind::Block { 'b' } else { 'c' };
        write!(out, "{kind} {}:{} ", number(self.major), number(self.minor))?;
        let letters = [(self.read, 'r'), (self.write, 'w'), (self.make, 'm')];
        letters.iter().filter(|(set, _)| *set).try_for_each(|(_, letter)| write!(out, "{letter}"))
    }
}

impl Devices {
    /// The same as a program for cgroup v2 (BPF_PROG_TYPE_CGROUP_DEVICE), `struct bpf_insn` one after the other; `None` when
    /// there is nothing to refuse.
    #[must_use]
    pub fn program(&self) -> Option<Vec<u8>> {
        // include/uapi/linux/bpf.h: opcodes, `struct bpf_cgroup_dev_ctx`, BPF_DEVCG_*.
        const LOAD: u8 = 0x61;
        const MOVE: u8 = 0xbf;
        const AND: u8 = 0x54;
        const SHIFT_RIGHT: u8 = 0x74;
        const IF_NOT: u8 = 0x55;
        const IF_NOT_REGISTER: u8 = 0x5d;
        const SET: u8 = 0xb7;
        const EXIT: u8 = 0x95;
        let Self::Only(rules) = self else { return None };
        let one = |code: u8, to: u8, from: u8, offset: i16, value: u32| {
            let ([a, b], [c, d, e, f]) = (offset.to_le_bytes(), value.to_le_bytes());
            [code, from << 4 | to, a, b, c, d, e, f]
        };
        // r2 = kind, r3 = access, r4 = major, r5 = minor.
        let mut code = vec![
            one(LOAD, 2, 1, 0, 0),
            one(MOVE, 3, 2, 0, 0),
            one(AND, 2, 0, 0, 0xffff),
            one(SHIFT_RIGHT, 3, 0, 0, 16),
            one(LOAD, 4, 1, 4, 0),
            one(LOAD, 5, 1, 8, 0),
        ];
        for rule in rules {
            let kind = if rule.kind == DeviceKind::Block { 1 } else { 2 };
            let access = u32::from(rule.make) | u32::from(rule.read) << 1 | u32::from(rule.write) << 2;
            // What each step tests; where it fails, the next rule is tried.
            let mut tests = vec![one(IF_NOT, 2, 0, 0, kind)];
            if access != 7 {
                tests.extend([one(MOVE, 1, 3, 0, 0), one(AND, 1, 0, 0, access), one(IF_NOT_REGISTER, 1, 3, 0, 0)]);
            }
            tests.extend(rule.major.map(|major| one(IF_NOT, 4, 0, 0, major)));
            tests.extend(rule.minor.map(|minor| one(IF_NOT, 5, 0, 0, minor)));
            let count = tests.len();
            for (at, mut test) in tests.into_iter().enumerate() {
                if matches!(test[0], IF_NOT | IF_NOT_REGISTER) {
                    // Over the tests that follow and the two of the verdict.
                    test[2] = u8::try_from(count - at - 1 + 2).unwrap_or(u8::MAX);
                }
                code.push(test);
            }
            code.extend([one(SET, 0, 0, 0, 1), one(EXIT, 0, 0, 0, 0)]);
        }
        code.extend([one(SET, 0, 0, 0, 0), one(EXIT, 0, 0, 0, 0)]);
        Some(code.concat())
    }
}

/// Nodes may be made (an unpacked archive holds some) but only these can be opened: null, zero, full, random, urandom, tty,
/// ptmx and the pseudo terminals.
fn everybodys() -> Vec<DeviceRule> {
    let any = |kind| DeviceRule { kind, major: None, minor: None, make: true, read: false, write: false };
    let one = |major, minor| DeviceRule {
        kind: DeviceKind::Character,
        major: Some(major),
        minor,
        make: true,
        read: true,
        write: true,
    };
    vec![
        any(DeviceKind::Character),
        any(DeviceKind::Block),
        one(1, Some(3)),
        one(1, Some(5)),
        one(1, Some(7)),
        one(1, Some(8)),
        one(1, Some(9)),
        one(5, Some(0)),
        one(5, Some(2)),
        one(136, None),
    ]
}

/// The spec's list, read in order: `deny` of everything clears what came before, an `allow` adds. Nothing is allowed that is
/// not named.
pub(crate) fn compile(rules: &[LinuxDeviceCgroup]) -> Result<Devices, CompileError> {
    let mut devices = Devices::Only(Vec::new());
    for rule in rules {
        let access = rule.access().clone().unwrap_or_else(|| "rwm".to_owned());
        if access.is_empty() || access.bytes().any(|letter| !b"rwm".contains(&letter)) {
            let field = "linux.resources.devices.access";
            return Err(CompileError::Invalid { field, value: access, reason: "is not made of `r`, `w` and `m`" });
        }
        let whole = access.contains('r') && access.contains('w') && access.contains('m');
        let (major, minor) = (number(rule.major())?, number(rule.minor())?);
        let kinds: &[DeviceKind] = match rule.typ() {
            None | Some(LinuxDeviceType::A) => &[DeviceKind::Block, DeviceKind::Character],
            Some(LinuxDeviceType::B) => &[DeviceKind::Block],
            Some(LinuxDeviceType::C | LinuxDeviceType::U) => &[DeviceKind::Character],
            Some(LinuxDeviceType::P) => {
                return Err(CompileError::Unsupported("linux.resources.devices.type `p`".to_owned()));
            }
        };
        let everything = kinds.len() == 2 && major.is_none() && minor.is_none() && whole;
        match (rule.allow(), everything) {
            (true, true) => devices = Devices::All,
            (false, true) => devices = Devices::Only(Vec::new()),
            (true, false) => {
                if let Devices::Only(list) = &mut devices {
                    list.extend(kinds.iter().map(|kind| DeviceRule {
                        kind: *kind,
                        major,
                        minor,
                        make: access.contains('m'),
                        read: access.contains('r'),
                        write: access.contains('w'),
                    }));
                }
            }
            (false, false) => {
                let what = "linux.resources.devices: denying less than everything";
                return Err(CompileError::Unsupported(what.to_owned()));
            }
        }
    }
    if let Devices::Only(list) = &mut devices {
        list.extend(everybodys());
    }
    Ok(devices)
}

/// -1 and nothing are any number.
fn number(number: Option<i64>) -> Result<Option<u32>, CompileError> {
    match number {
        None | Some(-1) => Ok(None),
        Some(number) => u32::try_from(number).map(Some).map_err(|_| CompileError::Invalid {
            field: "linux.resources.devices",
            value: number.to_string(),
            reason: "is not a device number",
        }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use serde_json::{Value, json};

    fn rules(value: Value) -> Result<Devices, CompileError> {
        compile(&serde_json::from_value::<Vec<LinuxDeviceCgroup>>(value).unwrap())
    }

    fn shown(devices: &Devices) -> Vec<String> {
        let Devices::Only(list) = devices else { panic!("{devices:?}") };
        list.iter().map(ToString::to_string).collect()
    }

    #[test]
    fn nothing_said_is_the_common_list() {
        let list = shown(&rules(json!([])).unwrap());
        assert_eq!(list.len(), 10);
        assert!(list.contains(&"c 1:3 rwm".to_owned()) && list.contains(&"b *:* m".to_owned()));
        assert_eq!(rules(json!([{"allow": false, "access": "rwm"}])), rules(json!([])));
    }

    #[test]
    fn allowances_add_and_denying_all_clears() {
        assert_eq!(rules(json!([{"allow": true, "access": "rwm"}])), Ok(Devices::All));
        let list = rules(json!([
            {"allow": true, "type": "b", "major": 8, "access": "r"},
            {"allow": false, "access": "rwm"},
            {"allow": true, "type": "c", "major": 10, "minor": 229, "access": "rw"},
        ]))
        .unwrap();
        assert_eq!(shown(&list)[0], "c 10:229 rw");
        assert!(!shown(&list).iter().any(|rule| rule.starts_with("b 8")));
    }

    #[test]
    fn the_rest_is_refused() {
        for bad in [
            json!([{"allow": false, "type": "c", "major": 1, "minor": 3, "access": "rwm"}]),
            json!([{"allow": true, "type": "c", "major": 1, "access": "x"}]),
            json!([{"allow": true, "type": "c", "major": -5, "access": "r"}]),
            json!([{"allow": true, "type": "p", "access": "r"}]),
        ] {
            assert!(rules(bad.clone()).is_err(), "{bad}");
        }
    }
}
