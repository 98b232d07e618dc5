//! How a machine becomes part of the cluster: it shows a token, and gets a certificate for its key and what it must know.
//!
//! A token is `coracle-ROLE-ID-SECRET-PIN`: its role (`node` or `server`), eight letters that name it, 32 letters that prove it,
//! and the beginning of the SHA-256 of the authority's certificate, by which the machine knows whom it talks to before it trusts
//! anybody. The cluster keeps a Secret with the SHA-256 of the secret part, so that nobody who reads it can join.

use std::net::IpAddr;

use base64::Engine as _;
use coracle_api::{Memory, ProposeError};
use coracle_base::level::{LEVEL, Level, Release};
use coracle_store::{Key, Op, View};
use serde::{Deserialize, Serialize};
use sha2::{Digest as _, Sha256};
use subtle::ConstantTimeEq as _;

use crate::cidr::Cidr;
use crate::now;
use crate::pki::{Authority, NODES};

/// Where tokens are kept.
pub const NAMESPACE: &str = "kube-system";
/// The type of their Secrets.
pub const SECRET_TYPE: &str = "coracle.dev/join-token";
/// Letters of the pin.
const PIN: usize = 32;

/// A token, taken apart.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Token {
    /// Whether its holder may become a server.
    pub server: bool,
    /// Names it.
    pub id: String,
    /// Proves it.
    pub secret: String,
    /// Pins the authority.
    pub pin: String,
}

impl Token {
    /// A new one for a cluster of this authority.
    #[must_use]
    pub fn new(server: bool, ca_pem: &str) -> Self {
        let letters = |count: usize| -> String {
            let alphabet = b"abcdefghijklmnopqrstuvwxyz234567";
            (0..count).map(|_| char::from(alphabet[usize::from(rand::random::<u8>() & 31)])).collect()
        };
        Self { server, id: letters(8), secret: letters(32), pin: pin(ca_pem) }
    }

    /// The text a user copies.
    #[must_use]
    pub fn text(&self) -> String {
        let role = if self.server { "server" } else { "node" };
        format!("coracle-{role}-{}-{}-{}", self.id, self.secret, self.pin)
    }

    /// The reverse; `None` for what is no token.
    #[must_use]
    pub fn parse(text: &str) -> Option<Self> {
        let parts: Vec<&str> = text.trim().split('-').collect();
        let ["coracle", role, id, secret, pin] = parts.as_slice() else { return None };
        let server = match *role {
            "server" => true,
            "node" => false,
            _ => return None,
        };
        let plain = |part: &str| {
            !part.is_empty() && part.bytes().all(|byte| byte.is_ascii_lowercase() || byte.is_ascii_digit())
        };
        let whole = [*id, *secret, *pin].into_iter().all(plain) && pin.len() == PIN;
        whole.then(|| Self { server, id: (*id).to_owned(), secret: (*secret).to_owned(), pin: (*pin).to_owned() })
    }

    /// The name of its Secret.
    #[must_use]
    pub fn name(&self) -> String {
        format!("join-token-{}", self.id)
    }

    /// What the cluster keeps, valid for so many milliseconds; `None`: for ever.
    #[must_use]
    pub fn kept(&self, valid_ms: Option<u64>) -> serde_json::Value {
        let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let until = valid_ms.map_or_else(|| "never".to_owned(), |valid| (now::ms() + valid).to_string());
        serde_json::json!({
            "apiVersion": "v1",
            "kind": "Secret",
            "type": SECRET_TYPE,
            "metadata": {"name": self.name(), "namespace": NAMESPACE},
            "data": {
                "id": base64(&self.id),
                "role": base64(if self.server { "server" } else { "node" }),
                "secretSha256": base64(&hex(&Sha256::digest(self.secret.as_bytes()))),
                "expiresAtMs": base64(&until),
            },
        })
    }
}

/// Makes a token and keeps it in the cluster, valid for so many milliseconds.
///
/// # Errors
/// The cluster does not take it.
pub async fn create(
    memory: &dyn Memory,
    ca_pem: &str,
    server: bool,
    valid_ms: Option<u64>,
) -> Result<Token, ProposeError> {
    let token = Token::new(server, ca_pem);
    let mut value = token.kept(valid_ms);
    value["metadata"]["uid"] = serde_json::json!(uuid::Uuid::new_v4().to_string());
    value["metadata"]["creationTimestamp"] = serde_json::json!(now::rfc3339());
    let key = Key::new("secrets", NAMESPACE, token.name());
    memory.propose(Op::Create { key, value: std::sync::Arc::new(value), claims: Vec::new() }.into()).await?;
    Ok(token)
}

fn hex(bytes: &[u8]) -> String {
    bytes.iter().map(|byte| format!("{byte:02x}")).collect()
}

/// By which a machine that joins knows the authority.
#[must_use]
pub fn pin(ca_pem: &str) -> String {
    hex(&Sha256::digest(ca_pem.trim().as_bytes()))[..PIN].to_owned()
}

/// What a machine that joins says.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct JoinRequest {
    /// The token's text.
    pub token: String,
    /// The machine's name.
    pub node: String,
    /// The address others reach it at.
    pub address: IpAddr,
    /// Whether it wants to be a server too.
    pub server: bool,
    /// A signing request for the node's key, PEM.
    pub request: String,
    /// Of the release that asks; the first one did not state it.
    #[serde(default)]
    pub level: Level,
    /// The same for people.
    #[serde(default)]
    pub version: String,
}

