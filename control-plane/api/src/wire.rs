//! Protobuf request bodies, as typed Go clients from 1.32 on send them: read into trees by one table of field numbers
//! (`wire.txt`) and the table of fields, no message of its own for any kind. Answers stay JSON, which such clients read too.
//!
//! The messages always spell out fields that are no pointers, also when nothing was said: such zeros are left out here, as their
//! JSON would leave them out.

use std::collections::HashMap;
use std::sync::LazyLock;

use base64::Engine as _;
use coracle_manifests::kinds;
use coracle_manifests::schema::{self, Type};
use coracle_manifests::time;
use serde_json::{Map, Value, json};

/// What every body begins with; an `Unknown` message follows.
const MAGIC: &[u8] = b"k8s\0";
/// Messages within messages. The deepest of our kinds has about fifteen.
const MAX_DEPTH: usize = 32;
/// Values in one body: an element of a few bytes must not grow into hundreds of bytes of tree without a bound.
const MAX_VALUES: usize = 500_000;
/// Stands for a value that the table of fields gives no type to, so that the field is refused by its name.
const OPAQUE: &str = "(protobuf)";

/// A field of a message.
struct Entry {
    name: String,
    number: u64,
    pointer: bool,
    inline: bool,
    /// For types that the table of fields does not have.
    typ: Option<Type>,
}

static TABLE: LazyLock<HashMap<&'static str, Vec<Entry>>> = LazyLock::new(|| {
    let mut table: HashMap<&str, Vec<Entry>> = HashMap::new();
    let mut current = "";
    for line in include_str!("wire.txt").lines().filter(|line| !line.starts_with('#')) {
        let mut words = line.split_whitespace();
        if !line.starts_with(' ') {
            current = words.next().unwrap_or_default();
        }
        table.entry(current).or_default().extend(words.filter_map(entry));
    }
    table
});

fn entry(word: &str) -> Option<Entry> {
    let (name, rest) = word.split_once('=')?;
    let (number, typ) = rest.split_once(':').map_or((rest, None), |(number, typ)| (number, Some(typ)));
    Some(Entry {
        name: name.trim_start_matches('*').to_owned(),
        number: number.trim_end_matches('?').parse().ok()?,
        pointer: number.ends_with('?'),
        inline: name.starts_with('*'),
        typ: typ.map(|typ| match typ {
            "str" => Type::Str,
            "long" => Type::Long,
            "bool" => Type::Bool,
            "[str]" => Type::List(Box::new(Type::Str)),
            named => Type::Named(named.to_owned()),
        }),
    })
}

/// Reads a body into a tree with `apiVersion` and `kind`.
///
/// # Errors
/// In words: not such a body, a kind that is not known, a message that breaks off or nests too deeply.
pub(crate) fn decode(bytes: &[u8]) -> Result<Value, String> {
    let envelope = bytes.strip_prefix(MAGIC).ok_or("the body does not begin like a protobuf body of Kubernetes")?;
    let (mut api_version, mut kind, mut raw) = (String::new(), String::new(), &[][..]);
    let mut reader = Reader(envelope);
    while let Some((number, content)) = reader.next()? {
        match (number, content) {
            (1, Raw::Bytes(meta)) => {
                let mut meta = Reader(meta);
                while let Some((number, content)) = meta.next()? {
                    match (number, content) {
                        (1, Raw::Bytes(bytes)) => api_version = utf8(bytes)?,
                        (2, Raw::Bytes(bytes)) => kind = utf8(bytes)?,
                        _ => {}
                    }
                }
            }
            (2, Raw::Bytes(bytes)) => raw = bytes,
            (3, Raw::Bytes(encoding)) if !encoding.is_empty() => {
                return Err("encoded protobuf bodies are not supported".into());
            }
            _ => {}
        }
    }
    let plain = ["Binding", "DeleteOptions", "Scale"].contains(&kind.as_str())
        || crate::reviews::REVIEWS.iter().any(|(_, _, review, _)| *review == kind);
    if !plain && kinds::by_name(&api_version, &kind).is_none() {
        return Err(format!("a {api_version} {kind} is not known here"));
    }
    let mut message = Message { left: MAX_VALUES };
    let mut tree = message.object(&kind, &kind, raw, 0)?;
    tree.insert("apiVersion".into(), json!(api_version));
    tree.insert("kind".into(), json!(kind));
    Ok(Value::Object(tree))
}

/// One value as it stands in a message.
enum Raw<'a> {
    Number(u64),
    Bytes(&'a [u8]),
}

/// What is left of a message.
struct Reader<'a>(&'a [u8]);

