//! A door with a memory of its own behind it, and the ways in: raw TLS, HTTP requests, real kubectl.
#![allow(dead_code, reason = "every test binary uses a part of it")]

pub mod client;
pub mod fake;
pub mod kubectl;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use coracle_api::{ApiConfig, ApiMetrics, Patience, ServiceAddresses, Tls, serve_with};
use rcgen::{
    BasicConstraints, CertificateParams, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
    SanType,
};
use tokio_util::sync::CancellationToken;

pub use client::Client;
pub use fake::Fake;

/// A running door. It closes when this is dropped.
pub struct World {
    pub address: SocketAddr,
    pub cluster: Arc<Fake>,
    pub metrics: ApiMetrics,
    pub authority: Authority,
    pub admin: Leaf,
    pub drain: CancellationToken,
}

impl Drop for World {
    fn drop(&mut self) {
        self.drain.cancel();
    }
}

/// A certificate and its key, PEM.
#[derive(Clone)]
pub struct Leaf {
    pub cert_pem: String,
    pub key_pem: String,
}

/// A certificate authority of this test alone.
pub struct Authority {
    pub cert_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl Authority {
    pub fn new() -> Self {
        let key = KeyPair::generate().unwrap();
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, "test authority");
        params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::DigitalSignature];
        let cert_pem = params.self_signed(&key).unwrap().pem();
        Self { cert_pem, issuer: Issuer::new(params, key) }
    }

    pub fn client(&self, user: &str, groups: &[&str]) -> Leaf {
        let mut params = CertificateParams::new(Vec::<String>::new()).unwrap();
        params.distinguished_name.push(DnType::CommonName, user);
        for group in groups {
            params.distinguished_name.push(DnType::OrganizationName, *group);
        }
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        self.sign(&params)
    }

    pub fn server(&self) -> Leaf {
        let mut params = CertificateParams::new(vec!["localhost".to_owned()]).unwrap();
        params.subject_alt_names.push(SanType::IpAddress(IpAddr::V4(Ipv4Addr::LOCALHOST)));
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        self.sign(&params)
    }

    fn sign(&self, params: &CertificateParams) -> Leaf {
        let key = KeyPair::generate().unwrap();
        let cert_pem = params.signed_by(&key, &self.issuer).unwrap().pem();
        Leaf { cert_pem, key_pem: key.serialize_pem() }
    }
}

impl World {
    /// A door on a free port of the loopback, with the namespaces of a new cluster behind it.
    pub async fn open() -> Self {
        Self::with(Fake::new(1 << 24)).await
    }

    /// A door that waits for nobody longer than a second.
    pub async fn impatient() -> Self {
        let second = Duration::from_secs(1);
        let patience = Patience { handshake: second, head: second, stranger: second, body: second };
        Self::build(Fake::new(1 << 24), patience).await
    }

    /// A door before this memory.
    pub async fn with(cluster: Fake) -> Self {
        Self::build(cluster, Patience::default()).await
    }

    async fn build(cluster: Fake, patience: Patience) -> Self {
        let cluster = Arc::new(cluster);
        let authority = Authority::new();
        let server = authority.server();
        let (drain, metrics) = (CancellationToken::new(), ApiMetrics::default());
        let config = ApiConfig {
            listen: (Ipv4Addr::LOCALHOST, 0).into(),
            tls: Tls {
                cert_pem: server.cert_pem,
                key_pem: server.key_pem,
                client_ca_pem: authority.cert_pem.clone(),
                live: None,
            },
            services: ServiceAddresses { base: Ipv4Addr::new(10, 43, 0, 0), prefix: 16 },
            metrics: metrics.clone(),
        };
        let address = serve_with(config, cluster.clone(), drain.clone(), patience).await.unwrap();
        let admin = authority.client("kubernetes-admin", &["system:masters"]);
        Self { address, cluster, metrics, authority, admin, drain }
    }

    /// A client that may do everything.
    pub fn admin(&self) -> Client {
        Client::new(self, Some(&self.admin))
    }

    /// A client that shows no certificate.
    pub fn stranger(&self) -> Client {
        Client::new(self, None)
    }
}

/// Waits until `done` holds, and says what it still misses when it never does.
pub async fn until(what: &str, mut done: impl FnMut() -> bool) {
    let waited = tokio::time::timeout(Duration::from_secs(20), async {
        let mut tick = tokio::time::interval(Duration::from_millis(5));
        while !done() {
            tick.tick().await;
        }
    });
    assert!(waited.await.is_ok(), "still missing after 20 s: {what}");
}
