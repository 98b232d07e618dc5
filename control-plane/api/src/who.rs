//! Who asks: the holder of a client certificate, of a bearer token, one of them in another's name, or nobody.

use http::HeaderMap;
use http::header::AUTHORIZATION;
use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::facility::Cluster;
use crate::status::Failure;

/// The one who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub struct Who {
    /// The user's name.
    pub user: String,
    /// The groups the user is in.
    pub groups: Vec<String>,
}

/// The group of all who have shown who they are.
const KNOWN: &str = "system:authenticated";
/// Groups that are taken over from `Impersonate-Group` headers.
const MAX_GROUPS: usize = 64;

impl Who {
    /// One who has shown nothing.
    pub(crate) fn nobody() -> Self {
        Self { user: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()] }
    }

    /// Whether it is known who this is.
    pub(crate) fn is_known(&self) -> bool {
        self.groups.iter().any(|group| group == KNOWN)
    }
}

/// The holder of a client certificate that TLS has verified: CN is the user, each O a group.
pub(crate) fn of_certificate(certificates: Option<&[CertificateDer<'_>]>) -> Who {
    let Some(leaf) = certificates.and_then(<[_]>::first) else { return Who::nobody() };
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return Who::nobody() };
    let text = |part: &x509_parser::x509::AttributeTypeAndValue<'_>| part.as_str().ok().map(ToOwned::to_owned);
    let Some(user) = certificate.subject().iter_common_name().find_map(text) else { return Who::nobody() };
    let mut groups: Vec<String> = certificate.subject().iter_organization().filter_map(text).collect();
    groups.push(KNOWN.into());
    Who { user, groups }
}

/// Who a request is from: a certificate comes before a token, and both may be worn in another's name.
pub(crate) async fn of_request(cluster: &dyn Cluster, shown: &Who, headers: &HeaderMap) -> Result<Who, Failure> {
    let mut who = shown.clone();
    let header = |name: &str| headers.get(name).and_then(|value| value.to_str().ok()).map(str::trim);
    if let (false, Some(value)) = (who.is_known(), header(AUTHORIZATION.as_str())) {
        let Some((scheme, token)) = value.split_once(' ').filter(|(scheme, _)| scheme.eq_ignore_ascii_case("bearer"))
        else {
            return Err(Failure::unauthorized("the Authorization header is not `Bearer TOKEN`"));
        };
        let _ = scheme;
        who = match cluster.holder(token.trim()).await {
            Some(holder) => holder,
            None => return Err(Failure::unauthorized("the bearer token is not known here")),
        };
        if !who.is_known() {
            who.groups.push(KNOWN.into());
        }
    }
    let Some(user) = header("impersonate-user") else {
        let other = headers.keys().find(|name| name.as_str().starts_with("impersonate-"));
        return match other {
            Some(name) => Err(Failure::bad_request(format!("the header {name} needs Impersonate-User beside it"))),
            None => Ok(who),
        };
    };
    if !crate::may::all(&who) {
        return Err(Failure::forbidden(format!(
            "users \"{user}\" is forbidden: User \"{}\" cannot impersonate resource \"users\"",
            who.user
        )));
    }
    let wanted = headers.get_all("impersonate-group").iter().filter_map(|value| value.to_str().ok());
    let mut groups: Vec<String> = wanted.take(MAX_GROUPS).map(ToOwned::to_owned).collect();
    if user != "system:anonymous" && !groups.iter().any(|group| group == KNOWN) {
        groups.push(KNOWN.into());
    }
    Ok(Who { user: user.to_owned(), groups })
}
