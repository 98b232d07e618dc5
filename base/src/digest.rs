//! A content digest that has been checked once and is therefore safe as a file name or a URL part.

use std::fmt;
use std::str::FromStr;

/// `algorithm:hex` of an OCI descriptor (image-spec `descriptor.md`), with the algorithm from an allow-list and the hex
/// of the exact length. Parsing is the only way to make one (CVE-2024-3727: digests that became paths).
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Digest(String);

/// Why a text is not a digest.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DigestError {
    /// There is no colon.
    #[error("`{0}` is not a digest: expected `sha256:` and 64 hexadecimal digits")]
    Shape(String),
    /// The algorithm is not one we compute.
    #[error("digest algorithm `{0}` is not supported: sha256 and sha512 are")]
    Algorithm(String),
    /// Wrong length, or a character that is not lower-case hexadecimal.
    #[error("`{0}` is not a digest: the part after the colon must be {1} lower-case hexadecimal digits")]
    Hex(String, usize),
}

impl Digest {
    /// The digest of 32 raw bytes of SHA-256.
    #[must_use]
    pub fn from_sha256(raw: &[u8; 32]) -> Self {
        let mut text = String::with_capacity(71);
        text.push_str("sha256:");
        for byte in raw {
            for nibble in [byte >> 4, byte & 15] {
                text.push(char::from(b"0123456789abcdef"[usize::from(nibble)]));
            }
        }
        Self(text)
    }

    /// `sha256` or `sha512`.
    #[must_use]
    pub fn algorithm(&self) -> &str {
        self.0.split_once(':').map_or("", |(algorithm, _)| algorithm)
    }

    /// The hexadecimal part: 64 or 128 characters of `[0-9a-f]`.
    #[must_use]
    pub fn hex(&self) -> &str {
        self.0.split_once(':').map_or("", |(_, hex)| hex)
    }

    /// The whole text, `sha256:...`.
    #[must_use]
    pub fn as_str(&self) -> &str {
        &self.0
    }
}

impl FromStr for Digest {
    type Err = DigestError;

    fn from_str(text: &str) -> Result<Self, DigestError> {
        let shorten = || text.chars().take(200).collect::<String>();
        let (algorithm, hex) = text.split_once(':').ok_or_else(|| DigestError::Shape(shorten()))?;
        let length = match algorithm {
            "sha256" => 64,
            "sha512" => 128,
            _ => return Err(DigestError::Algorithm(algorithm.chars().take(40).collect())),
        };
        if hex.len() != length || !hex.bytes().all(|b| matches!(b, b'0'..=b'9' | b'a'..=b'f')) {
            return Err(DigestError::Hex(shorten(), length));
        }
        Ok(Self(text.to_owned()))
    }
}

impl fmt::Display for Digest {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        out.write_str(&self.0)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_exact_digests_parse() {
        let good = format!("sha256:{}", "0f".repeat(32));
        assert_eq!(good.parse::<Digest>().unwrap().as_str(), good);
        for bad in [
            "",
            "sha256",
            "sha256:",
            "md5:00",
            "sha256:../../etc/passwd",
            &format!("sha256:{}", "0F".repeat(32)),
            &format!("sha256:{}0", "0f".repeat(32)),
            &format!("sha256:{}/", "0f".repeat(31)),
        ] {
            assert!(bad.parse::<Digest>().is_err(), "{bad}");
        }
        assert_eq!(Digest::from_sha256(&[0x0f; 32]).as_str(), good);
    }
}
