//! Image names: grammar and normalisation, as every tool of this field does it.
//!
//! Source: distribution `reference` grammar and containerd `core/remotes/docker`: no dot, colon or `localhost` in the first
//! part means Docker Hub; a single part on Docker Hub gets `library/`; no tag and no digest means `latest`.

use std::fmt;
use std::str::FromStr;

use coracle_base::Digest;

/// The registry of names that name none.
const DEFAULT_REGISTRY: &str = "docker.io";

/// A normalised image name: `docker.io/library/nginx:1.27`.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub struct Reference {
    registry: String,
    repository: String,
    tag: Option<String>,
    digest: Option<Digest>,
}

/// Why a text is not an image name.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{text}` is not an image name: {why}")]
pub struct ReferenceError {
    /// What was given, shortened.
    pub text: String,
    /// What is wrong with it.
    pub why: String,
}

impl Reference {
    /// The registry's host and port: `docker.io`, `registry.example.com:5000`.
    #[must_use]
    pub fn registry(&self) -> &str {
        &self.registry
    }

    /// The path below the registry: `library/nginx`.
    #[must_use]
    pub fn repository(&self) -> &str {
        &self.repository
    }

    /// The tag; `latest` where neither tag nor digest was given, `None` where only a digest was.
    #[must_use]
    pub fn tag(&self) -> Option<&str> {
        self.tag.as_deref()
    }

    /// The digest; it wins over a tag beside it.
    #[must_use]
    pub fn digest(&self) -> Option<&Digest> {
        self.digest.as_ref()
    }

    /// The name without tag and digest: `docker.io/library/nginx`.
    #[must_use]
    pub fn name(&self) -> String {
        format!("{}/{}", self.registry, self.repository)
    }

    /// The same name with this digest and no tag.
    #[must_use]
    pub fn with_digest(&self, digest: Digest) -> Self {
        Self { tag: None, digest: Some(digest), ..self.clone() }
    }
}

impl FromStr for Reference {
    type Err = ReferenceError;

    fn from_str(text: &str) -> Result<Self, ReferenceError> {
        let bad = |why: &str| ReferenceError { text: text.chars().take(256).collect(), why: why.to_owned() };
        if text.is_empty() {
            return Err(bad("it is empty"));
        }
        if text.len() > 1024 {
            return Err(bad("it is too long"));
        }
        let (rest, digest) = match text.split_once('@') {
            Some((rest, digest)) => (rest, Some(digest.parse::<Digest>().map_err(|error| bad(&error.to_string()))?)),
            None => (text, None),
        };
        // A colon after the last slash starts the tag; one before it belongs to the registry's port.
        let slash = rest.rfind('/').map_or(0, |at| at + 1);
        let (name, tag) = match rest[slash..].rfind(':') {
            Some(colon) => (&rest[..slash + colon], Some(&rest[slash + colon + 1..])),
            None => (rest, None),
        };
        if let Some(tag) = tag
            && !is_tag(tag)
        {
            return Err(bad(
                "a tag has 1 to 128 characters of letters, digits, `_`, `.`, `-` and begins with none of the last two",
            ));
        }
        let (registry, path) = match name.split_once('/') {
            Some((first, path)) if first.contains(['.', ':']) || first == "localhost" => (first, path),
            _ => (DEFAULT_REGISTRY, name),
        };
        // The old spelling of the same registry.
        let registry = if registry == "index.docker.io" { DEFAULT_REGISTRY } else { registry };
        if !is_host(registry) {
            return Err(bad("the part before the first slash is not a host with an optional port"));
        }
        let repository = if registry == DEFAULT_REGISTRY && !path.contains('/') {
            format!("library/{path}")
        } else {
            path.to_owned()
        };
        if let Some(part) = repository.split('/').find(|part| !is_component(part)) {
            let hint = if part.bytes().any(|byte| byte.is_ascii_uppercase()) { "; it must be lower case" } else { "" };
            return Err(bad(&format!("`{part}` is not a part of a repository's name{hint}")));
        }
        if registry.len() + repository.len() + 1 > 255 {
            return Err(bad("registry and repository together have more than 255 characters"));
        }
        let tag = match (&digest, tag) {
            (None, None) => Some("latest".to_owned()),
            (_, tag) => tag.map(str::to_owned),
        };
        Ok(Self { registry: registry.to_owned(), repository, tag, digest })
    }
}

impl fmt::Display for Reference {
    fn fmt(&self, out: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(out, "{}/{}", self.registry, self.repository)?;
        if let Some(tag) = &self.tag {
            write!(out, ":{tag}")?;
        }
        if let Some(digest) = &self.digest {
            write!(out, "@{digest}")?;
        }
        Ok(())
    }
}

