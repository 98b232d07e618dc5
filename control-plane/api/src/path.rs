//! Paths and queries: which resource a request is about.

use coracle_manifests::kinds::{self, Kind};

use crate::reviews::{REVIEWS, Review};

/// What a path means.
#[derive(Debug, PartialEq, Eq)]
pub(crate) enum Route {
    Version,
    /// The certificate of the authority, for a machine that is about to join.
    Authority,
    /// A machine joins.
    Join,
    /// The whole state.
    Backup,
    /// The cluster's servers.
    Servers,
    /// One of them, by its number, is taken out.
    RemoveServer(String),
    Health,
    Core,
    Groups,
    Group(String),
    GroupVersion {
        group: String,
        version: String,
    },
    OpenApi2,
    OpenApi3,
    OpenApi3Group {
        group: String,
        version: String,
    },
    Review(Review),
    Resource(Place),
    Unknown,
}

/// A collection or an object.
#[derive(Debug, PartialEq, Eq)]
pub(crate) struct Place {
    pub(crate) kind: &'static Kind,
    pub(crate) namespace: Option<String>,
    pub(crate) name: Option<String>,
    pub(crate) sub: Option<String>,
}

/// Reads a path; a trailing slash does not matter.
pub(crate) fn route(path: &str) -> Route {
    let parts: Vec<String> = path.split('/').filter(|part| !part.is_empty()).map(decode).collect();
    let parts: Vec<&str> = parts.iter().map(String::as_str).collect();
    match parts.as_slice() {
        ["version"] => Route::Version,
        ["coracle.dev", "v1", "authority"] => Route::Authority,
        ["coracle.dev", "v1", "join"] => Route::Join,
        ["coracle.dev", "v1", "backup"] => Route::Backup,
        ["coracle.dev", "v1", "servers"] => Route::Servers,
        ["coracle.dev", "v1", "servers", id, "remove"] => Route::RemoveServer((*id).to_owned()),
        ["healthz" | "livez" | "readyz", ..] => Route::Health,
        ["api"] => Route::Core,
        ["apis"] => Route::Groups,
        ["openapi", "v2"] => Route::OpenApi2,
        ["openapi", "v3"] => Route::OpenApi3,
        ["openapi", "v3", "api", version] => {
            Route::OpenApi3Group { group: String::new(), version: (*version).to_owned() }
        }
        ["openapi", "v3", "apis", group, version] => {
            Route::OpenApi3Group { group: (*group).to_owned(), version: (*version).to_owned() }
        }
        ["api", version] => Route::GroupVersion { group: String::new(), version: (*version).to_owned() },
        ["apis", group] => Route::Group((*group).to_owned()),
        ["apis", group, version] => Route::GroupVersion { group: (*group).to_owned(), version: (*version).to_owned() },
        ["api", version, rest @ ..] => resource("", version, rest),
        ["apis", group, "v1", plural] if review(group, plural).is_some() => {
            review(group, plural).map_or(Route::Unknown, Route::Review)
        }
        ["apis", group, version, rest @ ..] => resource(group, version, rest),
        _ => Route::Unknown,
    }
}

fn review(group: &str, plural: &str) -> Option<Review> {
    REVIEWS.iter().find(|(of, name, _, _)| (*of, *name) == (group, plural)).map(|(_, _, _, review)| *review)
}

fn resource(group: &str, version: &str, rest: &[&str]) -> Route {
    let own = |text: &str| Some(text.to_owned());
    let place = |plural: &str, namespace: Option<String>, tail: &[&str]| {
        let Some(kind) = kinds::by_path(group, version, plural) else { return Route::Unknown };
        if namespace.is_some() && !kind.namespaced || tail.len() > 2 {
            return Route::Unknown;
        }
        // An object of a namespaced kind has a namespace in its path.
        if !tail.is_empty() && kind.namespaced && namespace.is_none() {
            return Route::Unknown;
        }
        let (name, sub) = (tail.first().and_then(|name| own(name)), tail.get(1).and_then(|sub| own(sub)));
        Route::Resource(Place { kind, namespace, name, sub })
    };
    match rest {
        // `namespaces/x/status` is of the namespace itself; `namespaces/x/pods` is not.
        ["namespaces", name, sub @ ("status" | "finalize")] if group.is_empty() => {
            place("namespaces", None, &[name, sub])
        }
        ["namespaces", namespace, plural, tail @ ..] => place(plural, own(namespace), tail),
        [plural, tail @ ..] => place(plural, None, tail),
        [] => Route::Unknown,
    }
}

