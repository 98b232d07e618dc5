//! The cluster's own certificate authority and the certificates it signs, kept under `DATA/pki`.
//!
//! The authority is made at first start and lives ten years; leaves live one year and are signed anew at a start when a
//! third of their life or less is left, or when the names they must carry have changed.
//!
//! The authority's key lies sealed with this server's storage key (`STORAGE_KEYS`), which also seals its log. The keys of leaves are
//! plain files with mode 0600: each is worth one machine and a year at most.

use std::io::Write as _;
use std::net::IpAddr;
use std::os::unix::fs::OpenOptionsExt as _;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use coracle_raft::{KeyError, Vault};
use jiff::civil::Date;
use rand::Rng as _;
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType, ExtendedKeyUsagePurpose, IsCa,
    Issuer, KeyPair, KeyUsagePurpose, SanType, SerialNumber,
};
use x509_parser::prelude::{FromDer as _, X509Certificate};

/// The group of agents.
pub const NODES: &str = "system:nodes";
/// The file below `DATA/pki` of the keys that seal what this server stores.
pub const STORAGE_KEYS: &str = "storage.key";
/// The group of servers.
pub const SERVERS: &str = "system:servers";

const AUTHORITY_DAYS: i64 = 3650;
const LEAF_DAYS: i64 = 365;

/// What went wrong with keys and certificates.
#[derive(Debug, thiserror::Error)]
pub enum PkiError {
    /// A file could not be read or written.
    #[error("cannot {action} {path}")]
    File {
        /// `read`, `write`, `create`.
        action: &'static str,
        /// Which file.
        path: PathBuf,
        /// The system's word.
        #[source]
        source: std::io::Error,
    },
    /// Signing or key generation failed.
    #[error("cannot make the certificate of {0}")]
    Sign(String, #[source] rcgen::Error),
    /// One half of the authority is missing, so nothing may be made in its place.
    #[error(
        "{found} is there but {missing} is not: the cluster's authority is incomplete\nhint: restore {missing} from a backup; a new authority would lock every agent and user out"
    )]
    Half {
        /// The file that exists.
        found: PathBuf,
        /// The file that does not.
        missing: PathBuf,
    },
    /// What is stored sealed cannot be opened, or nothing can be sealed.
    #[error(transparent)]
    Key(#[from] KeyError),
    /// The stored authority does not parse.
    #[error("the certificate authority in {0} cannot be read")]
    Authority(PathBuf, #[source] rcgen::Error),
}

/// A certificate (with nothing but itself in the chain) and its private key, PEM.
#[derive(Clone)]
pub struct Credential {
    /// Certificate, PEM.
    pub cert_pem: String,
    /// PKCS #8 private key, PEM.
    pub key_pem: String,
}

impl std::fmt::Debug for Credential {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Credential").finish_non_exhaustive()
    }
}

/// What a leaf says of its holder.
#[derive(Debug, Clone)]
pub struct Subject {
    /// File name in `DATA/pki`, without an ending.
    pub file: &'static str,
    /// CN: the user.
    pub user: String,
    /// O: the group, or empty.
    pub group: &'static str,
    /// DNS names a server answers to.
    pub names: Vec<String>,
    /// Addresses a server answers on.
    pub addresses: Vec<IpAddr>,
    /// Whether it serves.
    pub server: bool,
    /// Whether it dials.
    pub client: bool,
}

/// The authority, ready to sign.
pub struct Authority {
    dir: PathBuf,
    keys: Arc<Vault>,
    cert_pem: String,
    key_pem: String,
    issuer: Issuer<'static, KeyPair>,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, out: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        out.debug_struct("Authority").field("dir", &self.dir).finish_non_exhaustive()
    }
}

