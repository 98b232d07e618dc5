//! What is wrong with an object, said once for people and programs.

use std::fmt;

/// The most problems one answer lists.
pub(crate) const MOST_PROBLEMS: usize = 100;

/// The first problems, and how many more there are.
pub(crate) fn bounded(mut problems: Vec<Problem>) -> Vec<Problem> {
    let all = problems.len();
    if all > MOST_PROBLEMS {
        let reason = problems[MOST_PROBLEMS].reason;
        problems.truncate(MOST_PROBLEMS);
        problems.push(Problem::new("", reason, format!("and {} more problems", all - MOST_PROBLEMS)));
    }
    problems
}

/// Line and column, from 1.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Position {
    /// Line.
    pub line: usize,
    /// Column, in characters.
    pub column: usize,
}

/// The kind of problem, as the API's `Status` causes name it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub enum Reason {
    /// No such field.
    Unknown,
    /// A field given twice.
    Duplicate,
    /// A value of the wrong type.
    Type,
    /// A field that must be there.
    Required,
    /// A value that makes no sense.
    Invalid,
    /// A value that is not one of the supported ones.
    NotSupported,
    /// A known field that this release does not do yet.
    Unsupported,
    /// A change that is not allowed.
    Forbidden,
    /// Too long or too many.
    TooLong,
    /// Text that is not YAML or JSON.
    Syntax,
}

/// One problem.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Problem {
    /// `spec.template.spec.containers[0].image`; empty for the document.
    pub path: String,
    /// Its kind.
    pub reason: Reason,
    /// For people, without the path.
    pub message: String,
    /// What to do.
    pub hint: Option<String>,
    /// Where in the text, when that is known.
    pub position: Option<Position>,
}

impl Problem {
    /// A problem without hint and position.
    pub fn new(path: impl Into<String>, reason: Reason, message: impl Into<String>) -> Self {
        Self { path: path.into(), reason, message: message.into(), hint: None, position: None }
    }

    /// With a hint.
    #[must_use]
    pub fn hint(mut self, hint: impl Into<String>) -> Self {
        self.hint = Some(hint.into());
        self
    }
}

impl fmt::Display for Problem {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        if !self.path.is_empty() {
            plain(out, &self.path)?;
            out.write_str(": ")?;
        }
        plain(out, &self.message)?;
        if let Some(hint) = &self.hint {
            out.write_str(" (")?;
            plain(out, hint)?;
            out.write_str(")")?;
        }
        Ok(())
    }
}

/// Keys and values of strangers are quoted in problems: what would move a terminal's cursor is written out.
fn plain(out: &mut fmt::Formatter<'_>, text: &str) -> fmt::Result {
    for char in text.chars() {
        if char.is_control() {
            write!(out, "{}", char.escape_default())?;
        } else {
            write!(out, "{char}")?;
        }
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_problem_is_one_plain_line() {
        let problem = Problem::new("a.\u{1b}[2J", Reason::Invalid, "x\ny").hint("z\r");
        assert_eq!(problem.to_string(), "a.\\u{1b}[2J: x\\ny (z\\r)");
    }

    #[test]
    fn many_problems_end_with_a_count() {
        let many = vec![Problem::new("a", Reason::Unknown, "b"); MOST_PROBLEMS + 5];
        let kept = bounded(many);
        assert_eq!((kept.len(), kept[MOST_PROBLEMS].message.as_str()), (MOST_PROBLEMS + 1, "and 5 more problems"));
    }
}
