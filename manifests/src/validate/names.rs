//! The shapes of names: DNS labels and subdomains, label keys and values, port names, keys of a `ConfigMap`.

use serde_json::Value;

use super::Found;
use crate::problem::Reason;
use crate::view::text;

const LABEL_RULE: &str = "at most 63 lower-case letters, digits and `-`, with a letter or digit at both ends";
const SUBDOMAIN_RULE: &str =
    "at most 253 lower-case letters, digits, `-` and `.`, with a letter or digit at both ends of each part";
const KEY_RULE: &str =
    "an optional DNS prefix, `/`, and up to 63 letters, digits, `-`, `_`, `.`, with a letter or digit at both ends";
const VALUE_RULE: &str = "up to 63 letters, digits, `-`, `_`, `.`, with a letter or digit at both ends";
const PORT_RULE: &str = "at most 15 lower-case letters, digits and single `-`, with a letter among them";

/// RFC 1123 label: lower-case letters, digits, `-`, up to 63.
#[must_use]
pub fn is_label(name: &str) -> bool {
    name.len() <= 63 && is_part(name)
}

/// RFC 1123 subdomain: such parts joined by dots, up to 253 in all.
#[must_use]
pub fn is_subdomain(name: &str) -> bool {
    name.len() <= 253 && name.split('.').all(is_part)
}

fn is_part(part: &str) -> bool {
    let inner = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    let bytes = part.as_bytes();
    !bytes.is_empty()
        && bytes.iter().all(|byte| inner(*byte) || *byte == b'-')
        && inner(bytes[0])
        && inner(bytes[bytes.len() - 1])
}

/// The name part of a label key, and a label value: letters, digits, `-_.`, up to 63, alphanumeric at both ends.
fn is_qualified(name: &str) -> bool {
    let bytes = name.as_bytes();
    !bytes.is_empty()
        && bytes.len() <= 63
        && bytes.iter().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(byte))
        && bytes[0].is_ascii_alphanumeric()
        && bytes[bytes.len() - 1].is_ascii_alphanumeric()
}

/// A label key: `name` or `prefix/name`.
#[must_use]
pub fn is_label_key(key: &str) -> bool {
    match key.split_once('/') {
        Some((prefix, name)) => is_subdomain(prefix) && is_qualified(name),
        None => is_qualified(key),
    }
}

/// A label value; the empty one is one.
#[must_use]
pub fn is_label_value(value: &str) -> bool {
    value.is_empty() || is_qualified(value)
}

/// A port's name (IANA service name, RFC 6335).
#[must_use]
pub fn is_port_name(name: &str) -> bool {
    name.len() <= 15 && is_part(name) && !name.contains("--") && name.bytes().any(|byte| byte.is_ascii_lowercase())
}

/// A key of a `ConfigMap` or Secret.
#[must_use]
pub fn is_config_key(key: &str) -> bool {
    !key.is_empty()
        && key.len() <= 253
        && key != "."
        && !key.starts_with("..")
        && key.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"-_.".contains(&byte))
}

/// A variable's name: printable ASCII without `=` (upstream since v1.30).
#[must_use]
pub fn is_variable(name: &str) -> bool {
    !name.is_empty() && name.bytes().all(|byte| (0x20..0x7f).contains(&byte) && byte != b'=')
}

/// What a stranger wrote, cut to what a line holds.
pub(super) fn shown(text: &str) -> String {
    text.chars().take(80).collect()
}

impl Found {
    fn shape(&mut self, path: &str, value: &str, good: bool, what: &str, rule: &str) {
        if !good {
            self.add(path, Reason::Invalid, format!("`{}` is not {what}: {rule}", shown(value)), None);
        }
    }

    pub(super) fn label(&mut self, path: &str, value: &str, what: &str) {
        self.shape(path, value, is_label(value), what, LABEL_RULE);
    }

