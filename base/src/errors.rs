//! One chain of errors, printed once: what failed, because of what, because of what.

use std::error::Error;

/// The error and its sources, one a line, the sources indented: for a terminal or a log.
#[must_use]
pub fn chain(error: &(dyn Error + 'static)) -> String {
    join(error, "\n  because: ")
}

/// The same on one line, `: ` between the links: for a status field or an event message.
#[must_use]
pub fn one_line(error: &(dyn Error + 'static)) -> String {
    join(error, ": ").replace('\n', " ")
}

fn join(error: &(dyn Error + 'static), between: &str) -> String {
    let mut text = error.to_string();
    let mut source = error.source();
    while let Some(inner) = source {
        let words = inner.to_string();
        // Some libraries repeat their source in their own message; saying it twice helps nobody.
        if !text.ends_with(&words) {
            text.push_str(between);
            text.push_str(&words);
        }
        source = inner.source();
    }
    text
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

    #[test]
    fn a_chain_names_every_link_once() {
        assert_eq!(one_line(&Outer(Inner)), "cannot start the pod: no space left");
        assert_eq!(chain(&Outer(Inner)), "cannot start the pod\n  because: no space left");
    }
}
