//! Text to trees: YAML as Kubernetes reads it and JSON, with positions, bounds and every duplicate key found.
//!
//! The parser gives events; scalars are resolved here, because what Kubernetes' own YAML library does is neither YAML 1.1 nor
//! 1.2: `0644` is octal, `yes` and `on` are booleans, and a date stays text.

use std::cell::RefCell;
use std::collections::HashMap;

use granit_parser::{Event, Marker, Parser, ScalarStyle, Span};
use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Number, Value};

use crate::problem::{Position, Problem, Reason};

/// The longest text that is read.
pub const MAX_BYTES: usize = 10 << 20;
/// The deepest nesting.
pub const MAX_DEPTH: usize = 100;
/// The most nodes a text may make, aliases expanded.
const MAX_NODES: usize = 500_000;

/// One object of a text.
#[derive(Debug, Clone)]
pub struct Document {
    /// The tree.
    pub value: Value,
    /// Where its fields stand.
    pub positions: Positions,
}

/// Where each field of a document stands: a key for a field of an object, the first character for an item of a list.
#[derive(Debug, Clone, Default)]
pub struct Positions {
    at: HashMap<String, Position>,
}

impl Positions {
    /// The position of a path such as `spec.ports[0].port`, or of its nearest parent that has one.
    #[must_use]
    pub fn at(&self, path: &str) -> Option<Position> {
        let mut path = path;
        loop {
            if let Some(found) = self.at.get(path) {
                return Some(*found);
            }
            if path.is_empty() {
                return None;
            }
            path = path.rfind(['.', '[']).map_or("", |at| &path[..at]);
        }
    }
}

/// Reads one or many YAML (or JSON) documents; empty ones are left out, a `List` is taken apart.
///
/// # Errors
/// All that is wrong with the text: syntax, duplicate keys, bounds; each with its position.
pub fn yaml(text: &str) -> Result<Vec<Document>, Vec<Problem>> {
    if text.len() > MAX_BYTES {
        let message = format!("the text has {} bytes; at most {MAX_BYTES} are read", text.len());
        return Err(vec![Problem::new("", Reason::TooLong, message)]);
    }
    let mut builder =
        Builder { parser: Parser::new_from_str(text), anchors: HashMap::new(), nodes: 0, problems: Vec::new() };
    let mut documents = Vec::new();
    loop {
        match builder.document() {
            Ok(Some(document)) if document.value.is_null() => {}
            Ok(Some(document)) => flatten(document, &mut documents),
            Ok(None) => break,
            Err(problem) => {
                builder.problems.push(*problem);
                break;
            }
        }
    }
    if builder.problems.is_empty() { Ok(documents) } else { Err(builder.problems) }
}

/// Takes `kind: List` apart.
fn flatten(document: Document, documents: &mut Vec<Document>) {
    let is_list = document.value["kind"] == "List" && document.value["items"].is_array();
    if !is_list {
        documents.push(document);
        return;
    }
    for (index, item) in document.value["items"].as_array().into_iter().flatten().enumerate() {
        let prefix = format!("items[{index}]");
        let mut at = HashMap::new();
        for (path, position) in &document.positions.at {
            if let Some(rest) = path.strip_prefix(&prefix)
                && (rest.is_empty() || rest.starts_with('.'))
            {
                at.insert(rest.trim_start_matches('.').to_owned(), *position);
            }
        }
        documents.push(Document { value: item.clone(), positions: Positions { at } });
    }
}

type Fallible<T> = Result<T, Box<Problem>>;

/// An anchored node as it was read, and how many nodes it is.
#[derive(Clone)]
struct Anchored {
    value: Value,
    nodes: usize,
}

struct Builder<'text> {
    parser: Parser<'text, granit_parser::StrInput<'text>>,
    anchors: HashMap<usize, Anchored>,
    nodes: usize,
    problems: Vec<Problem>,
}

fn position(mark: &Marker) -> Position {
    Position { line: mark.line(), column: mark.col() + 1 }
}

fn refuse(span: &Span, path: &str, reason: Reason, message: impl Into<String>) -> Box<Problem> {
    let mut problem = Problem::new(path, reason, message);
    problem.position = Some(position(&span.start));
    Box::new(problem)
}

