//! The field table (`schema.txt`), parsed once: what strict checking, strategic merge and the three-way apply read.

use std::collections::HashMap;
use std::sync::LazyLock;

/// The type of a field.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Type {
    /// Text.
    Str,
    /// A whole number of 32 bits.
    Int,
    /// A whole number of 64 bits.
    Long,
    /// true or false.
    Bool,
    /// `500m`, `128Mi`; a number is taken too.
    Quantity,
    /// A number, or text such as `25%` or a port's name.
    IntOrStr,
    /// RFC 3339.
    Time,
    /// Base64.
    Base64,
    /// Anything.
    Any,
    /// A map from text to one type.
    Map(Box<Type>),
    /// A list of one type.
    List(Box<Type>),
    /// An object of a named type.
    Named(String),
}

/// What becomes of a value.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Support {
    /// Honoured.
    Yes,
    /// Refused by name unless empty.
    No,
    /// Accepted with a warning that it has no effect.
    Warn,
    /// The system sets it; what a user writes is left alone.
    System,
}

/// One field.
#[derive(Debug, Clone)]
pub struct Field {
    /// Its name.
    pub name: String,
    /// Its type.
    pub typ: Type,
    /// Whether it is honoured.
    pub support: Support,
    /// For lists of objects merged by key.
    pub merge_key: Option<String>,
    /// A list of scalars merged as a set.
    pub set: bool,
    /// The values that are supported, when not all are.
    pub only: Vec<String>,
    /// Of a field without effect: the values that need no warning.
    pub quiet: Vec<String>,
    /// Whether upstream requires it.
    pub required: bool,
}

/// The fields of a named type, in table order.
#[must_use]
pub fn fields(name: &str) -> Option<&'static [Field]> {
    TABLE.get(name).map(Vec::as_slice)
}

/// One field of a named type.
#[must_use]
pub fn field(type_name: &str, name: &str) -> Option<&'static Field> {
    fields(type_name)?.iter().find(|field| field.name == name)
}

/// Every named type.
pub fn types() -> impl Iterator<Item = &'static str> {
    TABLE.keys().map(String::as_str)
}

static TABLE: LazyLock<HashMap<String, Vec<Field>>> = LazyLock::new(|| {
    let mut table: HashMap<String, Vec<Field>> = HashMap::new();
    let mut current = String::new();
    for line in include_str!("schema.txt").lines() {
        if line.starts_with('#') || line.trim().is_empty() {
            continue;
        }
        if line.starts_with(' ') {
            if let (Some(field), Some(fields)) = (parse_field(line), table.get_mut(&current)) {
                fields.push(field);
            }
        } else {
            line.trim().clone_into(&mut current);
            table.insert(current.clone(), Vec::new());
        }
    }
    table
});

fn parse_field(line: &str) -> Option<Field> {
    let mut words = line.split_whitespace();
    let name = words.next()?.to_owned();
    let typ = parse_type(words.next()?);
    let mut field = Field {
        name,
        typ,
        support: Support::Yes,
        merge_key: None,
        set: false,
        only: Vec::new(),
        quiet: Vec::new(),
        required: false,
    };
    let split = |values: &str| values.split('|').map(ToOwned::to_owned).collect();
    for word in words {
        match word.split_once('=') {
            Some(("key", key)) => field.merge_key = Some(key.to_owned()),
            Some(("only", values)) => field.only = split(values),
            Some(("quiet", values)) => field.quiet = split(values),
            _ => match word {
                "no" => field.support = Support::No,
                "warn" => field.support = Support::Warn,
                "sys" => field.support = Support::System,
                "set" => field.set = true,
                "req" => field.required = true,
                _ => {}
            },
        }
    }
    Some(field)
}

fn parse_type(word: &str) -> Type {
    if let Some(inner) = word.strip_prefix('[').and_then(|rest| rest.strip_suffix(']')) {
        return Type::List(Box::new(parse_type(inner)));
    }
    if let Some(inner) = word.strip_prefix("map(").and_then(|rest| rest.strip_suffix(')')) {
        return Type::Map(Box::new(parse_type(inner)));
    }
    match word {
        "str" => Type::Str,
        "int" => Type::Int,
        "long" => Type::Long,
        "bool" => Type::Bool,
        "quantity" => Type::Quantity,
        "intstr" => Type::IntOrStr,
        "time" => Type::Time,
        "b64" => Type::Base64,
        "any" => Type::Any,
        name => Type::Named(name.to_owned()),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn every_word_of_the_table_means_something() {
        let marks = ["no", "warn", "sys", "set", "req"];
        for line in include_str!("schema.txt").lines().filter(|line| line.starts_with(' ')) {
            let words: Vec<&str> = line.split_whitespace().collect();
            assert!(words.len() >= 2, "{line}");
            for word in &words[2..] {
                let known = word.split_once('=').map_or(marks.contains(word), |(mark, value)| {
                    ["key", "only", "quiet"].contains(&mark) && !value.is_empty()
                });
                assert!(known, "{line}: {word}");
            }
        }
        for name in types() {
            let mut names: Vec<&str> = fields(name).unwrap().iter().map(|field| field.name.as_str()).collect();
            let all = names.len();
            names.sort_unstable();
            names.dedup();
            assert_eq!(names.len(), all, "a field of {name} stands there twice");
        }
    }

    #[test]
    fn every_kind_and_every_named_type_is_in_the_table() {
        for kind in crate::kinds::KINDS {
            assert!(fields(kind.kind).is_some(), "{}", kind.kind);
        }
        for name in types() {
            for field in fields(name).unwrap() {
                let mut typ = &field.typ;
                while let Type::List(inner) | Type::Map(inner) = typ {
                    typ = inner;
                }
                if let Type::Named(inner) = typ {
                    assert!(fields(inner).is_some(), "{name}.{} has unknown type {inner}", field.name);
                    if let Some(key) = &field.merge_key {
                        assert!(super::field(inner, key).is_some(), "{name}.{}: merge key {key}", field.name);
                    }
                }
            }
        }
    }
}