/// Percent-decoding; what is not well-formed stays as it is.
pub(crate) fn decode(text: &str) -> String {
    let bytes = text.as_bytes();
    let mut out = Vec::with_capacity(bytes.len());
    let mut at = 0;
    while at < bytes.len() {
        let hex = |at: usize| bytes.get(at).and_then(|byte| char::from(*byte).to_digit(16));
        if bytes[at] == b'%'
            && let (Some(high), Some(low)) = (hex(at + 1), hex(at + 2))
        {
            out.push(u8::try_from(high * 16 + low).unwrap_or(b'?'));
            at += 3;
        } else {
            out.push(bytes[at]);
            at += 1;
        }
    }
    String::from_utf8_lossy(&out).into_owned()
}

/// A query's parameters.
#[derive(Debug, Default)]
pub(crate) struct Query {
    pairs: Vec<(String, String)>,
}

impl Query {
    pub(crate) fn parse(query: Option<&str>) -> Self {
        let pairs = query
            .unwrap_or_default()
            .split('&')
            .filter(|pair| !pair.is_empty())
            .take(100)
            .map(|pair| {
                let (key, value) = pair.split_once('=').unwrap_or((pair, ""));
                (decode(&key.replace('+', " ")), decode(&value.replace('+', " ")))
            })
            .collect();
        Self { pairs }
    }

    pub(crate) fn get(&self, name: &str) -> Option<&str> {
        self.pairs
            .iter()
            .find(|(key, _)| key == name)
            .map(|(_, value)| value.as_str())
            .filter(|value| !value.is_empty())
    }

    pub(crate) fn all<'a>(&'a self, name: &'a str) -> impl Iterator<Item = &'a str> {
        self.pairs.iter().filter(move |(key, _)| key == name).map(|(_, value)| value.as_str())
    }

    /// `true` and `1` are true.
    pub(crate) fn flag(&self, name: &str) -> bool {
        matches!(self.get(name), Some("true" | "1" | "True"))
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn paths() {
        let shown = |path: &str| match route(path) {
            Route::Resource(place) => {
                format!("{} {:?} {:?} {:?}", place.kind.resource, place.namespace, place.name, place.sub)
            }
            other => format!("{other:?}"),
        };
        assert_eq!(shown("/api/v1/namespaces/a/pods/b/log"), "pods Some(\"a\") Some(\"b\") Some(\"log\")");
        assert_eq!(shown("/api/v1/pods"), "pods None None None");
        assert_eq!(shown("/api/v1/namespaces/a"), "namespaces None Some(\"a\") None");
        assert_eq!(shown("/api/v1/namespaces/a/status"), "namespaces None Some(\"a\") Some(\"status\")");
        assert_eq!(shown("/apis/apps/v1/namespaces/a%2Fb/deployments/"), "deployments.apps Some(\"a/b\") None None");
        assert_eq!(shown("/version/"), "Version");
        for bad in [
            "/",
            "/api/v1/pods/x",
            "/api/v1/namespaces/a/nodes/b",
            "/apis/apps/v2/deployments",
            "/api/v1/namespaces/a/pods/b/c/d",
        ] {
            assert_eq!(shown(bad), "Unknown", "{bad}");
        }
    }

    #[test]
    fn queries() {
        let query = Query::parse(Some("&labelSelector=a%3Db%2Cc&watch=true&x"));
        assert_eq!((query.get("labelSelector"), query.flag("watch"), query.get("x")), (Some("a=b,c"), true, None));
    }
}
