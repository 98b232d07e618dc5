//! Text from the cluster as text in HTML, whatever it holds.

use std::fmt;

/// Text that prints itself safe inside elements and quoted attributes.
pub(crate) struct Escaped<'a>(&'a str);

/// Every piece of foreign text on a page goes through here.
pub(crate) fn esc(text: &str) -> Escaped<'_> {
    Escaped(text)
}

impl fmt::Display for Escaped<'_> {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        for char in self.0.chars() {
            match char {
                '&' => out.write_str("&amp;")?,
                '<' => out.write_str("&lt;")?,
                '>' => out.write_str("&gt;")?,
                '"' => out.write_str("&quot;")?,
                '\'' => out.write_str("&#39;")?,
                // Control characters and those that turn the direction of text have no place in a name or a message.
                '\u{0}'..='\u{8}'
                | '\u{b}'..='\u{1f}'
                | '\u{7f}'
                | '\u{202a}'..='\u{202e}'
                | '\u{2066}'..='\u{2069}' => {
                    out.write_str("\u{fffd}")?;
                }
                other => write!(out, "{other}")?,
            }
        }
        Ok(())
    }
}

/// A value in the query of a link: everything but plain letters, digits, `-`, `_` and `.` in per cent.
pub(crate) fn query(text: &str) -> String {
    text.bytes().fold(String::new(), |mut out, byte| {
        if byte.is_ascii_alphanumeric() || b"-_.".contains(&byte) {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
        out
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn nothing_gets_out() {
        assert_eq!(
            esc("<img src=x onerror='a(\"b\")'>&").to_string(),
            "&lt;img src=x onerror=&#39;a(&quot;b&quot;)&#39;&gt;&amp;"
        );
        assert_eq!(esc("a\u{202e}b\u{0}").to_string(), "a\u{fffd}b\u{fffd}");
        assert_eq!(query("a b&c=\"ä"), "a%20b%26c%3D%22%C3%A4");
    }
}
