//! How answers look: tables, YAML, JSON, names; colours only where a person reads.

use std::io::{IsTerminal as _, Write as _};

use clap::ValueEnum;
use serde_json::Value;

/// What `-o` takes.
#[derive(Debug, Clone, Copy, PartialEq, Eq, ValueEnum)]
pub enum Format {
    /// Columns.
    Table,
    /// More columns.
    Wide,
    /// The objects as JSON.
    Json,
    /// The objects as YAML.
    Yaml,
    /// `kind/name` a line.
    Name,
}

/// Prints a line to standard output; a reader that went away (`| head`) ends the program quietly.
pub fn line(text: &str) {
    if writeln!(std::io::stdout(), "{text}").is_err() {
        std::process::exit(0);
    }
}

/// Prints bytes to standard output as they are.
pub fn raw(bytes: &[u8]) {
    let mut out = std::io::stdout();
    if out.write_all(bytes).and_then(|()| out.flush()).is_err() {
        std::process::exit(0);
    }
}

/// A warning for a person, on standard error.
pub fn warn(text: &str) {
    let label = if colorful() { "\u{1b}[33mwarning:\u{1b}[0m" } else { "warning:" };
    let _ = writeln!(std::io::stderr(), "{label} {text}");
}

/// An error for a person, on standard error.
pub fn error(text: &str) {
    let label = if colorful() { "\u{1b}[31merror:\u{1b}[0m" } else { "error:" };
    let _ = writeln!(std::io::stderr(), "{label} {text}");
}

/// A line about progress, on standard error.
pub fn note(text: &str) {
    let _ = writeln!(std::io::stderr(), "{text}");
}

/// Whether standard error is a terminal whose owner did not say NO_COLOR.
#[must_use]
pub fn colorful() -> bool {
    std::io::stderr().is_terminal() && std::env::var_os("NO_COLOR").is_none_or(|value| value.is_empty())
}

/// YAML of a value.
#[must_use]
pub fn yaml(value: &Value) -> String {
    coracle_manifests::decode::to_yaml(value)
}

/// Pretty JSON of a value.
#[must_use]
pub fn json(value: &Value) -> String {
    serde_json::to_string_pretty(value).unwrap_or_default()
}

/// Left-aligned columns, three spaces apart, as kubectl prints them.
#[must_use]
pub fn columns(header: &[String], rows: &[Vec<String>]) -> String {
    let mut widths: Vec<usize> = header.iter().map(|cell| cell.chars().count()).collect();
    for row in rows {
        for (index, cell) in row.iter().enumerate() {
            if let Some(width) = widths.get_mut(index) {
                *width = (*width).max(cell.chars().count());
            }
        }
    }
    let mut text = String::new();
    for row in std::iter::once(header).chain(rows.iter().map(Vec::as_slice)) {
        let mut line = String::new();
        for (index, cell) in row.iter().enumerate() {
            line.push_str(cell);
            if index + 1 < row.len() {
                let width = widths.get(index).copied().unwrap_or(0);
                line.extend(std::iter::repeat_n(' ', width.saturating_sub(cell.chars().count()) + 3));
            }
        }
        text.push_str(line.trim_end());
        text.push('\n');
    }
    text
}

/// The columns of a `Table` answer: those of priority 0, or all of them.
#[must_use]
pub fn table(answer: &Value, wide: bool, namespaces: bool, header: bool) -> String {
    let definitions = answer["columnDefinitions"].as_array().cloned().unwrap_or_default();
    let shown: Vec<usize> = (0..definitions.len())
        .filter(|index| wide || definitions[*index]["priority"].as_i64().unwrap_or(0) == 0)
        .collect();
    let mut head: Vec<String> =
        shown.iter().map(|index| definitions[*index]["name"].as_str().unwrap_or_default().to_uppercase()).collect();
    if namespaces {
        head.insert(0, "NAMESPACE".to_owned());
    }
    let mut rows = Vec::new();
    for row in answer["rows"].as_array().into_iter().flatten() {
        let mut cells: Vec<String> = shown.iter().map(|index| cell(&row["cells"][*index])).collect();
        if namespaces {
            cells.insert(0, row["object"]["metadata"]["namespace"].as_str().unwrap_or_default().to_owned());
        }
        rows.push(cells);
    }
    let text = columns(&head, &rows);
    if header { text } else { text.split_once('\n').map_or(String::new(), |(_, rest)| rest.to_owned()) }
}

fn cell(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => "<none>".to_owned(),
        other => other.to_string(),
    }
}

/// A value as a cell or a word: text as it is, nothing as nothing, a list joined by commas.
#[must_use]
pub fn text(value: &Value) -> String {
    match value {
        Value::String(text) => text.clone(),
        Value::Null => String::new(),
        Value::Array(items) => items.iter().map(text).collect::<Vec<_>>().join(","),
        other => other.to_string(),
    }
}