    /// Like `label`, but it begins with a letter (RFC 1035).
    pub(super) fn service_name(&mut self, path: &str, value: &str) {
        let good = is_label(value) && !value.starts_with(|char: char| char.is_ascii_digit());
        self.shape(
            path,
            value,
            good,
            "a name",
            "at most 63 lower-case letters, digits and `-`, first a letter, last a letter or digit",
        );
    }

    pub(super) fn subdomain(&mut self, path: &str, value: &str, what: &str) {
        self.shape(path, value, is_subdomain(value), what, SUBDOMAIN_RULE);
    }

    pub(super) fn port_name(&mut self, path: &str, value: &str) {
        self.shape(path, value, is_port_name(value), "a port name", PORT_RULE);
    }

    pub(super) fn variable(&mut self, path: &str, value: &str) {
        self.shape(path, value, is_variable(value), "a variable's name", "printable ASCII without `=`");
    }

    pub(super) fn config_key(&mut self, path: &str, value: &str) {
        self.shape(path, value, is_config_key(value), "a key", "up to 253 letters, digits, `-`, `_`, `.`");
    }

    pub(super) fn label_key(&mut self, path: &str, value: &str, what: &str) {
        self.shape(path, value, is_label_key(value), what, KEY_RULE);
    }

    pub(super) fn label_value(&mut self, path: &str, value: &str) {
        self.shape(path, value, is_label_value(value), "a label value", VALUE_RULE);
    }

    /// A map of labels.
    pub(super) fn labels(&mut self, map: &Value, path: &str) {
        for (key, value) in map.as_object().into_iter().flatten() {
            let at = format!("{path}.{}", shown(key));
            self.label_key(&at, key, "a label key");
            self.label_value(&at, text(value));
        }
    }

    /// A map of annotations: keys as those of labels, but for their case; 256 KiB in all.
    pub(super) fn annotations(&mut self, map: &Value, path: &str) {
        let mut size = 0;
        for (key, value) in map.as_object().into_iter().flatten() {
            size += key.len() + text(value).len();
            let at = format!("{path}.{}", shown(key));
            self.shape(&at, key, is_label_key(&key.to_ascii_lowercase()), "a key", KEY_RULE);
        }
        if size > 256 << 10 {
            self.add(
                path,
                Reason::TooLong,
                format!("the annotations have {size} bytes; at most 262144 are kept"),
                None,
            );
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn shapes() {
        let long = "a".repeat(64);
        for (name, label, subdomain, port) in [
            ("a", true, true, true),
            ("a-1", true, true, true),
            ("1", true, true, false),
            ("-a", false, false, false),
            ("a-", false, false, false),
            ("A", false, false, false),
            ("", false, false, false),
            ("a.b-c.d", false, true, false),
            ("a..b", false, false, false),
            ("a.", false, false, false),
            (&long, false, true, false),
            ("a--b", true, true, false),
            ("abcdefghijklmnop", true, true, false),
            ("ä", false, false, false),
        ] {
            assert_eq!((is_label(name), is_subdomain(name), is_port_name(name)), (label, subdomain, port), "{name}");
        }
        assert!(!is_subdomain(&"a".repeat(254)));
        for (key, good) in [
            ("app", true),
            ("a.b/c_D", true),
            ("/c", false),
            ("a/", false),
            ("a/b/c", false),
            ("A/b", false),
            ("_a", false),
        ] {
            assert_eq!(is_label_key(key), good, "{key}");
        }
        assert!(is_label_value("") && is_label_value("a.B_c") && !is_label_value(&long) && !is_label_value("a b"));
        assert!(
            is_config_key("a.B-c_")
                && is_config_key(".x")
                && !is_config_key("..x")
                && !is_config_key("a/b")
                && !is_config_key("")
        );
        assert!(
            is_variable("A b.c") && !is_variable("A=b") && !is_variable("") && !is_variable("é") && !is_variable("a\n")
        );
    }
}
