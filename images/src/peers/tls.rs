//! Who may talk to whom: both ends show a certificate of the cluster's authority.
//!
//! Certificates of nodes carry no host names, so the dialling end checks the chain and then that the holder is the node it meant.

use std::sync::Arc;

use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::CryptoProvider;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls::{ClientConfig, DigitallySignedStruct, RootCertStore, ServerConfig, SignatureScheme};
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use x509_parser::prelude::{FromDer as _, X509Certificate};

use super::PeerIdentity;

const NODE_USER: &str = "system:node:";
const NODE_GROUP: &str = "system:nodes";
/// What the cluster's servers call themselves.
const SERVER_USER: &str = "coracle-server";

/// An identity that makes no TLS.
#[derive(Debug, thiserror::Error)]
#[error("the node's certificate, key or authority cannot be used: {0}")]
pub struct IdentityError(String);

fn bad(error: impl std::fmt::Display) -> IdentityError {
    IdentityError(error.to_string())
}

struct Parts {
    chain: Vec<CertificateDer<'static>>,
    key: PrivateKeyDer<'static>,
    verifier: Arc<dyn ClientCertVerifier>,
    provider: Arc<CryptoProvider>,
}

fn parts(identity: &PeerIdentity) -> Result<Parts, IdentityError> {
    let provider = Arc::new(rustls::crypto::ring::default_provider());
    let chain =
        CertificateDer::pem_slice_iter(identity.cert_pem.as_bytes()).collect::<Result<Vec<_>, _>>().map_err(bad)?;
    let key = PrivateKeyDer::from_pem_slice(identity.key_pem.as_bytes()).map_err(bad)?;
    let mut roots = RootCertStore::empty();
    for certificate in CertificateDer::pem_slice_iter(identity.ca_pem.as_bytes()) {
        roots.add(certificate.map_err(bad)?).map_err(bad)?;
    }
    let verifier =
        WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider.clone()).build().map_err(bad)?;
    Ok(Parts { chain, key, verifier, provider })
}

/// For the serving end.
pub fn server_config(identity: &PeerIdentity) -> Result<Arc<ServerConfig>, IdentityError> {
    let Parts { chain, key, verifier, provider } = parts(identity)?;
    let mut config = ServerConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bad)?
        .with_client_cert_verifier(verifier)
        .with_single_cert(chain, key)
        .map_err(bad)?;
    // Each connection is verified anew.
    config.send_tls13_tickets = 0;
    Ok(Arc::new(config))
}

/// For the dialling end, which means this node and no other.
pub fn client_config(identity: &PeerIdentity, node: &str) -> Result<Arc<ClientConfig>, IdentityError> {
    let Parts { chain, key, verifier, provider } = parts(identity)?;
    let meant = Arc::new(Meant { chain: verifier, node: node.to_owned() });
    let mut config = ClientConfig::builder_with_provider(provider)
        .with_protocol_versions(&[&rustls::version::TLS13])
        .map_err(bad)?
        .dangerous()
        .with_custom_certificate_verifier(meant)
        .with_client_auth_cert(chain, key)
        .map_err(bad)?;
    config.enable_sni = false;
    Ok(Arc::new(config))
}

/// Whether the holder of a verified certificate is a node or a server of the cluster; its name, for the log.
pub fn may_ask(certificates: Option<&[CertificateDer<'_>]>) -> Option<String> {
    let leaf = certificates?.first()?;
    let (user, group) = subject(leaf)?;
    let is_node = group == NODE_GROUP && user.strip_prefix(NODE_USER).is_some_and(|node| !node.is_empty());
    (is_node || user == SERVER_USER).then_some(user)
}

/// CN and O.
fn subject(certificate: &CertificateDer<'_>) -> Option<(String, String)> {
    let (_, certificate) = X509Certificate::from_der(certificate).ok()?;
    let user = certificate.subject().iter_common_name().next()?.as_str().ok()?.to_owned();
    let group = certificate.subject().iter_organization().next().and_then(|name| name.as_str().ok());
    Some((user, group.unwrap_or_default().to_owned()))
}

/// The chain as clients' certificates are checked (a node's is one), then the name.
#[derive(Debug)]
struct Meant {
    chain: Arc<dyn ClientCertVerifier>,
    node: String,
}

impl ServerCertVerifier for Meant {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        _: &ServerName<'_>,
        _: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        self.chain.verify_client_cert(end_entity, intermediates, now)?;
        let holder = subject(end_entity);
        let is_meant = holder
            .as_ref()
            .is_some_and(|(user, group)| group == NODE_GROUP && user.strip_prefix(NODE_USER) == Some(&self.node));
        if is_meant {
            return Ok(ServerCertVerified::assertion());
        }
        let user = holder.map_or_else(|| "nobody".to_owned(), |(user, _)| user);
        Err(rustls::Error::General(format!("the other end is {user:.100}, not {NODE_USER}{}", self.node)))
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls12_signature(message, certificate, signature)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        certificate: &CertificateDer<'_>,
        signature: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        self.chain.verify_tls13_signature(message, certificate, signature)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.chain.supported_verify_schemes()
    }
}
