//! One chain of errors, printed once: what failed, because of what, because of what.

use std::error::Error;

/// The error and its sources, one a line, the sources indented, then what to do: for a terminal or a log.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    join(error, "\n  because: ", "\nhint: ")
}

/// The same on one line, `: ` between the links: for a status field or an event message.
#[must_use]
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    join(error, ": ", "; hint: ").replace('\n', " ")
}

/// A hint is the last line of a link's message and begins with `hint: `. It comes after all causes, whichever link gives it:
/// what happened first, then what to do.
fn join(error: &(dyn Error + 'static), between: &str, before_hint: &str) -> String {
    let mut text = String::new();
    let mut hints: Vec<String> = Vec::new();
    let mut link = Some(error);
    while let Some(inner) = link {
        let words = inner.to_string();
        let (said, hint) = split_hint(&words);
        // Some libraries repeat their source in their own message; saying it twice helps nobody.
        if !text.ends_with(said) {
            if !text.is_empty() {
                text.push_str(between);
            }
            text.push_str(said);
        }
        hints.extend(hint.filter(|hint| !hints.iter().any(|known| known == hint)).map(ToOwned::to_owned));
        link = inner.source();
    }
    for hint in hints {
        text.push_str(before_hint);
        text.push_str(&hint);
    }
    text
}

fn split_hint(words: &str) -> (&str, Option<&str>) {
    match words.rsplit_once('\n') {
        Some((said, last)) => match last.trim_start().strip_prefix("hint: ") {
            Some(hint) => (said, Some(hint)),
            None => (words, None),
        },
        None => (words, None),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot start the pod")]
    struct Outer(#[source] Inner);
    #[derive(Debug, thiserror::Error)]
    #[error("no space left")]
    struct Inner;

    #[derive(Debug, thiserror::Error)]
    #[error("cannot pull it\n  hint: is the name right?")]
    struct Hinting(#[source] Outer);

    #[test]
    fn a_hint_comes_last() {
        let error = Hinting(Outer(Inner));
        assert_eq!(one_line(&error), "cannot pull it: cannot start the pod: no space left; hint: is the name right?");
        let lines =
            "cannot pull it\n  because: cannot start the pod\n  because: no space left\nhint: is the name right?";
        assert_eq!(chain(&error), lines);
    }

    #[test]
    fn a_chain_names_every_link_once() {
        assert_eq!(one_line(&Outer(Inner)), "cannot start the pod: no space left");
        assert_eq!(chain(&Outer(Inner)), "cannot start the pod\n  because: no space left");
    }
}