impl Authority {
    /// Loads the authority of `dir`, or makes one when there is none yet. `cluster` goes into its name.
    ///
    /// # Errors
    /// Files that cannot be read or written, an authority that is half there, or sealed with a key that is not.
    pub fn open(dir: &Path, cluster: &str) -> Result<Self, PkiError> {
        make_dir(dir)?;
        let keys = storage_keys(dir)?;
        let (cert_path, key_path) = (dir.join("ca.crt"), dir.join("ca.key"));
        let (cert, key) = (read(&cert_path)?, read(&key_path)?);
        let (cert_pem, key_pem) = match (cert, key) {
            (Some(cert), Some(key)) => (cert, open_key(&keys, &key_path, key)?),
            (Some(_), None) => return Err(PkiError::Half { found: cert_path, missing: key_path }),
            // The key is written first: alone it is the trace of a start that was cut short, and has signed nothing.
            (None, _) => make_authority(&keys, &cert_path, &key_path, cluster)?,
        };
        let bad = |source| PkiError::Authority(dir.to_owned(), source);
        let key = KeyPair::from_pem(&key_pem).map_err(bad)?;
        let issuer = Issuer::from_ca_cert_pem(&cert_pem, key).map_err(bad)?;
        Ok(Self { dir: dir.to_owned(), keys, cert_pem, key_pem, issuer })
    }

    /// The authority's certificate, PEM: what clients trust.
    #[must_use]
    pub fn cert_pem(&self) -> &str {
        &self.cert_pem
    }

    /// The authority's private key, PEM: for a server that joins, and for backups.
    #[must_use]
    pub fn key_pem(&self) -> &str {
        &self.key_pem
    }

    /// What seals this server's files.
    #[must_use]
    pub fn keys(&self) -> &Arc<Vault> {
        &self.keys
    }

    /// A certificate for the key of a signing request. Only the key counts: who its holder is says the caller.
    ///
    /// # Errors
    /// The request is none, or is not signed by its key.
    pub fn sign_request(&self, request_pem: &str, user: &str, group: &str) -> Result<String, PkiError> {
        let bad = |source| PkiError::Sign(user.to_owned(), source);
        let mut request = CertificateSigningRequestParams::from_pem(request_pem).map_err(bad)?;
        request.params = self.leaf_params(user, group);
        request.params.extended_key_usages =
            vec![ExtendedKeyUsagePurpose::ClientAuth, ExtendedKeyUsagePurpose::ServerAuth];
        Ok(request.signed_by(&self.issuer).map_err(bad)?.pem())
    }

    fn leaf_params(&self, user: &str, group: &str) -> CertificateParams {
        let today = today();
        let (from, until) = leaf_life(today, birth(&self.cert_pem).unwrap_or(today));
        let mut params = base_params(user, group, from, until);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.use_authority_key_identifier_extension = true;
        params
    }

    /// The stored leaf of `subject`, or a new one where there is none, it ends soon, or its names differ.
    ///
    /// # Errors
    /// Files, signing.
    pub fn leaf(&self, subject: &Subject) -> Result<Credential, PkiError> {
        let cert_path = self.dir.join(format!("{}.crt", subject.file));
        let key_path = self.dir.join(format!("{}.key", subject.file));
        if let (Some(cert_pem), Some(key_pem)) = (read(&cert_path)?, read(&key_path)?)
            && still_good(&cert_pem, &key_pem, subject)
        {
            return Ok(Credential { cert_pem, key_pem });
        }
        let credential = self.sign(subject)?;
        write(&key_path, &credential.key_pem)?;
        write(&cert_path, &credential.cert_pem)?;
        Ok(credential)
    }

    fn sign(&self, subject: &Subject) -> Result<Credential, PkiError> {
        let bad = |source| PkiError::Sign(subject.user.clone(), source);
        let key = KeyPair::generate().map_err(bad)?;
        let mut params = self.leaf_params(&subject.user, subject.group);
        if subject.server {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ServerAuth);
        }
        if subject.client {
            params.extended_key_usages.push(ExtendedKeyUsagePurpose::ClientAuth);
        }
        for name in &subject.names {
            params.subject_alt_names.push(SanType::DnsName(name.as_str().try_into().map_err(bad)?));
        }
        params.subject_alt_names.extend(subject.addresses.iter().map(|address| SanType::IpAddress(*address)));
        let cert = params.signed_by(&key, &self.issuer).map_err(bad)?;
        Ok(Credential { cert_pem: cert.pem(), key_pem: key.serialize_pem() })
    }
}

