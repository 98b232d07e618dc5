//! Which objects a person means: `pods`, `deploy/hello`, `svc web db`.

use coracle_manifests::kinds::{self, Kind};

/// A kind and, where one is meant, a name.
#[derive(Debug, Clone, Copy)]
pub struct Target<'a> {
    /// The kind.
    pub kind: &'static Kind,
    /// The object's name; `None` = all of the kind.
    pub name: Option<&'a str>,
}

/// What a person wrote that means nothing here.
#[derive(Debug, thiserror::Error)]
pub enum TargetError {
    /// No such kind.
    #[error("there is no resource type `{word}`{hint}")]
    Kind {
        /// What was written.
        word: String,
        /// A nearby word, or the list.
        hint: String,
    },
    /// Nothing was written.
    #[error("say what to {verb}: a resource type (`pods`), or type and name (`deploy/hello`)")]
    Nothing {
        /// The verb.
        verb: &'static str,
    },
    /// `a/b` after a type.
    #[error("`{0}` mixes the forms: write `TYPE/NAME ...` or `TYPE NAME ...`")]
    Mixed(String),
}

/// Reads `TYPE[,TYPE]`, `TYPE NAME...` or `TYPE/NAME ...`.
///
/// # Errors
/// Unknown types, no words at all, mixed forms.
pub fn targets<'a>(words: &'a [String], verb: &'static str) -> Result<Vec<Target<'a>>, TargetError> {
    let (first, rest) = words.split_first().ok_or(TargetError::Nothing { verb })?;
    if first.contains('/') {
        return words
            .iter()
            .map(|word| {
                let (kind, name) = word.split_once('/').ok_or_else(|| TargetError::Mixed(word.clone()))?;
                Ok(Target { kind: kind_of(kind)?, name: Some(name) })
            })
            .collect();
    }
    if let Some(mixed) = rest.iter().find(|word| word.contains('/')) {
        return Err(TargetError::Mixed(mixed.clone()));
    }
    let mut found = Vec::new();
    for word in first.split(',').filter(|word| !word.is_empty()) {
        let of_word = if word == "all" {
            kinds::KINDS.iter().filter(|kind| kind.categories.contains(&"all")).collect()
        } else {
            vec![kind_of(word)?]
        };
        for kind in of_word {
            if rest.is_empty() {
                found.push(Target { kind, name: None });
            }
            found.extend(rest.iter().map(|name| Target { kind, name: Some(name.as_str()) }));
        }
    }
    Ok(found)
}

fn kind_of(word: &str) -> Result<&'static Kind, TargetError> {
    kinds::by_word(word).ok_or_else(|| {
        let words = kinds::KINDS
            .iter()
            .flat_map(|kind| [kind.plural, kind.singular].into_iter().chain(kind.short_names.iter().copied()));
        let near = coracle_base::nearest(&word.to_ascii_lowercase(), words);
        let hint = near.map_or_else(
            || {
                format!(
                    "\nhint: there are {}",
                    kinds::KINDS.iter().map(|kind| kind.plural).collect::<Vec<_>>().join(", ")
                )
            },
            |near| format!("\nhint: did you mean `{near}`?"),
        );
        TargetError::Kind { word: word.to_owned(), hint }
    })
}

/// The path of a kind's objects: of one namespace, of all (`None`), or of one object.
#[must_use]
pub fn path(kind: &Kind, namespace: Option<&str>, name: Option<&str>) -> String {
    let mut path = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    if let Some(namespace) = namespace.filter(|_| kind.namespaced) {
        path.push_str("/namespaces/");
        path.push_str(&encode(namespace));
    }
    path.push('/');
    path.push_str(kind.plural);
    if let Some(name) = name {
        path.push('/');
        path.push_str(&encode(name));
    }
    path
}

/// Percent-encodes a part of a path or a query.
#[must_use]
pub fn encode(text: &str) -> String {
    let mut out = String::new();
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'.' | b'_' | b'~') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

/// `deployment.apps/hello`, as kubectl names an object.
#[must_use]
pub fn shown(kind: &Kind, name: &str) -> String {
    if kind.group.is_empty() {
        format!("{}/{name}", kind.singular)
    } else {
        format!("{}.{}/{name}", kind.singular, kind.group)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn words(text: &str) -> Vec<String> {
        text.split(' ').map(ToOwned::to_owned).collect()
    }

    #[test]
    fn the_three_forms() {
        let form = |text: &str| {
            targets(&words(text), "get")
                .map(|found| {
                    found
                        .iter()
                        .map(|target| format!("{}:{}", target.kind.plural, target.name.unwrap_or("*")))
                        .collect::<Vec<_>>()
                        .join(" ")
                })
                .map_err(|error| error.to_string())
        };
        assert_eq!(form("po").unwrap(), "pods:*");
        assert_eq!(form("po,svc").unwrap(), "pods:* services:*");
        assert_eq!(form("deploy a b").unwrap(), "deployments:a deployments:b");
        assert_eq!(form("deploy/a svc/b").unwrap(), "deployments:a services:b");
        assert!(form("deploymnet").unwrap_err().contains("did you mean `deployment`"));
        assert!(form("deploy svc/b").unwrap_err().contains("mixes"));
    }

    #[test]
    fn paths_are_encoded() {
        let kind = kinds::by_word("deploy").unwrap();
        assert_eq!(path(kind, Some("a/b"), Some("x y")), "/apis/apps/v1/namespaces/a%2Fb/deployments/x%20y");
    }
}
