//! JSON to trees, with every duplicate key found and a bound on the number of values.

use std::cell::{Cell, RefCell};

use serde::de::{DeserializeSeed, MapAccess, SeqAccess, Visitor};
use serde_json::{Map, Value};

use super::{MAX_BYTES, MAX_KEY, MAX_NODES};
use crate::problem::{MOST_PROBLEMS, Position, Problem, Reason};

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
    let found = Found { problems: RefCell::new(Vec::new()), nodes: Cell::new(0) };
    let mut deserializer = serde_json::Deserializer::from_slice(bytes);
    let seed = Seed { at: None, found: &found };
    let value =
        seed.deserialize(&mut deserializer).and_then(|value| deserializer.end().map(|()| value)).map_err(|error| {
            if found.nodes.get() > MAX_NODES {
                return Problem::new("", Reason::TooLong, format!("the text has more than {MAX_NODES} values"));
            }
            let mut problem = Problem::new("", Reason::Syntax, format!("this is not JSON: {error}"));
            problem.position = Some(Position { line: error.line(), column: error.column() });
            problem
        })?;
    Ok(Decoded { value, problems: found.problems.into_inner() })
}

/// What a JSON text was found to hold, beside its tree.
struct Found {
    problems: RefCell<Vec<Problem>>,
    nodes: Cell<usize>,
}

/// Where a JSON value stands: a chain to the root, shown only when there is something to say.
struct At<'a> {
    up: Option<&'a At<'a>>,
    step: JsonStep<'a>,
}

enum JsonStep<'a> {
    Field(&'a str),
    Item(usize),
}

impl At<'_> {
    fn shown(&self) -> String {
        let up = self.up.map(At::shown).unwrap_or_default();
        match self.step {
            JsonStep::Field(key) => crate::check::join(&up, &key.chars().take(MAX_KEY).collect::<String>()),
            JsonStep::Item(index) => format!("{up}[{index}]"),
        }
    }
}

struct Seed<'a> {
    at: Option<&'a At<'a>>,
    found: &'a Found,
}

impl<'de> DeserializeSeed<'de> for Seed<'_> {
    type Value = Value;

    fn deserialize<D: serde::Deserializer<'de>>(self, deserializer: D) -> Result<Value, D::Error> {
        self.found.nodes.set(self.found.nodes.get() + 1);
        if self.found.nodes.get() > MAX_NODES {
            return Err(serde::de::Error::custom("too many values"));
        }
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
            let at = At { up: self.at, step: JsonStep::Item(items.len()) };
            match seq.next_element_seed(Seed { at: Some(&at), found: self.found })? {
                Some(item) => items.push(item),
                None => return Ok(Value::Array(items)),
            }
        }
    }

    fn visit_map<A: MapAccess<'de>>(self, mut map: A) -> Result<Value, A::Error> {
        let mut object = Map::new();
        while let Some(key) = map.next_key::<String>()? {
            let at = At { up: self.at, step: JsonStep::Field(&key) };
            let value = map.next_value_seed(Seed { at: Some(&at), found: self.found })?;
            let mut problems = self.found.problems.borrow_mut();
            if object.contains_key(&key) && problems.len() < MOST_PROBLEMS {
                let message = format!("`{}` is given twice", key.chars().take(80).collect::<String>());
                problems.push(Problem::new(at.shown(), Reason::Duplicate, message));
            }
            object.insert(key, value);
        }
        Ok(Value::Object(object))
    }
}