/// A new key and a request to have it signed, both PEM.
///
/// # Errors
/// No key can be made.
pub fn request(user: &str) -> Result<(String, String), PkiError> {
    let bad = |source| PkiError::Sign(user.to_owned(), source);
    let key = KeyPair::generate().map_err(bad)?;
    let request = CertificateParams::default().serialize_request(&key).map_err(bad)?;
    Ok((request.pem().map_err(bad)?, key.serialize_pem()))
}

/// The authority of a cluster that this machine joins as a server.
///
/// # Errors
/// The files cannot be written.
pub fn adopt(dir: &Path, cert_pem: &str, key_pem: &str) -> Result<(), PkiError> {
    make_dir(dir)?;
    write(&dir.join("ca.key"), &storage_keys(dir)?.seal_text(key_pem)?)?;
    write(&dir.join("ca.crt"), cert_pem)
}

/// The keys that seal what this server stores, from `DATA/pki`.
///
/// # Errors
/// Their file cannot be read.
pub fn storage_keys(dir: &Path) -> Result<Arc<Vault>, PkiError> {
    Ok(Arc::new(Vault::open(&dir.join(STORAGE_KEYS))?))
}

/// The authority's key of what its file says; one that an older release wrote plain, or that an older key seals, is sealed anew.
fn open_key(keys: &Vault, path: &Path, stored: String) -> Result<String, PkiError> {
    let opened = keys.open_text(&stored, &path.display().to_string())?;
    let sealed_with = opened.as_ref().map(|(_, id)| *id);
    let key_pem = opened.map_or(stored, |(text, _)| text);
    if sealed_with.is_none() || sealed_with != keys.in_use() {
        let written = keys.seal_text(&key_pem).map_err(PkiError::from).and_then(|sealed| write(path, &sealed));
        // A full disk keeps no server from starting.
        if let Err(error) = written {
            tracing::warn!(error = %coracle_base::one_line(&error), "the authority's key is not sealed anew");
        }
    }
    Ok(key_pem)
}

/// The day a certificate becomes valid.
fn birth(cert_pem: &str) -> Option<Date> {
    let (_, pem) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()).ok()?;
    let (_, cert) = X509Certificate::from_der(&pem.contents).ok()?;
    let at = jiff::Timestamp::from_second(cert.validity().not_before.timestamp()).ok()?;
    Some(jiff::tz::Offset::UTC.to_datetime(at).date())
}

/// From when to when a leaf is valid that is signed today. It is as old as its authority, and no clock of the cluster is believed that
/// is before that: one signed in 1970 by a machine without a battery would otherwise have ended before it began.
fn leaf_life(today: Date, birth: Date) -> (Date, Date) {
    (birth, after(today.max(birth), LEAF_DAYS))
}

fn make_authority(
    keys: &Vault,
    cert_path: &Path,
    key_path: &Path,
    cluster: &str,
) -> Result<(String, String), PkiError> {
    let name = format!("coracle-ca {cluster}");
    let bad = |source| PkiError::Sign(name.clone(), source);
    let key = KeyPair::generate().map_err(bad)?;
    // A day back, for the other machines' clocks.
    let (from, until) = (after(today(), -1), after(today(), AUTHORITY_DAYS));
    let mut params = base_params(&name, "", from, until);
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign, KeyUsagePurpose::DigitalSignature];
    let cert = params.self_signed(&key).map_err(bad)?;
    write(key_path, &keys.seal_text(&key.serialize_pem())?)?;
    write(cert_path, &cert.pem())?;
    Ok((cert.pem(), key.serialize_pem()))
}

fn base_params(user: &str, group: &str, from: Date, until: Date) -> CertificateParams {
    let mut params = CertificateParams::default();
    params.distinguished_name = rcgen::DistinguishedName::new();
    params.distinguished_name.push(DnType::CommonName, user);
    if !group.is_empty() {
        params.distinguished_name.push(DnType::OrganizationName, group);
    }
    let mut serial = [0_u8; 16];
    rand::rng().fill_bytes(&mut serial);
    // RFC 5280 4.1.2.2: positive, at most 20 octets.
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    let [from, until] = [from, until].map(|date| {
        rcgen::date_time_ymd(i32::from(date.year()), date.month().unsigned_abs(), date.day().unsigned_abs())
    });
    (params.not_before, params.not_after) = (from, until);
    params
}

