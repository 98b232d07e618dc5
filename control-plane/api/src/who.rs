//! Who asks, and whether they may.

use rustls_pki_types::CertificateDer;
use x509_parser::prelude::{FromDer as _, X509Certificate};

use crate::status::Failure;

/// The one who asks.
#[derive(Debug, Clone, Default, PartialEq, Eq)]
pub(crate) struct Who {
    pub(crate) user: String,
    pub(crate) groups: Vec<String>,
}

/// The holder of a client certificate that TLS has verified: CN is the user, each O a group.
pub(crate) fn of_certificate(certificates: Option<&[CertificateDer<'_>]>) -> Who {
    let anonymous = || Who { user: "system:anonymous".into(), groups: vec!["system:unauthenticated".into()] };
    let Some(leaf) = certificates.and_then(<[_]>::first) else { return anonymous() };
    let Ok((_, certificate)) = X509Certificate::from_der(leaf) else { return anonymous() };
    let text = |part: &x509_parser::x509::AttributeTypeAndValue<'_>| part.as_str().ok().map(ToOwned::to_owned);
    let Some(user) = certificate.subject().iter_common_name().find_map(text) else { return anonymous() };
    let mut groups: Vec<String> = certificate.subject().iter_organization().filter_map(text).collect();
    groups.push("system:authenticated".into());
    Who { user, groups }
}

impl Who {
    /// Administrators may do everything, everybody else nothing yet: roles come later, and until then nothing is given away.
    pub(crate) fn may(&self) -> bool {
        self.groups.iter().any(|group| group == "system:masters")
    }

    /// The answer to one who may not.
    pub(crate) fn refusal(&self) -> Failure {
        if self.groups.iter().any(|group| group == "system:unauthenticated") {
            return Failure::new(
                http::StatusCode::UNAUTHORIZED,
                "Unauthorized",
                "a client certificate of this cluster is needed",
            );
        }
        Failure::forbidden(format!("user \"{}\" may not do this: only members of system:masters may", self.user))
    }
}