impl<'a> Reader<'a> {
    fn next(&mut self) -> Result<Option<(u64, Raw<'a>)>, String> {
        if self.0.is_empty() {
            return Ok(None);
        }
        let tag = self.varint()?;
        let raw = match tag & 7 {
            0 => Raw::Number(self.varint()?),
            1 => Raw::Number(self.fixed(8)?),
            2 => {
                let length = usize::try_from(self.varint()?).map_err(|_| BROKEN)?;
                Raw::Bytes(self.take(length)?)
            }
            5 => Raw::Number(self.fixed(4)?),
            _ => return Err("groups are not supported in a protobuf body".into()),
        };
        Ok(Some((tag >> 3, raw)))
    }

    fn take(&mut self, length: usize) -> Result<&'a [u8], String> {
        let (taken, rest) = self.0.split_at_checked(length).ok_or(BROKEN)?;
        self.0 = rest;
        Ok(taken)
    }

    fn fixed(&mut self, length: usize) -> Result<u64, String> {
        Ok(self.take(length)?.iter().rev().fold(0, |value, byte| value << 8 | u64::from(*byte)))
    }

    fn varint(&mut self) -> Result<u64, String> {
        let mut value = 0_u64;
        for shift in (0..70).step_by(7) {
            let byte = self.take(1)?[0];
            value |= u64::from(byte & 0x7f).checked_shl(shift).unwrap_or(0);
            if byte & 0x80 == 0 {
                return Ok(value);
            }
        }
        Err(BROKEN.into())
    }
}

const BROKEN: &str = "the protobuf body is broken";

fn utf8(bytes: &[u8]) -> Result<String, String> {
    String::from_utf8(bytes.to_vec()).map_err(|_| "a text of the protobuf body is not UTF-8".into())
}

/// A body being read.
struct Message {
    left: usize,
}

impl Message {
    /// Reads a message of type `name`, whose fields have the types of the fields of `outer`.
    fn object(&mut self, name: &str, outer: &str, bytes: &[u8], depth: usize) -> Result<Map<String, Value>, String> {
        if depth > MAX_DEPTH {
            return Err("the protobuf body nests too deeply".into());
        }
        let entries = TABLE.get(name).map_or(&[][..], Vec::as_slice);
        let mut object = Map::new();
        let mut reader = Reader(bytes);
        while let Some((number, raw)) = reader.next()? {
            self.left = self.left.checked_sub(1).ok_or("the protobuf body has too many values")?;
            let Some(entry) = entries.iter().find(|entry| entry.number == number) else {
                // A review asks of things the answer does not look at.
                if name.ends_with("Review") {
                    continue;
                }
                return Err(format!(
                    "field {number} of a {name} is not known here; the client may be newer than this server"
                ));
            };
            if entry.inline {
                let Raw::Bytes(bytes) = raw else { return Err(BROKEN.into()) };
                object.extend(self.object(&entry.name, outer, bytes, depth + 1)?);
                continue;
            }
            let known = schema::field(outer, &entry.name).map(|field| &field.typ);
            let Some(typ) = entry.typ.as_ref().or(known) else {
                if !matches!(raw, Raw::Number(0) | Raw::Bytes(b"")) || entry.pointer {
                    object.insert(entry.name.clone(), json!(OPAQUE));
                }
                continue;
            };
            self.put(&mut object, entry, typ, raw, depth)?;
        }
        Ok(object)
    }

    fn put(
        &mut self,
        object: &mut Map<String, Value>,
        entry: &Entry,
        typ: &Type,
        raw: Raw<'_>,
        depth: usize,
    ) -> Result<(), String> {
        let name = || entry.name.clone();
        match typ {
            Type::List(inner) => {
                let Value::Array(items) = object.entry(name()).or_insert_with(|| json!([])) else { return Ok(()) };
                match (&**inner, raw) {
                    // Packed numbers.
                    (Type::Int | Type::Long, Raw::Bytes(bytes)) => {
                        let mut reader = Reader(bytes);
                        while !reader.0.is_empty() {
                            self.left = self.left.checked_sub(1).ok_or("the protobuf body has too many values")?;
                            items.push(json!(reader.varint()?.cast_signed()));
                        }
                    }
                    (inner, raw) => items.push(self.value(inner, raw, depth)?),
                }
            }
            Type::Map(inner) => {
                let Raw::Bytes(bytes) = raw else { return Err(BROKEN.into()) };
                let (mut key, mut value) = (String::new(), None);
                let mut reader = Reader(bytes);
                while let Some((number, raw)) = reader.next()? {
                    match (number, raw) {
                        (1, Raw::Bytes(bytes)) => key = utf8(bytes)?,
                        (2, raw) => value = Some(self.value(inner, raw, depth)?),
                        _ => {}
                    }
                }
                if let Value::Object(map) = object.entry(name()).or_insert_with(|| json!({})) {
                    map.insert(key, value.unwrap_or_else(|| json!("")));
                }
            }
            typ => {
                let value = self.value(typ, raw, depth)?;
                if entry.pointer && !value.is_null() || !says_nothing(&value) {
                    object.insert(name(), value);
                } else {
                    object.remove(&entry.name);
                }
            }
        }
        Ok(())
    }

