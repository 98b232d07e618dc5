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
        "cannot reach {host}\n  hint: is the name right, is the registry up? A registry without TLS must be named as insecure"
    )]
    Connect {
        /// Host and port.
        host: String,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
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
            Self::Connect { .. } | Self::Silent { .. } | Self::Cut { .. } => true,
            Self::Status { status, .. } => matches!(status, 408 | 425 | 429 | 500 | 502 | 503 | 504),
            _ => false,
        }
    }
}
