//! Why a registry could not be used.

/// One request, or the exchange around it, that failed. Addresses are shown without their query: it may hold a signature.
#[derive(Debug, thiserror::Error)]
#[non_exhaustive]
pub enum RegistryError {
    /// The name or address of the registry makes no URL.
    #[error("`{0}` makes no address")]
    Address(String),
    /// A certificate of the options is none.
    #[error("the additional certificate authority is not usable: {0}")]
    Authority(String),
    /// Nobody answers.
    #[error(
        "cannot reach the registry {host}: {why}\n  hint: is the name right, is the registry up? Without TLS only one on the loopback is used; an image that is a file comes in with `coracle image import FILE`"
    )]
    Connect {
        /// Host and port.
        host: String,
        /// The innermost reason; those around it only say "client error".
        why: String,
        /// There is no such name, or nobody listens there: asking again at once is of no use.
        futile: bool,
    },
    /// No byte came for too long.
    #[error("{url} was silent for {ms} ms")]
    Silent {
        /// What was asked for.
        url: String,
        /// How long.
        ms: u64,
    },
    /// It is not there.
    #[error("{url} is not there")]
    Missing {
        /// What was asked for.
        url: String,
    },
    /// The registry wants to know who we are.
    #[error("{url} is refused ({status}): {said}\n  hint: a private image needs a login, which is not supported yet")]
    Denied {
        /// What was asked for.
        url: String,
        /// The status code.
        status: u16,
        /// The registry's words.
        said: String,
    },
    /// Another status than expected.
    #[error("{url} answers {status}: {said}")]
    Status {
        /// What was asked for.
        url: String,
        /// The status code.
        status: u16,
        /// The registry's words.
        said: String,
    },
    /// A redirect that is not followed.
    #[error("{url} leads to {target}, which is not followed: {why}")]
    Redirect {
        /// What was asked for.
        url: String,
        /// Where it leads.
        target: String,
        /// Why not.
        why: &'static str,
    },
    /// A token service that is not asked.
    #[error("the registry names the token service {realm}, which is not asked: {why}")]
    Realm {
        /// The realm of the challenge.
        realm: String,
        /// Why not.
        why: &'static str,
    },
    /// The token service's answer is of no use.
    #[error("the token service {realm} gave no token")]
    Token {
        /// The realm of the challenge.
        realm: String,
    },
    /// A body that ends early or breaks off.
    #[error("{url} broke off after {got} of {expected} bytes")]
    Cut {
        /// What was asked for.
        url: String,
        /// Bytes that came.
        got: u64,
        /// Bytes that should have come.
        expected: u64,
        /// Why, where the connection said.
        #[source]
        source: Option<Box<dyn std::error::Error + Send + Sync>>,
    },
    /// More bytes than allowed or promised.
    #[error("{url} gives more than {limit} bytes")]
    TooMuch {
        /// What was asked for.
        url: String,
        /// The limit.
        limit: u64,
    },
    /// A range was asked for and another one came.
    #[error("{url} answers another range than bytes {wanted}-")]
    Range {
        /// What was asked for.
        url: String,
        /// Where it should begin.
        wanted: u64,
    },
}

impl RegistryError {
    /// Whether asking again may help.
    pub(crate) fn passes(&self) -> bool {
        match self {
            // A host nobody knows will not be known a second later, and whoever waits should hear of it; the pod worker's next
            // attempt is soon enough.
            Self::Connect { futile, .. } => !futile,
            Self::Silent { .. } | Self::Cut { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}

impl RegistryError {
    /// From what the HTTP client says about a connection that did not come about, or broke before the answer.
    pub(crate) fn connect(host: String, error: &(dyn std::error::Error + 'static)) -> Self {
        let links = || std::iter::successors(Some(error), |error| error.source());
        let is_futile = |error: &std::io::Error| {
            matches!(error.kind(), std::io::ErrorKind::NotFound | std::io::ErrorKind::ConnectionRefused)
        };
        let futile = links().filter_map(|error| error.downcast_ref()).any(is_futile);
        let why = links().last().map(ToString::to_string).unwrap_or_default();
        Self::Connect { host, why, futile }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::io::{Error, ErrorKind};

    #[test]
    fn only_what_may_change_is_tried_again() {
        let connect = |kind: ErrorKind| {
            let inner = Some(Error::from(kind).into());
            let outer = RegistryError::Cut { url: String::new(), got: 0, expected: 0, source: inner };
            RegistryError::connect("a.b".into(), &outer)
        };
        assert!(connect(ErrorKind::ConnectionReset).passes());
        assert!(!connect(ErrorKind::NotFound).passes() && !connect(ErrorKind::ConnectionRefused).passes());
        assert!(connect(ErrorKind::ConnectionRefused).to_string().contains("a.b: connection refused"));
        let status = |status| RegistryError::Status { url: String::new(), status, said: String::new() };
        assert!(status(429).passes() && status(503).passes() && !status(400).passes() && !status(501).passes());
    }
}