    fn value(&mut self, typ: &Type, raw: Raw<'_>, depth: usize) -> Result<Value, String> {
        Ok(match (typ, raw) {
            (Type::Int | Type::Long, Raw::Number(number)) => json!(number.cast_signed()),
            (Type::Bool, Raw::Number(number)) => json!(number != 0),
            (Type::Str, Raw::Bytes(bytes)) => json!(utf8(bytes)?),
            (Type::Base64, Raw::Bytes(bytes)) => json!(base64::engine::general_purpose::STANDARD.encode(bytes)),
            (Type::Any, _) => json!(OPAQUE),
            (Type::Named(name), Raw::Bytes(bytes)) => Value::Object(self.object(name, name, bytes, depth + 1)?),
            (Type::Quantity, Raw::Bytes(bytes)) => {
                let mut text = String::new();
                let mut reader = Reader(bytes);
                while let Some((number, raw)) = reader.next()? {
                    if let (1, Raw::Bytes(bytes)) = (number, raw) {
                        text = utf8(bytes)?;
                    }
                }
                json!(text)
            }
            (Type::IntOrStr, Raw::Bytes(bytes)) => {
                let (mut is_text, mut number, mut text) = (false, 0, String::new());
                let mut reader = Reader(bytes);
                while let Some((field, raw)) = reader.next()? {
                    match (field, raw) {
                        (1, Raw::Number(kind)) => is_text = kind == 1,
                        (2, Raw::Number(value)) => number = value.cast_signed(),
                        (3, Raw::Bytes(bytes)) => text = utf8(bytes)?,
                        _ => {}
                    }
                }
                if is_text { json!(text) } else { json!(number) }
            }
            (Type::Time, Raw::Bytes(bytes)) => {
                let (mut seconds, mut nanos) = (0, 0);
                let mut reader = Reader(bytes);
                while let Some((field, raw)) = reader.next()? {
                    match (field, raw) {
                        (1, Raw::Number(value)) => seconds = value,
                        (2, Raw::Number(value)) => nanos = value,
                        _ => {}
                    }
                }
                match seconds.checked_mul(1000).and_then(|ms| ms.checked_add(nanos / 1_000_000)) {
                    Some(0) => Value::Null,
                    Some(ms) if nanos == 0 => json!(time::rfc3339(ms)),
                    Some(ms) => json!(time::rfc3339_micros(ms)),
                    None => return Err("a time of the protobuf body is out of range".into()),
                }
            }
            _ => return Err(BROKEN.into()),
        })
    }
}

