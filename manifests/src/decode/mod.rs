//! Text to trees: YAML as Kubernetes reads it and JSON, with positions, bounds and every duplicate key found.
//!
//! The parser gives events; scalars are resolved by `scalar`, because what Kubernetes' own YAML library does is neither YAML 1.1 nor
//! 1.2: `0644` is octal, `yes` and `on` are booleans, and a date stays text.

mod json;
mod scalar;
mod write;

use std::borrow::Cow;
use std::collections::HashMap;

use granit_parser::{Event, Marker, Parser, ScalarStyle, Span, Tag};
use serde_json::{Map, Value};

pub use json::{Decoded, json};
pub use write::to_yaml;

use crate::problem::{MOST_PROBLEMS, Position, Problem, Reason};
use scalar::scalar;

/// The longest text that is read.
pub const MAX_BYTES: usize = 10 << 20;
/// The deepest nesting.
pub const MAX_DEPTH: usize = 100;
/// The most nodes a text may make, aliases expanded.
const MAX_NODES: usize = 500_000;
/// The most bytes of text that aliases may repeat.
const MAX_REPEATED: usize = 2 * MAX_BYTES;
/// The longest key (YAML itself ends a plain key's line at 1,024).
const MAX_KEY: usize = 1024;

/// One object of a text.
#[derive(Debug, Clone)]
pub struct Document {
    /// The tree.
    pub value: Value,
    /// Where its fields stand.
    pub positions: Positions,
}

/// Where each field of a document stands: the key for a field of an object, the first character for an item of a list.
#[derive(Debug, Clone, Default)]
pub struct Positions {
    root: Place,
}

/// A node of the text: a tree beside the value's, so that its size is bounded by the text's and no path is stored.
#[derive(Debug, Clone, Default)]
struct Place {
    at: Option<Position>,
    fields: Vec<(String, Place)>,
    items: Vec<Place>,
}

impl Positions {
    /// The position of a path such as `spec.ports[0].port`, or of its nearest parent that has one.
    #[must_use]
    pub fn at(&self, path: &str) -> Option<Position> {
        let (mut place, mut rest) = (&self.root, path);
        let mut found = place.at;
        while let Some((next, tail)) = place.step(rest) {
            (place, rest) = (next, tail);
            found = place.at.or(found);
        }
        found
    }
}

impl Place {
    /// The child a path begins with, and the rest of the path. Keys may hold dots: the longest that fits is meant.
    fn step<'a>(&self, path: &'a str) -> Option<(&Self, &'a str)> {
        if let Some(rest) = path.strip_prefix('[') {
            let (index, tail) = rest.split_once(']')?;
            return Some((self.items.get(index.parse::<usize>().ok()?)?, tail));
        }
        let path = path.strip_prefix('.').unwrap_or(path);
        self.fields
            .iter()
            .filter_map(|(key, place)| {
                let tail = path.strip_prefix(key.as_str())?;
                (tail.is_empty() || tail.starts_with(['.', '['])).then_some((key.len(), place, tail))
            })
            .max_by_key(|(length, ..)| *length)
            .map(|(_, place, tail)| (place, tail))
    }
}

/// Reads one or many YAML (or JSON) documents; empty ones are left out, a `List` is taken apart.
///
/// # Errors
/// All that is wrong with the text: syntax (one mistake a document), duplicate keys, bounds; each with its position.
pub fn yaml(text: &str) -> Result<Vec<Document>, Vec<Problem>> {
    if text.len() > MAX_BYTES {
        let message = format!("the text has {} bytes; at most {MAX_BYTES} are read", text.len());
        return Err(vec![Problem::new("", Reason::TooLong, message)]);
    }
    let mut documents = Vec::new();
    let mut problems = Vec::new();
    let (mut rest, mut line) = (text.strip_prefix('\u{feff}').unwrap_or(text), 0);
    let mut made = Made::default();
    loop {
        let mut builder = Builder::new(rest, line, made);
        let stopped = builder.read(&mut documents);
        made = builder.made;
        problems.append(&mut builder.problems);
        let Some(stopped) = stopped else { break };
        let after = stopped.position.map_or(0, |position| position.line);
        let again = stopped.reason == Reason::Syntax && problems.len() < MOST_PROBLEMS;
        problems.push(*stopped);
        // After a mistake the next document is read all the same, so that one answer shows the mistakes of all.
        match next_document(rest, after.saturating_sub(line)).filter(|_| again) {
            Some((lines, tail)) => (rest, line) = (tail, line + lines),
            None => break,
        }
    }
    if problems.is_empty() { Ok(documents) } else { Err(crate::problem::bounded(problems)) }
}