/// `[A-Za-z0-9_][A-Za-z0-9._-]{0,127}`
fn is_tag(text: &str) -> bool {
    (1..=128).contains(&text.len())
        && !text.starts_with(['.', '-'])
        && text.bytes().all(|byte| byte.is_ascii_alphanumeric() || matches!(byte, b'_' | b'.' | b'-'))
}

/// `[a-z0-9]+((\.|_|__|-+)[a-z0-9]+)*`
fn is_component(text: &str) -> bool {
    let bytes = text.as_bytes();
    let word = |byte: u8| byte.is_ascii_lowercase() || byte.is_ascii_digit();
    if bytes.is_empty() || !word(bytes[0]) || !word(bytes[bytes.len() - 1]) {
        return false;
    }
    bytes
        .split(|byte| word(*byte))
        .all(|between| matches!(between, b"" | b"." | b"_" | b"__") || between.iter().all(|byte| *byte == b'-'))
}

/// A DNS name, an IPv4 address or a bracketed IPv6 address, with an optional port.
fn is_host(text: &str) -> bool {
    let (host, port) = match text.strip_prefix('[') {
        Some(rest) => match rest.split_once(']') {
            Some((address, port)) if address.parse::<std::net::Ipv6Addr>().is_ok() => match port.strip_prefix(':') {
                Some(port) => ("v6", Some(port)),
                None if port.is_empty() => ("v6", None),
                None => return false,
            },
            _ => return false,
        },
        None => match text.split_once(':') {
            Some((host, port)) => (host, Some(port)),
            None => (text, None),
        },
    };
    let label = |label: &str| {
        !label.is_empty()
            && label.len() <= 63
            && !label.starts_with('-')
            && !label.ends_with('-')
            && label.bytes().all(|byte| byte.is_ascii_alphanumeric() || byte == b'-')
    };
    port.is_none_or(|port| {
        port.bytes().all(|byte| byte.is_ascii_digit()) && port.parse::<u16>().is_ok_and(|port| port > 0)
    }) && host.split('.').all(label)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn check(given: &str, expected: &str) {
        let reference: Reference = given.parse().unwrap_or_else(|error| panic!("{error}"));
        assert_eq!(reference.to_string(), expected, "{given}");
        assert_eq!(expected.parse::<Reference>().unwrap(), reference, "normalising twice changes nothing");
    }

    #[test]
    fn names_are_normalised_as_everywhere() {
        let digest = format!("sha256:{}", "ab".repeat(32));
        check("nginx", "docker.io/library/nginx:latest");
        check("nginx:1.27", "docker.io/library/nginx:1.27");
        check("bitnami/redis", "docker.io/bitnami/redis:latest");
        check("docker.io/nginx", "docker.io/library/nginx:latest");
        check("index.docker.io/library/nginx", "docker.io/library/nginx:latest");
        check("localhost/app", "localhost/app:latest");
        check("localhost:5000/app:v1", "localhost:5000/app:v1");
        check("registry:5000/app", "registry:5000/app:latest");
        check("coracle.local/hello:1", "coracle.local/hello:1");
        check("[::1]:5000/a/b__c", "[::1]:5000/a/b__c:latest");
        check(&format!("nginx@{digest}"), &format!("docker.io/library/nginx@{digest}"));
        check(&format!("nginx:1@{digest}"), &format!("docker.io/library/nginx:1@{digest}"));
        check("a.b/c-d--e/f.g_h", "a.b/c-d--e/f.g_h:latest");
    }

    #[test]
    fn what_is_not_a_name_is_refused_with_its_reason() {
        for (bad, word) in [
            ("", "empty"),
            ("Nginx", "lower case"),
            ("a.b/App", "lower case"),
            ("nginx:", "tag"),
            ("nginx:-x", "tag"),
            (&format!("nginx:{}", "a".repeat(129)), "tag"),
            ("nginx@sha256:abc", "hexadecimal"),
            ("nginx@md5:abc", "algorithm"),
            ("../etc/passwd", "host"),
            ("a.b/../c", "part of"),
            ("a.b//c", "part of"),
            ("a.b/c/", "part of"),
            ("a.b:99999/c", "host"),
            ("a..b/c", "host"),
            ("-a.b/c", "host"),
            ("http://a.b/c", "host"),
            ("a___b", "part of"),
            (&format!("a.b/{}", "c".repeat(255)), "255"),
            ("a b", "part of"),
        ] {
            let error = bad.parse::<Reference>().expect_err(bad);
            assert!(error.why.contains(word), "{bad}: {error}");
        }
    }
}