/// A value that JSON would leave out.
fn says_nothing(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Bool(set) => !set,
        Value::Number(number) => number.as_i64() == Some(0),
        Value::String(text) => text.is_empty(),
        Value::Object(map) => map.is_empty(),
        Value::Array(_) => false,
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn bytes(number: u64, content: &[u8]) -> Vec<u8> {
        let mut all = Vec::new();
        for mut rest in [number << 3 | 2, content.len() as u64] {
            while rest >= 0x80 {
                all.push(u8::try_from(rest & 0x7f).unwrap() | 0x80);
                rest >>= 7;
            }
            all.push(u8::try_from(rest).unwrap());
        }
        all.extend_from_slice(content);
        all
    }

    fn body(api_version: &str, kind: &str, raw: &[u8]) -> Vec<u8> {
        let meta = [bytes(1, api_version.as_bytes()), bytes(2, kind.as_bytes())].concat();
        [MAGIC.to_vec(), bytes(1, &meta), bytes(2, raw), bytes(3, b""), bytes(4, b"")].concat()
    }

    #[test]
    fn zeros_are_kept_where_they_are_said() {
        // spec{replicas: 0, selector: {}, minReadySeconds: 0, paused: false}, metadata{name: "a", namespace: "", creationTimestamp: {}}
        let spec = [vec![0x08, 0x00], bytes(2, b""), vec![0x28, 0x00], vec![0x38, 0x00]].concat();
        let meta = [bytes(1, b"a"), bytes(3, b""), bytes(8, b"")].concat();
        let raw = [bytes(1, &meta), bytes(2, &spec), bytes(3, b"")].concat();
        let tree = decode(&body("apps/v1", "Deployment", &raw)).unwrap();
        assert_eq!(
            tree,
            json!({"apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": "a"}, "spec": {"replicas": 0, "selector": {}}})
        );
    }

    #[test]
    fn inline_messages_maps_and_bytes() {
        let entry = [bytes(1, b"k"), bytes(2, b"\0\xff")].concat();
        let tree = decode(&body("v1", "Secret", &[bytes(2, &entry), bytes(3, b"Opaque")].concat())).unwrap();
        assert_eq!((&tree["data"]["k"], &tree["type"]), (&json!("AP8="), &json!("Opaque")));
        // A volume's source, and the reference within it, stand inline.
        let projected = bytes(19, &[bytes(1, &bytes(1, b"settings")), vec![0x20, 0x00]].concat());
        let volume = [bytes(1, b"v"), bytes(2, &projected)].concat();
        let tree = decode(&body("v1", "Pod", &bytes(2, &bytes(1, &volume)))).unwrap();
        assert_eq!(
            tree["spec"]["volumes"],
            json!([{"name": "v", "configMap": {"name": "settings", "optional": false}}])
        );
    }

    #[test]
    fn what_is_broken_or_not_known_is_refused() {
        assert!(decode(b"{}").unwrap_err().contains("does not begin"));
        assert!(decode(&body("batch/v1", "Job", b"")).unwrap_err().contains("batch/v1 Job is not known"));
        assert!(decode(&body("v1", "Pod", &[0xfa, 0x3f, 0x00])).unwrap_err().contains("is not known here"));
        assert!(decode(&body("v1", "ConfigMap", &[0x0a, 0x7f])).unwrap_err().contains("broken"));
        assert!(decode(&body("v1", "ConfigMap", &bytes(1, &bytes(1, b"\xff")))).unwrap_err().contains("UTF-8"));
        let whole = body("v1", "ConfigMap", &bytes(1, &bytes(1, b"abc")));
        for end in 0..whole.len() - 4 {
            let _ = decode(&whole[..end]);
        }
        // Messages in messages, and an element of two bytes that becomes a value each time.
        let mut deep = Vec::new();
        for _ in 0..2000 {
            deep = bytes(1, &deep);
        }
        assert!(decode(&body("v1", "Pod", &deep)).is_err());
        let many = bytes(1, &bytes(14, b"").repeat(MAX_VALUES + 1));
        assert!(decode(&body("v1", "Pod", &many)).unwrap_err().contains("too many values"));
    }

    #[test]
    fn no_bytes_make_it_fall() {
        let mut seed = 0x9e37_79b9_7f4a_7c15_u64;
        let mut random = move || {
            seed ^= seed << 13;
            seed ^= seed >> 7;
            seed ^= seed << 17;
            seed >> 33
        };
        let volume = [bytes(1, b"v"), bytes(2, &bytes(19, &bytes(1, &bytes(1, b"settings"))))].concat();
        let container = [bytes(1, b"c"), bytes(10, &bytes(1, &bytes(2, &bytes(2, &[0x10, 0x50]))))].concat();
        let pod = body("v1", "Pod", &bytes(2, &[bytes(1, &volume), bytes(2, &container)].concat()));
        assert!(decode(&pod).is_ok());
        for _ in 0..50_000 {
            let mut odd = pod.clone();
            for _ in 0..=random() % 3 {
                let at = usize::try_from(random()).unwrap() % odd.len();
                odd[at] = u8::try_from(random() % 256).unwrap();
            }
            let _ = decode(&odd);
        }
    }

    #[test]
    fn every_type_of_the_table_of_fields_has_numbers() {
        for name in schema::types() {
            let entries = TABLE.get(name).unwrap_or_else(|| panic!("{name} has no numbers"));
            let mut names: Vec<&str> = Vec::new();
            let mut todo: Vec<&Entry> = entries.iter().collect();
            while let Some(entry) = todo.pop() {
                if entry.inline {
                    todo.extend(&TABLE[entry.name.as_str()]);
                } else {
                    names.push(&entry.name);
                }
            }
            for field in schema::fields(name).unwrap() {
                let of_envelope = ["apiVersion", "kind"].contains(&field.name.as_str());
                let known = names.contains(&field.name.as_str());
                // Newer than the newest client that was looked at.
                let open = (name, field.name.as_str()) == ("PodSpec", "workloadRef");
                assert!(known || of_envelope || open, "{name}.{} has no number", field.name);
            }
        }
    }
}