/// UTC.
fn today() -> Date {
    jiff::tz::Offset::UTC.to_datetime(jiff::Timestamp::now()).date()
}

fn after(date: Date, days: i64) -> Date {
    date.checked_add(jiff::Span::new().days(days)).unwrap_or(date)
}

/// Whether a stored leaf has more than a third of its life left and carries what `subject` asks for.
fn still_good(cert_pem: &str, key_pem: &str, subject: &Subject) -> bool {
    let Ok((_, pem)) = x509_parser::pem::parse_x509_pem(cert_pem.as_bytes()) else { return false };
    let Ok((_, cert)) = X509Certificate::from_der(&pem.contents) else { return false };
    let Ok(key) = KeyPair::from_pem(key_pem) else { return false };
    if cert.public_key().subject_public_key.data.as_ref() != key.public_key_raw() {
        return false;
    }
    // A clock before the authority's birth says nothing of how much is left.
    let early = x509_parser::time::ASN1Time::now() < cert.validity().not_before;
    let left = cert.validity().time_to_expiration().map_or(0, |left| left.whole_days());
    let left = if early { LEAF_DAYS } else { left };
    if left * 3 < LEAF_DAYS {
        return false;
    }
    let user = cert.subject().iter_common_name().next().and_then(|name| name.as_str().ok());
    let group = cert.subject().iter_organization().next().and_then(|name| name.as_str().ok()).unwrap_or_default();
    if user != Some(subject.user.as_str()) || group != subject.group {
        return false;
    }
    let Ok(Some(names)) = cert.subject_alternative_name() else {
        return subject.names.is_empty() && subject.addresses.is_empty();
    };
    let has = |wanted: &dyn Fn(&x509_parser::extensions::GeneralName<'_>) -> bool| {
        names.value.general_names.iter().any(wanted)
    };
    subject.names.iter().all(|name| has(&|found| matches!(found, x509_parser::extensions::GeneralName::DNSName(text) if text == name)))
        && subject.addresses.iter().all(|address| {
            let bytes = match address {
                IpAddr::V4(v4) => v4.octets().to_vec(),
                IpAddr::V6(v6) => v6.octets().to_vec(),
            };
            has(&|found| matches!(found, x509_parser::extensions::GeneralName::IPAddress(octets) if *octets == bytes.as_slice()))
        })
}

/// Makes a folder for keys, closed to others.
///
/// # Errors
/// It cannot be made.
pub fn make_dir(dir: &Path) -> Result<(), PkiError> {
    use std::os::unix::fs::DirBuilderExt as _;
    std::fs::DirBuilder::new().recursive(true).mode(0o700).create(dir).map_err(|source| PkiError::File {
        action: "create",
        path: dir.to_owned(),
        source,
    })
}

fn read(path: &Path) -> Result<Option<String>, PkiError> {
    match std::fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(PkiError::File { action: "read", path: path.to_owned(), source }),
    }
}

