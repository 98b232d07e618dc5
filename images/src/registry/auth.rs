//! The bearer token dance without a password (distribution `docs/content/spec/auth/token.md`).

use http::{HeaderMap, Uri, header};

use super::error::RegistryError;

/// Where a token is to be had, and for what.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Challenge {
    pub realm: String,
    pub service: Option<String>,
    pub scope: Option<String>,
}

/// The bearer challenge among the headers of a 401.
pub fn challenge(headers: &HeaderMap) -> Option<Challenge> {
    headers.get_all(header::WWW_AUTHENTICATE).iter().filter_map(|value| parse(value.to_str().ok()?)).next()
}

fn parse(text: &str) -> Option<Challenge> {
    // Other schemes may come before it in the same header.
    let at = text.to_ascii_lowercase().find("bearer ")?;
    let mut rest = &text[at + "bearer ".len()..];
    let mut challenge = Challenge { realm: String::new(), service: None, scope: None };
    while let Some((key, after)) = rest.split_once('=') {
        let key = key.trim_matches([' ', ',', '\t']).to_ascii_lowercase();
        let (value, after) = match after.strip_prefix('"') {
            Some(quoted) => quoted.split_once('"')?,
            None => after.split_once(',').unwrap_or((after, "")),
        };
        match key.as_str() {
            "realm" => value.clone_into(&mut challenge.realm),
            "service" => challenge.service = Some(value.to_owned()),
            "scope" => challenge.scope = Some(value.to_owned()),
            _ => {}
        }
        rest = after;
    }
    (!challenge.realm.is_empty()).then_some(challenge)
}

impl Challenge {
    /// The request for a token. The realm comes from outside: it must speak TLS, unless the registry itself does not and the
    /// realm's host is one of those that need not either (CVE-2026-33540 and others: realms that were followed blindly).
    pub fn url(&self, scope: &str, plain_allowed: impl Fn(&Uri) -> bool) -> Result<Uri, RegistryError> {
        let refuse = |why| RegistryError::Realm { realm: self.realm.chars().take(200).collect(), why };
        let realm: Uri = self.realm.parse().map_err(|_| refuse("it is no address"))?;
        match realm.scheme_str() {
            Some("https") => {}
            Some("http") if plain_allowed(&realm) => {}
            Some("http") => return Err(refuse("it does not use TLS")),
            _ => return Err(refuse("it is no https address")),
        }
        if realm.authority().is_none_or(|authority| authority.as_str().contains('@')) {
            return Err(refuse("it has no plain host"));
        }
        let mut url = self.realm.clone();
        url.push(if realm.query().is_some() { '&' } else { '?' });
        if let Some(service) = &self.service {
            url.push_str("service=");
            url.push_str(&escape(service));
            url.push('&');
        }
        url.push_str("scope=");
        url.push_str(&escape(self.scope.as_deref().unwrap_or(scope)));
        url.parse().map_err(|_| refuse("it is no address"))
    }
}

/// Percent-encoding of a query value.
fn escape(text: &str) -> String {
    let mut out = String::with_capacity(text.len());
    for byte in text.bytes() {
        if byte.is_ascii_alphanumeric() || matches!(byte, b'-' | b'_' | b'.' | b'~' | b'/' | b':' | b',') {
            out.push(char::from(byte));
        } else {
            out.push_str(&format!("%{byte:02X}"));
        }
    }
    out
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn challenges_of_the_wild_are_read() {
        let challenge = parse(r#"Bearer realm="https://auth.example.com/token",service="registry.example.com",scope="repository:a/b:pull,push""#).unwrap();
        assert_eq!(challenge.realm, "https://auth.example.com/token");
        assert_eq!(challenge.scope.as_deref(), Some("repository:a/b:pull,push"));
        assert_eq!(
            challenge.url("x", |_| false).unwrap(),
            "https://auth.example.com/token?service=registry.example.com&scope=repository:a/b:pull,push"
        );
        let mixed = parse(r#"Basic realm="x", bearer realm="https://a.b/t?x=1", error=invalid"#).unwrap();
        assert_eq!(
            mixed.url("repository:a b:pull", |_| false).unwrap(),
            "https://a.b/t?x=1&scope=repository:a%20b:pull"
        );
        assert_eq!(parse("Basic realm=\"x\""), None);
        assert_eq!(parse("Bearer realm=\"x"), None);
        assert_eq!(parse("Bearer"), None);
    }

    #[test]
    fn a_realm_must_be_one_we_may_ask() {
        let url = |realm: &str| Challenge { realm: realm.into(), service: None, scope: None }.url("x", |_| false);
        for (realm, word) in [
            ("http://a.b/token", "TLS"),
            ("file:///etc/passwd", "address"),
            ("/token", "https"),
            ("https://user:pass@a.b/token", "plain host"),
            ("https://a b/", "address"),
        ] {
            let error = url(realm).unwrap_err().to_string();
            assert!(error.contains(word), "{realm}: {error}");
        }
        let plain = Challenge { realm: "http://127.0.0.1/token".into(), service: None, scope: None };
        assert!(plain.url("x", |_| true).is_ok());
    }
}