impl<'text> Builder<'text> {
    fn next(&mut self) -> Fallible<(Event<'text>, Span)> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let mut problem = Problem::new("", Reason::Syntax, format!("this is not YAML: {error}"));
                problem.position = Some(position(error.marker()));
                Err(Box::new(problem))
            }
            None => Ok((Event::StreamEnd, Span::empty(Marker::new(0, 1, 0)))),
        }
    }

    fn document(&mut self) -> Fallible<Option<Document>> {
        loop {
            match self.next()? {
                (Event::StreamEnd, _) => return Ok(None),
                (Event::DocumentStart(..), _) => break,
                _ => {}
            }
        }
        self.anchors.clear();
        let mut positions = Positions::default();
        let (event, span) = self.next()?;
        let value = if matches!(event, Event::DocumentEnd) {
            Value::Null
        } else {
            self.node(event, span, "", 0, &mut positions)?
        };
        Ok(Some(Document { value, positions }))
    }

    fn count(&mut self, span: &Span, nodes: usize) -> Fallible<()> {
        self.nodes += nodes;
        if self.nodes > MAX_NODES {
            return Err(refuse(
                span,
                "",
                Reason::TooLong,
                format!("the text makes more than {MAX_NODES} values; its aliases may expand without end"),
            ));
        }
        Ok(())
    }

    fn node(
        &mut self,
        event: Event<'text>,
        span: Span,
        path: &str,
        depth: usize,
        positions: &mut Positions,
    ) -> Fallible<Value> {
        if depth > MAX_DEPTH {
            return Err(refuse(&span, "", Reason::TooLong, format!("the text nests deeper than {MAX_DEPTH} levels")));
        }
        let before = self.nodes;
        self.count(&span, 1)?;
        if path.is_empty() || path.ends_with(']') {
            positions.at.entry(path.to_owned()).or_insert_with(|| position(&span.start));
        }
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                let tag = tag.and_then(|tag| tag.core_suffix().map(ToOwned::to_owned));
                (
                    scalar(&text, style, tag.as_deref())
                        .map_err(|message| refuse(&span, path, Reason::Invalid, message))?,
                    anchor,
                )
            }
            Event::SequenceStart(_, anchor, _) => {
                let mut items = Vec::new();
                loop {
                    let (event, span) = self.next()?;
                    if matches!(event, Event::SequenceEnd) {
                        break;
                    }
                    let path = format!("{path}[{}]", items.len());
                    items.push(self.node(event, span, &path, depth + 1, positions)?);
                }
                (Value::Array(items), anchor)
            }
            Event::MappingStart(_, anchor, _) => (self.mapping(path, depth, positions)?, anchor),
            Event::Alias(id) => {
                let Some(anchored) = self.anchors.get(&id).cloned() else {
                    return Err(refuse(&span, path, Reason::Syntax, "an alias of something that is not finished"));
                };
                self.count(&span, anchored.nodes)?;
                return Ok(anchored.value);
            }
            _ => return Err(refuse(&span, path, Reason::Syntax, "this is not YAML that can be read here")),
        };
        if anchor > 0 {
            self.anchors.insert(anchor, Anchored { value: value.clone(), nodes: self.nodes - before });
        }
        Ok(value)
    }

    fn mapping(&mut self, path: &str, depth: usize, positions: &mut Positions) -> Fallible<Value> {
        let mut map = Map::new();
        let mut merged: Vec<Value> = Vec::new();
        let mut seen: HashMap<String, Position> = HashMap::new();
        loop {
            let (event, span) = self.next()?;
            let (key, plain) = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, style, ..) => (text.into_owned(), matches!(style, ScalarStyle::Plain)),
                _ => return Err(refuse(&span, path, Reason::Syntax, "a key must be a word")),
            };
            let here = position(&span.start);
            let child = crate::check::join(path, &key);
            let (event, value_span) = self.next()?;
            if key == "<<" && plain {
                match self.node(event, value_span, &child, depth + 1, positions)? {
                    Value::Array(items) => merged.extend(items),
                    value => merged.push(value),
                }
                continue;
            }
            positions.at.entry(child.clone()).or_insert(here);
            let value = self.node(event, value_span, &child, depth + 1, positions)?;
            if let Some(first) = seen.insert(key.clone(), here) {
                let mut problem = Problem::new(
                    child,
                    Reason::Duplicate,
                    format!("`{key}` is given twice, first in line {}", first.line),
                );
                problem.position = Some(here);
                self.problems.push(problem);
            }
            map.insert(key, value);
        }
        for value in merged {
            for (key, value) in value.as_object().into_iter().flatten() {
                map.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        Ok(Value::Object(map))
    }
}

