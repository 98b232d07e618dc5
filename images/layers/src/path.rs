//! A path inside a layer that has been checked once.

use std::fmt;

/// A relative path of plain components: no empty one, no `.`, no `..`, no NUL, bounded. The root is the empty path. Parsing
/// is the only way to make one, so that whatever receives it cannot be led outside by its text (links are the receiver's part).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash, Default)]
pub struct LayerPath(Vec<u8>);

/// Why a path is refused.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum PathError {
    /// `..` somewhere.
    #[error("the path climbs out with `..`")]
    Climbs,
    /// A NUL byte.
    #[error("the path contains a NUL byte")]
    Nul,
    /// A component no file system takes.
    #[error("a part of the path has more than 255 bytes")]
    Component,
    /// Longer than PATH_MAX.
    #[error("the path has more than {0} bytes")]
    Long(usize),
    /// Too deep.
    #[error("the path is more than {0} directories deep")]
    Deep(usize),
}

/// What the kernel takes in one component.
const COMPONENT: usize = 255;

impl LayerPath {
    /// Checks a path from an archive. A leading slash means the layer's root, as in every other unpacker.
    pub fn parse(raw: &[u8], max_bytes: usize, max_depth: usize) -> Result<Self, PathError> {
        if raw.contains(&0) {
            return Err(PathError::Nul);
        }
        if raw.len() > max_bytes {
            return Err(PathError::Long(max_bytes));
        }
        let mut clean = Vec::with_capacity(raw.len());
        let mut depth = 0;
        for part in raw.split(|byte| *byte == b'/') {
            match part {
                b"" | b"." => continue,
                b".." => return Err(PathError::Climbs),
                part if part.len() > COMPONENT => return Err(PathError::Component),
                _ => {}
            }
            depth += 1;
            if depth > max_depth {
                return Err(PathError::Deep(max_depth));
            }
            if !clean.is_empty() {
                clean.push(b'/');
            }
            clean.extend_from_slice(part);
        }
        Ok(Self(clean))
    }

    /// The bytes, components joined by one slash, none at either end; empty for the root.
    #[must_use]
    pub fn as_bytes(&self) -> &[u8] {
        &self.0
    }

    /// Whether it is the layer's root.
    #[must_use]
    pub fn is_root(&self) -> bool {
        self.0.is_empty()
    }

    /// The directory it is in and its name there; `None` for the root.
    #[must_use]
    pub fn split(&self) -> Option<(&[u8], &[u8])> {
        match self.0.iter().rposition(|byte| *byte == b'/') {
            Some(at) => Some((&self.0[..at], &self.0[at + 1..])),
            None if self.0.is_empty() => None,
            None => Some((b"", &self.0)),
        }
    }

    /// The directory it is in; the root's is the root.
    #[must_use]
    pub fn parent(&self) -> Self {
        Self(self.split().map_or_else(Vec::new, |(parent, _)| parent.to_vec()))
    }

    /// Its components from the top.
    pub fn components(&self) -> impl Iterator<Item = &[u8]> {
        self.0.split(|byte| *byte == b'/').filter(|part| !part.is_empty())
    }

    /// The same path with another last component.
    pub(crate) fn sibling(&self, name: &[u8]) -> Self {
        let mut bytes = self.parent().0;
        if !bytes.is_empty() {
            bytes.push(b'/');
        }
        bytes.extend_from_slice(name);
        Self(bytes)
    }
}

impl fmt::Display for LayerPath {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "/{}", self.0.escape_ascii())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(raw: &str) -> Result<String, PathError> {
        LayerPath::parse(raw.as_bytes(), 4096, 16).map(|path| String::from_utf8_lossy(path.as_bytes()).into_owned())
    }

    #[test]
    fn paths_become_relative_and_plain_or_are_refused() {
        assert_eq!(parse("./etc//passwd").as_deref(), Ok("etc/passwd"));
        assert_eq!(parse("/etc/./x/").as_deref(), Ok("etc/x"));
        assert_eq!(parse("...").as_deref(), Ok("..."));
        assert_eq!(parse("./").as_deref(), Ok(""));
        assert_eq!(parse("a/../b"), Err(PathError::Climbs));
        assert_eq!(parse(".."), Err(PathError::Climbs));
        assert_eq!(parse("a\0b"), Err(PathError::Nul));
        assert_eq!(parse(&"x".repeat(256)), Err(PathError::Component));
        assert_eq!(parse(&"x/".repeat(2049)), Err(PathError::Long(4096)));
        assert_eq!(parse(&"x/".repeat(17)), Err(PathError::Deep(16)));
    }

    #[test]
    fn a_path_knows_its_parent() {
        let path = LayerPath::parse(b"a/b/c", 4096, 16).unwrap();
        assert_eq!(path.split(), Some((&b"a/b"[..], &b"c"[..])));
        assert_eq!(path.parent().parent().parent(), LayerPath::default());
        assert_eq!(path.sibling(b"d").as_bytes(), b"a/b/d");
        assert_eq!(path.components().count(), 3);
        assert_eq!(LayerPath::default().split(), None);
    }
}
