//! Trees to YAML that reads back the same.

use granit_parser::ScalarStyle;
use serde_json::Value;

use super::scalar::scalar;

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