/// The text from the first `---` below the first `lines` lines on, and how many lines stand before it.
fn next_document(text: &str, lines: usize) -> Option<(usize, &str)> {
    let mut start = 0;
    for (number, line) in text.split_inclusive('\n').enumerate() {
        let marker =
            line.strip_prefix("---").is_some_and(|tail| tail.is_empty() || tail.starts_with(char::is_whitespace));
        if marker && number >= lines.max(1) {
            return Some((number, &text[start..]));
        }
        start += line.len();
    }
    None
}

/// Takes `kind: List` (or `PodList`, ...) apart.
fn flatten(document: Document, documents: &mut Vec<Document>) {
    let is_list = document.value["kind"].as_str().is_some_and(|kind| kind.ends_with("List"));
    let Some(items) = document.value["items"].as_array().filter(|_| is_list) else {
        documents.push(document);
        return;
    };
    let list = document.positions.root.fields.iter().find(|(key, _)| key == "items").map(|(_, place)| place);
    for (index, item) in items.iter().enumerate() {
        let root = list.and_then(|list| list.items.get(index)).cloned().unwrap_or_default();
        documents.push(Document { value: item.clone(), positions: Positions { root } });
    }
}

type Fallible<T> = Result<T, Box<Problem>>;

/// What was made so far.
#[derive(Debug, Clone, Copy, Default)]
struct Made {
    nodes: usize,
    /// Bytes of text, keys included.
    bytes: usize,
    /// Of those, what anchors kept and aliases repeated.
    repeated: usize,
}

/// An anchored node as it was read, and how large it is.
struct Anchored {
    value: Value,
    nodes: usize,
    bytes: usize,
}

/// A step of the path to the node that is read.
enum Step {
    Field(String),
    Item(usize),
}

struct Builder<'text> {
    parser: Parser<'text, granit_parser::StrInput<'text>>,
    anchors: HashMap<usize, Anchored>,
    path: Vec<Step>,
    made: Made,
    problems: Vec<Problem>,
    /// Lines before the text.
    lines: usize,
}

impl<'text> Builder<'text> {
    fn new(text: &'text str, lines: usize, made: Made) -> Self {
        let parser = Parser::new_from_str(text);
        Self { parser, anchors: HashMap::new(), path: Vec::new(), made, problems: Vec::new(), lines }
    }

    /// Reads all documents, or up to the first mistake, which it returns.
    fn read(&mut self, documents: &mut Vec<Document>) -> Option<Box<Problem>> {
        loop {
            match self.document() {
                Ok(Some(document)) if document.value.is_null() => {}
                Ok(Some(document)) => flatten(document, documents),
                Ok(None) => return None,
                Err(problem) => return Some(problem),
            }
        }
    }

    fn position(&self, mark: &Marker) -> Position {
        Position { line: mark.line() + self.lines, column: mark.col() + 1 }
    }

    fn refuse(&self, span: &Span, reason: Reason, message: impl Into<String>) -> Box<Problem> {
        let mut problem = Problem::new(self.shown_path(), reason, message);
        problem.position = Some(self.position(&span.start));
        Box::new(problem)
    }