/// A scalar as Kubernetes' YAML library resolves it.
fn scalar(text: &str, style: ScalarStyle, tag: Option<&str>) -> Result<Value, String> {
    if tag == Some("str") || (!matches!(style, ScalarStyle::Plain) && tag.is_none()) {
        return Ok(Value::String(text.to_owned()));
    }
    match text {
        "" | "~" | "null" | "Null" | "NULL" => return Ok(Value::Null),
        "true" | "True" | "TRUE" | "yes" | "Yes" | "YES" | "on" | "On" | "ON" => return Ok(Value::Bool(true)),
        "false" | "False" | "FALSE" | "no" | "No" | "NO" | "off" | "Off" | "OFF" => return Ok(Value::Bool(false)),
        ".inf" | ".Inf" | ".INF" | "+.inf" | "-.inf" | "-.Inf" | "-.INF" | ".nan" | ".NaN" | ".NAN" => {
            return Err(format!("`{text}` is not a number that can be stored"));
        }
        _ => {}
    }
    if let Some(number) = number(text) {
        return Ok(Value::Number(number));
    }
    match tag {
        Some("int" | "float" | "bool") => Err(format!("`{text}` is not a {}", tag.unwrap_or_default())),
        _ => Ok(Value::String(text.to_owned())),
    }
}

fn number(text: &str) -> Option<Number> {
    let first = text.bytes().next()?;
    if !(first.is_ascii_digit() || matches!(first, b'-' | b'+' | b'.')) {
        return None;
    }
    let plain: String = text.chars().filter(|char| *char != '_').collect();
    let (negative, digits) = match plain.as_bytes()[0] {
        b'-' => (true, &plain[1..]),
        b'+' => (false, &plain[1..]),
        _ => (false, plain.as_str()),
    };
    let radix = |digits: &str, radix| {
        let value = u64::from_str_radix(digits, radix).ok()?;
        if negative { i64::try_from(value).ok().map(|value| Number::from(-value)) } else { Some(Number::from(value)) }
    };
    if digits.starts_with(['+', '-']) {
        return None;
    }
    for (prefix, base) in [("0x", 16), ("0o", 8), ("0b", 2)] {
        if let Some(rest) = digits.strip_prefix(prefix) {
            return radix(rest, base);
        }
    }
    if digits.len() > 1 && digits.starts_with('0') && digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return radix(&digits[1..], 8).or_else(|| digits.parse::<f64>().ok().and_then(Number::from_f64));
    }
    if digits.bytes().all(|byte| byte.is_ascii_digit()) {
        return plain
            .trim_start_matches('+')
            .parse::<i64>()
            .map(Number::from)
            .ok()
            .or_else(|| digits.parse::<u64>().map(Number::from).ok());
    }
    let float = digits.bytes().all(|byte| byte.is_ascii_digit() || matches!(byte, b'.' | b'e' | b'E' | b'+' | b'-'))
        && digits.bytes().any(|byte| byte.is_ascii_digit());
    if float { plain.parse::<f64>().ok().and_then(Number::from_f64) } else { None }
}

/// A JSON text and the keys it gives twice.
#[derive(Debug, Clone)]
pub struct Decoded {
    /// The tree; of a duplicate key the last value.
    pub value: Value,
    /// The duplicates.
    pub problems: Vec<Problem>,
}

/// Reads one JSON document.
///
/// # Errors
/// Not JSON, too long, nested too deeply.
pub fn json(bytes: &[u8]) -> Result<Decoded, Problem> {
    if bytes.len() > MAX_BYTES {
        return Err(Problem::new(
            "",
            Reason::TooLong,
            format!("the text has {} bytes; at most {MAX_BYTES} are read", bytes.len()),
        ));
    }
    let problems = RefCell::new(Vec::new());
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed { path: String::new(), problems: &problems };
    let value =
        seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value)).map_err(|error| {
            let mut problem = Problem::new("", Reason::Syntax, format!("this is not JSON: {error}"));
            problem.position = Some(Position { line: error.line(), column: error.column() });
            problem
        })?;
    Ok(Decoded { value, problems: problems.into_inner() })
}

struct Seed<'a> {
    path: String,
    problems: &'a RefCell<Vec<Problem>>,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        deserializer.deserialize_any(self)
    }
}