/// Writes a private file so that a crash leaves the old one or the new one. One that is right already is left alone: a full
/// disk has no room for its copy.
///
/// # Errors
/// The file cannot be written, synced or renamed.
pub fn write(path: &Path, text: &str) -> Result<(), PkiError> {
    let bad = |source| PkiError::File { action: "write", path: path.to_owned(), source };
    if std::fs::read_to_string(path).is_ok_and(|there| there == text) {
        return Ok(());
    }
    let temp = path.with_extension("new");
    let _ = std::fs::remove_file(&temp);
    let mut file = std::fs::OpenOptions::new().write(true).create_new(true).mode(0o600).open(&temp).map_err(bad)?;
    file.write_all(text.as_bytes()).map_err(bad)?;
    file.sync_all().map_err(bad)?;
    std::fs::rename(&temp, path).map_err(bad)?;
    if let Some(dir) = path.parent() {
        std::fs::File::open(dir).and_then(|dir| dir.sync_all()).map_err(bad)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;

    fn subject(names: &[&str]) -> Subject {
        Subject {
            file: "server",
            user: "coracle-server".into(),
            group: "",
            names: names.iter().map(|name| (*name).to_owned()).collect(),
            addresses: vec!["127.0.0.1".parse().unwrap(), "::1".parse().unwrap()],
            server: true,
            client: false,
        }
    }

    #[test]
    fn a_leaf_is_kept_until_its_names_change() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), "test").unwrap();
        let first = authority.leaf(&subject(&["localhost"])).unwrap();
        let again = Authority::open(dir.path(), "test").unwrap();
        assert_eq!(again.cert_pem(), authority.cert_pem());
        assert_eq!(again.leaf(&subject(&["localhost"])).unwrap().cert_pem, first.cert_pem);
        assert_ne!(again.leaf(&subject(&["localhost", "box"])).unwrap().cert_pem, first.cert_pem);
    }

    #[test]
    fn a_leaf_that_is_signed_in_1970_has_not_ended_before_it_began() {
        let day = |text: &str| text.parse::<Date>().unwrap();
        let life = |today| leaf_life(day(today), day("2026-11-26"));
        assert_eq!(life("1970-01-02"), (day("2026-11-26"), day("2027-11-26")));
        assert_eq!(life("2027-03-01"), (day("2026-11-26"), day("2028-02-29")));
    }

    #[test]
    fn half_an_authority_is_refused_not_replaced() {
        let dir = tempfile::tempdir().unwrap();
        Authority::open(dir.path(), "test").unwrap();
        std::fs::remove_file(dir.path().join("ca.key")).unwrap();
        assert!(matches!(Authority::open(dir.path(), "test"), Err(PkiError::Half { .. })));
    }

    #[test]
    fn the_authoritys_key_lies_sealed() {
        let dir = tempfile::tempdir().unwrap();
        let authority = Authority::open(dir.path(), "test").unwrap();
        let (path, key_pem) = (dir.path().join("ca.key"), authority.key_pem().to_owned());
        assert!(key_pem.contains("PRIVATE KEY"));
        let sealed = || !std::fs::read_to_string(&path).unwrap().contains("PRIVATE KEY");
        assert!(sealed());
        assert_eq!(Authority::open(dir.path(), "test").unwrap().key_pem(), key_pem);
        // One that an older release wrote.
        std::fs::write(&path, &key_pem).unwrap();
        assert_eq!(Authority::open(dir.path(), "test").unwrap().key_pem(), key_pem);
        assert!(sealed());
        // With a new storage key it is sealed with that.
        let before = std::fs::read_to_string(&path).unwrap();
        let (id, _) = coracle_raft::vault::rotate(&dir.path().join(STORAGE_KEYS)).unwrap();
        assert_eq!(Authority::open(dir.path(), "test").unwrap().key_pem(), key_pem);
        let after = std::fs::read_to_string(&path).unwrap();
        assert!(after != before && after.contains(&format!("{id:016x}")));
        // As a machine that joins as a server gets it.
        let other = tempfile::tempdir().unwrap();
        adopt(other.path(), authority.cert_pem(), &key_pem).unwrap();
        assert!(!std::fs::read_to_string(other.path().join("ca.key")).unwrap().contains("PRIVATE KEY"));
        assert_eq!(Authority::open(other.path(), "test").unwrap().key_pem(), key_pem);

        std::fs::remove_file(dir.path().join(STORAGE_KEYS)).unwrap();
        let refused = Authority::open(dir.path(), "test").unwrap_err().to_string();
        assert!(refused.contains("ca.key is sealed") && refused.contains(STORAGE_KEYS), "{refused}");
        assert!(!dir.path().join(STORAGE_KEYS).exists());
    }

    #[test]
    fn keys_are_private() {
        use std::os::unix::fs::PermissionsExt as _;
        let dir = tempfile::tempdir().unwrap();
        Authority::open(dir.path(), "test").unwrap();
        let mode = std::fs::metadata(dir.path().join("ca.key")).unwrap().permissions().mode();
        assert_eq!(mode & 0o777, 0o600);
    }
}