/// What it gets.
#[derive(Debug, Clone, Serialize, Deserialize)]
pub struct Joined {
    /// Names the cluster, hexadecimal.
    pub cluster: String,
    /// The authority's certificate, PEM.
    pub ca: String,
    /// The authority's key, PEM: for servers.
    pub ca_key: Option<String>,
    /// The node's certificate, PEM.
    pub certificate: String,
    /// Where servers listen for agents and servers.
    pub servers: Vec<String>,
    /// All pods.
    pub cluster_cidr: String,
    /// All services.
    pub service_cidr: String,
    /// The domain of service names.
    pub domain: String,
    /// The prefix length of a node's block.
    pub node_prefix: u8,
    /// Of the release that answers; the first one did not state it.
    #[serde(default)]
    pub level: Level,
    /// The same for people.
    #[serde(default)]
    pub version: String,
}

impl Joined {
    /// Why this release cannot join there; `None` when it can.
    #[must_use]
    pub fn refusal(&self) -> Option<String> {
        Release::own().refuses(&Release::stated(self.level, &self.version))
    }
}

/// Why a machine may not join: HTTP status and words.
pub type Refusal = (u16, String);

/// What a server needs to let machines in.
pub struct Gate {
    /// Signs.
    pub authority: std::sync::Arc<Authority>,
    /// Hexadecimal.
    pub cluster: String,
    /// Pods.
    pub cluster_cidr: Cidr,
    /// Services.
    pub service_cidr: Cidr,
    /// `cluster.local`
    pub domain: String,
    /// Of a node's block.
    pub node_prefix: u8,
}

impl Gate {
    /// Lets a machine in.
    ///
    /// # Errors
    /// The token is not good for it; its name is another's.
    pub fn admit(&self, view: &View, asked: &JoinRequest, servers: Vec<String>) -> Result<Joined, Refusal> {
        let token = Token::parse(&asked.token).ok_or_else(|| (400, "that is not a token".to_owned()))?;
        self.check(view, &token, asked.server)?;
        check_level(view, asked)?;
        if !coracle_manifests::validate::is_subdomain(&asked.node) {
            return Err((400, format!("`{}` cannot be a node's name", asked.node)));
        }
        // A name is its holder's as long as the machine lives: whoever has a token must not take a running node's place.
        if let Some(node) = view.find("nodes", "", &asked.node)
            && coracle_manifests::view::is_true(node.tree(), "Ready")
        {
            return Err((
                409,
                format!(
                    "a node called {} is part of the cluster and running\nhint: give this machine another name with --node-name, or remove the old one first: `coracle delete node {}`",
                    asked.node, asked.node
                ),
            ));
        }
        let user = format!("system:node:{}", asked.node);
        let certificate = self
            .authority
            .sign_request(&asked.request, &user, NODES)
            .map_err(|error| (400, coracle_base::one_line(&error)))?;
        let ca_key = if asked.server { Some(self.authority.key_pem().to_owned()) } else { None };
        tracing::info!(node = asked.node, address = %asked.address, server = asked.server, token = token.id, "a machine joins");
        Ok(Joined {
            cluster: self.cluster.clone(),
            ca: self.authority.cert_pem().to_owned(),
            ca_key,
            certificate,
            servers,
            cluster_cidr: self.cluster_cidr.to_string(),
            service_cidr: self.service_cidr.to_string(),
            domain: self.domain.clone(),
            node_prefix: self.node_prefix,
            level: LEVEL,
            version: env!("CARGO_PKG_VERSION").to_owned(),
        })
    }

    fn check(&self, view: &View, token: &Token, server: bool) -> Result<(), Refusal> {
        // One answer to all that is wrong with a token: nothing is learned by trying.
        let refused = || {
            (403, "the token is not known, has expired or was revoked\nhint: make a new one on a server with `coracle token create`".to_owned())
        };
        let stored = view.find("secrets", NAMESPACE, &token.name()).ok_or_else(refused)?;
        let tree = stored.tree();
        let field = |name: &str| {
            let text = tree["data"][name].as_str().unwrap_or_default();
            let bytes = base64::engine::general_purpose::STANDARD.decode(text).unwrap_or_default();
            String::from_utf8(bytes).unwrap_or_default()
        };
        let hash = hex(&Sha256::digest(token.secret.as_bytes()));
        let same = bool::from(hash.as_bytes().ct_eq(field("secretSha256").as_bytes()));
        let until = field("expiresAtMs");
        let fresh = until == "never" || until.parse::<u64>().is_ok_and(|until| now::ms() < until);
        if tree["type"] != SECRET_TYPE || !same || !fresh {
            return Err(refused());
        }
        if server && field("role") != "server" {
            return Err((
                403,
                "this token lets nodes in, not servers\nhint: make one with `coracle token create --server`".to_owned(),
            ));
        }
        Ok(())
    }
}

/// Whether a release is new enough to become a node here, or a server.
fn check_level(view: &View, asked: &JoinRequest) -> Result<(), Refusal> {
    let release = Release::stated(asked.level, &asked.version);
    if let Some(reason) = Release::own().refuses(&release) {
        return Err((409, reason));
    }
    let level = view.level();
    if asked.server && release.level < level {
        return Err((
            409,
            format!(
                "it has {release}, and the cluster is at level {level}: every server must know that level\nhint: install {} there, which this server runs",
                Release::own()
            ),
        ));
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_token_is_read_as_it_was_written() {
        let token = Token::new(true, "pem");
        assert_eq!(Token::parse(&token.text()), Some(token.clone()));
        for bad in ["", "coracle-node-a-b", "coracle-king-a-b-c", "x-node-a-b-c", "coracle-node-a--c"] {
            assert_eq!(Token::parse(bad), None, "{bad}");
        }
        assert!(!token.kept(None).to_string().contains(&token.secret));
    }
}