impl<'de> Visitor<'de> for Seed<'_> {
    type Value = Value;

    fn expecting(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.write_str("a JSON value")
    }

    fn visit_bool<E>(self, value: bool) -> Result<Value, E> {
        Ok(Value::Bool(value))
    }

    fn visit_i64<E>(self, value: i64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_u64<E>(self, value: u64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_f64<E>(self, value: f64) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_str<E>(self, value: &str) -> Result<Value, E> {
        Ok(value.into())
    }

    fn visit_unit<E>(self) -> Result<Value, E> {
        Ok(Value::Null)
    }

    fn visit_seq<A: SeqAccess<'de>>(self, mut seq: A) -> Result<Value, A::Error> {
        let mut items = Vec::new();
        loop {
            let path = format!("{}[{}]", self.path, items.len());
            match seq.next_element_seed(Seed { path, problems: self.problems })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let path = crate::check::join(&self.path, &key);
            let value = map.next_value_seed(Seed { path: path.clone(), problems: self.problems })?;
            if object.insert(key.clone(), value).is_some() {
                self.problems.borrow_mut().push(Problem::new(
                    path,
                    Reason::Duplicate,
                    format!("`{key}` is given twice"),
                ));
            }
        }
        Ok(Value::Object(object))
    }
}

/// A tree as YAML: blocks, two spaces, keys in the tree's order, text quoted where it would read as something else.
#[must_use]
pub fn to_yaml(value: &Value) -> String {
    let mut out = String::new();
    write_block(value, 0, &mut out);
    out
}

fn write_block(value: &Value, indent: usize, out: &mut String) {
    let pad = " ".repeat(indent);
    match value {
        Value::Object(map) if !map.is_empty() => {
            for (key, value) in map {
                out.push_str(&pad);
                out.push_str(&plain_or_quoted(key));
                out.push(':');
                write_value(value, indent, out);
            }
        }
        Value::Array(items) if !items.is_empty() => {
            for item in items {
                out.push_str(&pad);
                out.push('-');
                match item {
                    Value::Object(map) if !map.is_empty() => {
                        let mut inner = String::new();
                        write_block(item, indent + 2, &mut inner);
                        out.push(' ');
                        out.push_str(inner.trim_start());
                    }
                    Value::Array(inner) if !inner.is_empty() => {
                        out.push('\n');
                        write_block(item, indent + 2, out);
                    }
                    _ => write_value(item, indent, out),
                }
            }
        }
        _ => {
            out.push_str(&pad);
            out.push_str(&inline(value, indent));
            out.push('\n');
        }
    }
}

fn write_value(value: &Value, indent: usize, out: &mut String) {
    match value {
        Value::Object(map) if !map.is_empty() => {
            out.push('\n');
            write_block(value, indent + 2, out);
        }
        Value::Array(items) if !items.is_empty() => {
            out.push('\n');
            write_block(value, indent, out);
        }
        _ => {
            out.push(' ');
            out.push_str(&inline(value, indent));
            out.push('\n');
        }
    }
}

fn inline(value: &Value, indent: usize) -> String {
    match value {
        Value::Object(_) => "{}".to_owned(),
        Value::Array(_) => "[]".to_owned(),
        Value::String(text) => {
            let block = text.contains('\n')
                && !text.starts_with([' ', '\n'])
                && text.chars().all(|char| char == '\n' || char == '\t' || !char.is_control())
                && !text.lines().any(|line| line.ends_with(' '));
            if !block {
                return plain_or_quoted(text);
            }
            let keep = if !text.ends_with('\n') {
                "-"
            } else if text.ends_with("\n\n") {
                "+"
            } else {
                ""
            };
            let pad = " ".repeat(indent + 2);
            let lines: Vec<String> = text
                .strip_suffix('\n')
                .unwrap_or(text)
                .split('\n')
                .map(|line| if line.is_empty() { String::new() } else { format!("{pad}{line}") })
                .collect();
            format!("|{keep}\n{}", lines.join("\n"))
        }
        other => other.to_string(),
    }
}