    /// Keeps a problem after which reading can go on, with nothing for the value.
    fn note(&mut self, span: &Span, reason: Reason, message: impl Into<String>) -> Value {
        if self.problems.len() < MOST_PROBLEMS {
            self.problems.push(*self.refuse(span, reason, message));
        }
        Value::Null
    }

    fn shown_path(&self) -> String {
        let mut path = String::new();
        for step in &self.path {
            match step {
                Step::Field(key) => path = crate::check::join(&path, key),
                Step::Item(index) => path.push_str(&format!("[{index}]")),
            }
        }
        path
    }

    fn next(&mut self) -> Fallible<(Event<'text>, Span)> {
        match self.parser.next_event() {
            Some(Ok(event)) => Ok(event),
            Some(Err(error)) => {
                let mut problem = Problem::new("", Reason::Syntax, format!("this is not YAML: {}", error.info()));
                problem.position = Some(self.position(error.marker()));
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
        self.path.clear();
        let mut positions = Positions::default();
        let (event, span) = self.next()?;
        if matches!(event, Event::DocumentEnd) {
            return Ok(Some(Document { value: Value::Null, positions }));
        }
        positions.root.at = Some(self.position(&span.start));
        let value = self.node(event, span, &mut positions.root)?;
        Ok(Some(Document { value, positions }))
    }

    fn count(&mut self, span: &Span, nodes: usize, bytes: usize, repeated: bool) -> Fallible<()> {
        self.made.nodes += nodes;
        self.made.bytes += bytes;
        self.made.repeated += if repeated { bytes } else { 0 };
        if self.made.nodes > MAX_NODES || self.made.repeated > MAX_REPEATED {
            let message = format!(
                "the text makes more than {MAX_NODES} values or repeats more than {MAX_REPEATED} bytes; its aliases may expand without end"
            );
            return Err(self.refuse(span, Reason::TooLong, message));
        }
        Ok(())
    }

    fn node(&mut self, event: Event<'text>, span: Span, place: &mut Place) -> Fallible<Value> {
        if self.path.len() > MAX_DEPTH {
            self.path.clear();
            let message = format!("the text nests deeper than {MAX_DEPTH} levels");
            return Err(self.refuse(&span, Reason::TooLong, message));
        }
        let before = self.made;
        self.count(&span, 1, 0, false)?;
        let (value, anchor) = match event {
            Event::Scalar(text, style, anchor, tag) => {
                self.count(&span, 0, text.len(), false)?;
                let value = scalar(&text, style, core_tag(tag).as_deref());
                (value.unwrap_or_else(|message| self.note(&span, Reason::Invalid, message)), anchor)
            }
            Event::SequenceStart(_, anchor, _) => (self.sequence(place)?, anchor),
            Event::MappingStart(_, anchor, _) => (self.mapping(place)?, anchor),
            Event::Alias(id) => {
                let Some(anchored) = self.anchors.get(&id) else {
                    return Err(self.refuse(&span, Reason::Syntax, "an alias of something that is not finished"));
                };
                let (nodes, bytes) = (anchored.nodes, anchored.bytes);
                self.count(&span, nodes, bytes, true)?;
                return Ok(self.anchors.get(&id).map_or(Value::Null, |anchored| anchored.value.clone()));
            }
            _ => return Err(self.refuse(&span, Reason::Syntax, "this is not YAML that can be read here")),
        };
        if anchor > 0 {
            let (nodes, bytes) = (self.made.nodes - before.nodes, self.made.bytes - before.bytes);
            // The copy that is kept counts too: anchors within anchors would keep the innermost once a level.
            self.count(&span, nodes, bytes, true)?;
            self.anchors.insert(anchor, Anchored { value: value.clone(), nodes, bytes });
        }
        Ok(value)
    }

    fn sequence(&mut self, place: &mut Place) -> Fallible<Value> {
        let mut items = Vec::new();
        loop {
            let (event, span) = self.next()?;
            if matches!(event, Event::SequenceEnd) {
                return Ok(Value::Array(items));
            }
            let mut child = Place { at: Some(self.position(&span.start)), ..Place::default() };
            self.path.push(Step::Item(items.len()));
            items.push(self.node(event, span, &mut child)?);
            self.path.pop();
            place.items.push(child);
        }
    }

    fn mapping(&mut self, place: &mut Place) -> Fallible<Value> {
        let mut map = Map::new();
        let mut merged: Vec<Value> = Vec::new();
        let mut seen: HashMap<String, Position> = HashMap::new();
        loop {
            let (event, span) = self.next()?;
            let (key, merge) = match event {
                Event::MappingEnd => break,
                Event::Scalar(text, style, _, tag) => {
                    let merge = text == "<<" && matches!(style, ScalarStyle::Plain);
                    (self.key(&span, &text, style, core_tag(tag).as_deref())?, merge)
                }
                _ => return Err(self.refuse(&span, Reason::Invalid, "a key must be a word")),
            };
            self.count(&span, 0, key.len(), false)?;
            let here = self.position(&span.start);
            let mut child = Place { at: Some(here), ..Place::default() };
            self.path.push(Step::Field(key.clone()));
            let (event, value_span) = self.next()?;
            let value = self.node(event, value_span, &mut child)?;
            if merge {
                self.merge(&span, value, &mut merged)?;
            } else if let Some(first) = seen.get(&key) {
                let message = format!("`{key}` is given twice, first in line {}, column {}", first.line, first.column);
                self.note(&span, Reason::Duplicate, message);
            } else {
                seen.insert(key.clone(), here);
                place.fields.push((key.clone(), child));
                map.insert(key, value);
            }
            self.path.pop();
        }
        for value in merged {
            for (key, value) in value.as_object().into_iter().flatten() {
                map.entry(key.clone()).or_insert_with(|| value.clone());
            }
        }
        Ok(Value::Object(map))
    }

    /// What `<<` names: a map, or a list of maps of which earlier ones win.
    fn merge(&self, span: &Span, value: Value, merged: &mut Vec<Value>) -> Fallible<()> {
        let values = match value {
            Value::Array(items) => items,
            value => vec![value],
        };
        if !values.iter().all(Value::is_object) {
            return Err(self.refuse(span, Reason::Invalid, "`<<` takes a map or a list of maps"));
        }
        merged.extend(values);
        Ok(())
    }

    /// A key. Numbers become their text as upstream; `on: x` would silently become `true: x`, so that is refused.
    fn key(&mut self, span: &Span, text: &str, style: ScalarStyle, tag: Option<&str>) -> Fallible<String> {
        if text.len() > MAX_KEY {
            return Err(self.refuse(span, Reason::TooLong, format!("a key is longer than {MAX_KEY} bytes")));
        }
        if text == "<<" {
            return Ok(text.to_owned());
        }
        match scalar(text, style, tag) {
            Ok(Value::String(key)) => return Ok(key),
            Ok(Value::Number(number)) => return Ok(number.to_string()),
            Ok(Value::Bool(value)) if text == if value { "true" } else { "false" } => {}
            Ok(Value::Null) => {
                self.note(span, Reason::Invalid, "a key is missing");
            }
            Ok(value) => {
                self.note(span, Reason::Invalid, format!("the key `{text}` reads as `{value}` in YAML"));
                if let Some(problem) = self.problems.last_mut() {
                    problem.hint = Some(format!("write it in quotes: \"{text}\""));
                }
            }
            Err(message) => {
                self.note(span, Reason::Invalid, message);
            }
        }
        Ok(text.to_owned())
    }
}

/// The suffix of a tag of YAML's own (`!!str`).
fn core_tag(tag: Option<Cow<'_, Tag>>) -> Option<String> {
    tag.and_then(|tag| tag.suffix_in_namespace("tag:yaml.org,2002:").map(Cow::into_owned))
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use serde_json::json;

    fn one(text: &str) -> Value {
        yaml(text).unwrap().remove(0).value
    }

    /// What kubectl 1.32 makes of each.
    #[test]
    fn scalars_are_read_as_kubernetes_reads_them() {
        for (text, expected) in [
            ("0644", json!(420)),
            ("08", json!(8)),
            ("-08", json!(-8)),
            ("0777_7", json!(4095)),
            ("012345670123", json!(1_402_433_619)),
            ("0o17", json!(15)),
            ("-0o7", json!(-7)),
            ("0b11", json!(3)),
            ("-0b11", json!(-3)),
            ("0x10", json!(16)),
            ("-0x1F", json!(-31)),
            ("0x", json!("0x")),
            ("1_000", json!(1000)),
            ("1__0", json!(10)),
            ("1_", json!(1)),
            ("_1", json!("_1")),
            ("+5", json!(5)),
            ("-5", json!(-5)),
            ("-0", json!(0)),
            ("1.0", json!(1)),
            ("1.5", json!(1.5)),
            (".5", json!(0.5)),
            ("5.", json!(5)),
            ("1e3", json!(1000)),
            ("1e400", json!("1e400")),
            ("18446744073709551615", json!(u64::MAX)),
            ("1:30", json!("1:30")),
            ("1.2.3.4", json!("1.2.3.4")),
            ("10.42.0.0/16", json!("10.42.0.0/16")),
            ("2026-11-26", json!("2026-11-26")),
            ("y", json!(true)),
            ("Yes", json!(true)),
            ("on", json!(true)),
            ("n", json!(false)),
            ("off", json!(false)),
            ("~", json!(null)),
            ("", json!(null)),
            ("=", json!("=")),
            ("\"yes\"", json!("yes")),
            ("'5'", json!("5")),
            ("\"\\x41\"", json!("A")),
            ("!!str 5", json!("5")),
            ("!!int \"5\"", json!(5)),
            ("!!float 3", json!(3)),
            ("!!binary aGk=", json!("hi")),
            ("!custom foo", json!("foo")),
            ("tab\t", json!("tab")),
        ] {
            assert_eq!(one(&format!("a: {text}\n"))["a"], expected, "{text}");
        }
        assert_eq!(
            one("1: x\n0x10: u\n1.5: z\ntrue: w\n'on': v\n"),
            json!({"1": "x", "16": "u", "1.5": "z", "true": "w", "on": "v"})
        );
        for (key, hint) in [("on", Some("write it in quotes: \"on\"")), ("~", None), ("", None)] {
            let problem = yaml(&format!("a:\n  {key}: x\n")).unwrap_err().remove(0);
            assert_eq!(
                (problem.reason, problem.hint.as_deref(), problem.position.unwrap().line),
                (Reason::Invalid, hint, 2),
                "{key}"
            );
        }
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
        let syntax = yaml("a: b\n  c: d\n---\nok: 1\n---\nx: [1\n---\nx: .inf\non: 1\ny: {\n").unwrap_err();
        let lines: Vec<usize> = syntax.iter().map(|problem| problem.position.unwrap().line).collect();
        assert_eq!(lines, [2, 6, 8, 9, 10, 10], "{syntax:?}");
        assert_eq!((syntax[0].reason, syntax[0].position.unwrap().line), (Reason::Syntax, 2));
    }

    #[test]
    fn documents_lists_anchors_and_positions() {
        let documents = yaml("---\n# nothing\n---\nkind: A\n---\nkind: List\nitems:\n- kind: B\n  spec:\n    ports:\n    - port: 1\n- kind: C\n").unwrap();
        let kinds: Vec<_> = documents.iter().map(|document| document.value["kind"].as_str().unwrap()).collect();
        assert_eq!(kinds, ["A", "B", "C"]);
        assert_eq!(documents[1].positions.at("spec.ports[0].port"), Some(Position { line: 11, column: 7 }));
        assert_eq!(documents[1].positions.at("spec.ports[0].nothing"), Some(Position { line: 11, column: 7 }));
        assert_eq!(documents[1].positions.at("spec"), Some(Position { line: 9, column: 3 }));
        let dots = yaml("metadata:\n  labels:\n    a.b/c: x\n    a: y\n").unwrap().remove(0);
        assert_eq!(dots.positions.at("metadata.labels.a.b/c"), Some(Position { line: 3, column: 5 }));
        assert!(yaml("a: 1\nb: {<<: 5}\n").unwrap_err()[0].message.contains("`<<`"));
        assert_eq!(one("\u{feff}kind: A\r\nx: |\r\n  l\r\n...\n"), json!({"kind": "A", "x": "l\n"}));
        let merged = one("base: &b {a: 1, c: 2}\nx:\n  <<: *b\n  a: 5\n");
        assert_eq!(merged["x"], json!({"a": 5, "c": 2}));
    }

    /// Each of these once made far more than its text: a long text repeated, anchors within anchors, long keys above many values.
    #[test]
    fn nothing_small_becomes_large() {
        let long = "x".repeat(1 << 20);
        let repeated = format!("a: &a {long}\nb: [{}]\n", vec!["*a"; 100_000].join(","));
        assert_eq!(yaml(&repeated).unwrap_err()[0].reason, Reason::TooLong);
        let nested: String = (0..90).map(|level| format!("&a{level} [")).collect();
        let nested = format!("{nested}{}{}", "x,".repeat(100_000), "]".repeat(90));
        assert_eq!(yaml(&nested).unwrap_err()[0].reason, Reason::TooLong);
        let key = "k".repeat(1000);
        let deep: String = (0..90).map(|level| format!("{}{key}:\n", " ".repeat(level))).collect();
        let deep =
            format!("{deep}{}", (0..50_000).map(|item| format!("{}- {item}\n", " ".repeat(90))).collect::<String>());
        let documents = yaml(&deep).unwrap();
        assert_eq!(documents[0].positions.at(&key), Some(Position { line: 1, column: 1 }));
        assert_eq!(yaml(&format!("? {}\n: 1\n", "k".repeat(2000))).unwrap_err()[0].reason, Reason::TooLong);
        let wide = format!("{{\"{}\":[{}1]}}", "k".repeat(4 << 20), "1,".repeat(400_000));
        assert!(json(wide.as_bytes()).unwrap().problems.is_empty());
        assert_eq!(json(format!("[{}1]", "1,".repeat(600_000)).as_bytes()).unwrap_err().reason, Reason::TooLong);
        let twice = format!("{{{}\"a\":1}}", "\"a\":1,".repeat(100_000));
        assert!(json(twice.as_bytes()).unwrap().problems.len() <= 100);
        let twice = "a: 1\n".repeat(100_000);
        assert!(yaml(&twice).unwrap_err().len() <= 101);
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

        #[test]
        fn no_yaml_words_panic(words in prop::collection::vec(prop::sample::select(vec![
            "---\n", "\n", "- ", "? ", ": ", "a", "b", "{", "}", "[", "]", ",", "&x ", "*x", "<<", "|\n", ">-\n", "  ", "\"", "'",
            "!!str ", "!!int ", "!", "%", "#", "\t", "\u{feff}", "é", "\0", "...\n", "0x", "-", "kind: List\nitems:\n", "\r\n",
        ]), 0..40)) {
            let text = words.concat();
            if let Ok(documents) = yaml(&text) {
                for document in documents {
                    let _ = document.positions.at("a.b[0].c");
                    prop_assert!(serde_json::to_string(&document.value).is_ok());
                }
            }
        }

        #[test]
        fn no_bytes_panic(bytes in prop::collection::vec(any::<u8>(), 0..200)) {
            let _ = json(&bytes);
            let _ = yaml(&String::from_utf8_lossy(&bytes));
        }
    }
}