fn plain_or_quoted(text: &str) -> String {
    let special = text.is_empty()
        || text.starts_with(|char: char| char.is_whitespace() || "-?:,[]{}#&*!|>'\"%@`=<~".contains(char))
        || text.ends_with(char::is_whitespace)
        || text.ends_with(':')
        || text.contains(": ")
        || text.contains(" #")
        || text.chars().any(|char| char.is_control() || char == '\u{feff}')
        || !matches!(scalar(text, ScalarStyle::Plain, None), Ok(Value::String(_)));
    if special { Value::String(text.to_owned()).to_string() } else { text.to_owned() }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn one(text: &str) -> Value {
        yaml(text).unwrap().remove(0).value
    }

    #[test]
    fn scalars_are_read_as_kubernetes_reads_them() {
        let value = one(
            "a: 0644\nb: yes\nc: \"yes\"\nd: 1.5\ne: 2026-11-26\nf: ~\ng: 0x10\nh: 1_000\ni: '5'\nj: 08\nk: !!str 5\nl: 1.2.3.4\nm: -5\nn: 1e3\no: 10.42.0.0/16\n",
        );
        assert_eq!(value["a"], 420);
        assert_eq!((&value["b"], &value["c"]), (&json!(true), &json!("yes")));
        assert_eq!((&value["d"], &value["e"], &value["f"]), (&json!(1.5), &json!("2026-11-26"), &Value::Null));
        assert_eq!(
            (&value["g"], &value["h"], &value["i"], &value["k"]),
            (&json!(16), &json!(1000), &json!("5"), &json!("5"))
        );
        assert_eq!(
            (&value["l"], &value["m"], &value["n"], &value["o"]),
            (&json!("1.2.3.4"), &json!(-5), &json!(1000.0), &json!("10.42.0.0/16"))
        );
    }

    #[test]
    fn duplicates_bombs_depth_and_syntax_are_refused_with_a_place() {
        let found = yaml("a: 1\nb:\n  c: 1\n  c: 2\na: 3\n").unwrap_err();
        assert_eq!(found.len(), 2);
        assert_eq!((found[0].path.as_str(), found[0].position), ("b.c", Some(Position { line: 4, column: 3 })));
        let mut bomb = String::from("a0: &a0 [x,x,x,x,x,x,x,x,x,x]\n");
        for level in 1..12 {
            let list = vec![format!("*a{}", level - 1); 10].join(",");
            bomb.push_str(&format!("a{level}: &a{level} [{list}]\n"));
        }
        assert!(yaml(&bomb).unwrap_err()[0].message.contains("aliases"));
        assert!(yaml(&"[".repeat(5000)).is_err());
        assert!(yaml(&("[".repeat(200) + &"]".repeat(200))).unwrap_err()[0].message.contains("deeper"));
        assert!(yaml(&" ".repeat(MAX_BYTES + 1)).is_err());
        let syntax = yaml("a: b\n  c: d\n").unwrap_err();
        assert_eq!((syntax[0].reason, syntax[0].position.unwrap().line), (Reason::Syntax, 2));
    }

    #[test]
    fn documents_lists_anchors_and_positions() {
        let documents = yaml("---\n# nothing\n---\nkind: A\n---\nkind: List\nitems:\n- kind: B\n  spec:\n    ports:\n    - port: 1\n- kind: C\n").unwrap();
        let kinds: Vec<_> = documents.iter().map(|document| document.value["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
        assert_eq!(documents[1].positions.at("spec.ports[0].port"), Some(Position { line: 11, column: 7 }));
        assert_eq!(documents[1].positions.at("spec.ports[0].nothing"), Some(Position { line: 11, column: 7 }));
        let merged = one("base: &b {a: 1, c: 2}\nx:\n  <<: *b\n  a: 5\n");
        assert_eq!(merged["x"], json!({"a": 5, "c": 2}));
    }

    #[test]
    fn json_duplicates_have_paths() {
        let decoded = json(br#"{"a":[{"b":1,"b":2}]}"#).unwrap();
        assert_eq!((decoded.value["a"][0]["b"].clone(), decoded.problems[0].path.as_str()), (json!(2), "a[0].b"));
        assert!(json(b"{\"a\":1} x").is_err());
        assert!(json("[".repeat(10_000).as_bytes()).is_err());
    }

    #[test]
    fn yaml_out_reads_back() {
        let value = json!({"a": "yes", "b": "text: with colon", "c": [1, {"d": [], "e": {}}, ["x"]], "f": "line\nline\n", "g": "", "h": null, "i": "0644", "j": "- x", "k": "a\n\n", "l": " lead\nx"});
        assert_eq!(one(&to_yaml(&value)), value, "{}", to_yaml(&value));
    }

    fn tree() -> impl Strategy<Value = Value> {
        let leaf = prop_oneof![
            any::<bool>().prop_map(Value::from),
            any::<i64>().prop_map(Value::from),
            "[ -~\\n]{0,12}".prop_map(Value::from)
        ];
        leaf.prop_recursive(4, 24, 4, |inner| {
            prop_oneof![
                prop::collection::vec(inner.clone(), 0..4).prop_map(Value::from),
                prop::collection::btree_map("[a-z:# -]{0,6}", inner, 0..4)
                    .prop_map(|map| Value::Object(map.into_iter().collect())),
            ]
        })
    }

    proptest! {
        #[test]
        fn any_tree_survives_yaml(value in tree()) {
            let value = json!({"v": value});
            prop_assert_eq!(one(&to_yaml(&value)), value);
        }

        #[test]
        fn no_text_panics(text in "[ -~\\n\\t]{0,200}") {
            let _ = yaml(&text);
            let _ = json(text.as_bytes());
        }
    }
}
