//! Our own certificate authority and the conductor's certificate, made at the first start.
//!
//! Agents pin the SHA-256 of the CA certificate, so the CA lives ten years and the server's
//! certificate is issued anew when it nears its end or its names change. It issues certificates to
//! clients, too, from requests: their keys never come here. No public authority is involved, and
//! nothing here is for talking to BMCs or image servers.

use std::fs;
use std::io::{self, Write};
use std::os::unix::fs::OpenOptionsExt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use ferrite_proto::boot::CaPin;
use jiff::{SignedDuration, Timestamp, tz::TimeZone};
use rcgen::{
    BasicConstraints, CertificateParams, CertificateSigningRequestParams, DnType,
    ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair, KeyUsagePurpose,
};
use rustls::RootCertStore;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::ServerCertVerifier;
use rustls::server::WebPkiClientVerifier;
use rustls::server::danger::ClientCertVerifier;
use rustls_pki_types::pem::PemObject;
use rustls_pki_types::{CertificateDer, PrivateKeyDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

use crate::clock;
use crate::crash::{self, Moment, Work};

const CA_DAYS: i64 = 3652;
const SERVER_DAYS: i64 = 365;
/// A certificate that ends sooner than this is issued anew at start.
const RENEW_BEFORE: Duration = Duration::from_hours(60 * 24);
/// Names that are always in the certificate, so that a person on the machine can ask it.
const LOCAL_NAMES: [&str; 2] = ["127.0.0.1", "localhost"];

/// What the conductor serves with, and what others need to trust it.
#[derive(Debug, Clone)]
pub(crate) struct Identity {
    /// Chain (leaf and CA) and key, HTTP/1.1 only.
    pub(crate) server: Arc<rustls::ServerConfig>,
    /// What boot media carry.
    pub(crate) ca_pin: CaPin,
    /// The CA certificate, for people's clients.
    pub(crate) ca_pem: String,
    /// Issues client certificates.
    pub(crate) authority: Arc<Authority>,
}

/// What is issued to a client.
#[derive(Debug, Clone)]
pub(crate) struct ClientCertificate {
    /// The certificate, PEM.
    pub(crate) pem: String,
    /// The certificate.
    pub(crate) der: CertificateDer<'static>,
    /// Until when it holds.
    pub(crate) expires: Timestamp,
}

/// The CA, for issuing certificates to clients.
pub(crate) struct Authority {
    key: KeyPair,
    /// Its certificate.
    pub(crate) pem: String,
}

impl std::fmt::Debug for Authority {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Authority")
    }
}

impl Authority {
    /// Issues a certificate that names its owner and is good for nothing but calling us. Of the
    /// request only the public key is taken, once it is proven that its sender has the key.
    pub(crate) fn issue_client(
        &self,
        name: &str,
        csr: &str,
        days: u32,
    ) -> Result<ClientCertificate, TlsError> {
        let asked = CertificateSigningRequestParams::from_pem(csr).map_err(TlsError::Request)?;
        let mut params = CertificateParams::new(Vec::new()).map_err(TlsError::Issue)?;
        params.distinguished_name.remove(DnType::CommonName);
        params.distinguished_name.push(DnType::CommonName, name);
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ClientAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, days.into());
        let expires = Timestamp::from_second(params.not_after.unix_timestamp());
        let issuer = Issuer::new(ca_params()?, &self.key);
        let made = params
            .signed_by(&asked.public_key, &issuer)
            .map_err(TlsError::Issue)?;
        Ok(ClientCertificate {
            pem: made.pem(),
            der: made.into(),
            expires: expires.unwrap_or(Timestamp::MAX),
        })
    }
}

/// A key for a client, and the request for its certificate: both PEM.
pub(crate) fn client_request() -> Result<(String, String), TlsError> {
    let key = KeyPair::generate().map_err(TlsError::Issue)?;
    let params = CertificateParams::new(Vec::new()).map_err(TlsError::Issue)?;
    let request = params.serialize_request(&key).map_err(TlsError::Issue)?;
    Ok((key.serialize_pem(), request.pem().map_err(TlsError::Issue)?))
}

/// Why there is no certificate to serve with.
#[derive(Debug, thiserror::Error)]
pub(crate) enum TlsError {
    /// A file of ours cannot be read or written.
    #[error("cannot {verb} {}; give the conductor a state_dir that it owns", path.display())]
    File {
        /// `read` or `write`.
        verb: &'static str,
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: io::Error,
    },
    /// The CA's certificate is there and its key is not.
    #[error(
        "{} is there but {} is not: put the key back from a backup, or remove both to make a new \
         CA (hosts that are deployed then lose touch and must be provisioned again)",
        certificate.display(), key.display()
    )]
    KeyLost {
        /// The certificate.
        certificate: PathBuf,
        /// Its key.
        key: PathBuf,
    },
    /// A file of ours is not what we wrote.
    #[error("{} is damaged; put it back from a backup", path.display())]
    Damaged {
        /// Which file.
        path: PathBuf,
        /// Why.
        #[source]
        source: Box<dyn std::error::Error + Send + Sync>,
    },
    /// A name that cannot stand in a certificate.
    #[error("{name:?} in the configuration's names is neither a host name nor an IP address")]
    Name {
        /// The name.
        name: String,
    },
    /// The request for a certificate.
    #[error("this is no PKCS #10 request in PEM whose signature holds")]
    Request(#[source] rcgen::Error),
    /// Certificates cannot be made.
    #[error("cannot make a certificate")]
    Issue(#[source] rcgen::Error),
    /// The certificate cannot be served.
    #[error("cannot serve with the certificate in {}", dir.display())]
    Serve {
        /// Where it lies.
        dir: PathBuf,
        /// Why.
        #[source]
        source: rustls::Error,
    },
}

/// Reads CA and server certificate from `dir`, makes what is not there, and issues the server's
/// anew when it does not hold for every one of `names` two months from now.
pub(crate) fn load_or_create(dir: &Path, names: &[String]) -> Result<Identity, TlsError> {
    fs::create_dir_all(dir).map_err(|source| file_error("write", dir, source))?;
    let ca = Ca::load_or_create(dir)?;
    let names = all_names(names)?;
    let files = (dir.join("server.pem"), dir.join("server.key"));
    let (leaf, key) = match read_server(&files.0, &files.1) {
        Some((leaf, key)) if ca.vouches_for(&leaf, &names) => (leaf, key),
        _ => ca.issue(&names, &files.0, &files.1)?,
    };
    let serve = |source| TlsError::Serve {
        dir: dir.to_owned(),
        source,
    };
    let mut server = rustls::ServerConfig::builder_with_provider(provider())
        .with_safe_default_protocol_versions()
        .map_err(serve)?
        .with_client_cert_verifier(client_verifier(&ca.certificate, dir)?)
        .with_single_cert(vec![leaf, ca.certificate.clone()], key)
        .map_err(serve)?;
    server.alpn_protocols = vec![b"http/1.1".to_vec()];
    Ok(Identity {
        server: Arc::new(server),
        ca_pin: CaPin(Sha256::digest(&ca.certificate).into()),
        ca_pem: ca.pem.clone(),
        authority: Arc::new(Authority {
            key: ca.key,
            pem: ca.pem,
        }),
    })
}

/// Takes certificates of our CA from those who have one. Agents and daemons have none, and people
/// may have a token.
fn client_verifier(
    ca: &CertificateDer<'static>,
    dir: &Path,
) -> Result<Arc<dyn ClientCertVerifier>, TlsError> {
    let mut roots = RootCertStore::empty();
    roots
        .add(ca.clone())
        .map_err(|error| damaged(&dir.join("ca.pem"), error))?;
    WebPkiClientVerifier::builder_with_provider(Arc::new(roots), provider())
        .allow_unauthenticated()
        .build()
        .map_err(|error| damaged(&dir.join("ca.pem"), error))
}

/// The one provider of cryptography in this process.
pub(crate) fn provider() -> Arc<rustls::crypto::CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

struct Ca {
    key: KeyPair,
    certificate: CertificateDer<'static>,
    pem: String,
}

impl Ca {
    fn load_or_create(dir: &Path) -> Result<Self, TlsError> {
        let (pem_path, key_path) = (dir.join("ca.pem"), dir.join("ca.key"));
        let key = match (read(&key_path)?, pem_path.exists()) {
            (Some(pem), _) => KeyPair::from_pem(&pem).map_err(|e| damaged(&key_path, e))?,
            (None, true) => {
                return Err(TlsError::KeyLost {
                    certificate: pem_path,
                    key: key_path,
                });
            }
            (None, false) => {
                let key = KeyPair::generate().map_err(TlsError::Issue)?;
                crash::point(Work::MakeCa, Moment::Before);
                write(&key_path, key.serialize_pem().as_bytes(), 0o600)?;
                crash::point(Work::MakeCa, Moment::Acted);
                key
            }
        };
        // A key without a certificate is a first start that was cut off here.
        let pem = if let Some(pem) = read(&pem_path)? {
            pem
        } else {
            let made = ca_params()?.self_signed(&key).map_err(TlsError::Issue)?;
            write(&pem_path, made.pem().as_bytes(), 0o644)?;
            crash::point(Work::MakeCa, Moment::After);
            made.pem()
        };
        let certificate =
            CertificateDer::from_pem_slice(pem.as_bytes()).map_err(|e| damaged(&pem_path, e))?;
        Ok(Self {
            key,
            certificate,
            pem,
        })
    }

    /// Whether `leaf` is ours, for all of `names`, and not near its end.
    fn vouches_for(&self, leaf: &CertificateDer<'_>, names: &[String]) -> bool {
        let mut roots = RootCertStore::empty();
        if roots.add(self.certificate.clone()).is_err() {
            return false;
        }
        let builder = WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider());
        let Ok(verifier) = builder.build() else {
            return false;
        };
        let then = UnixTime::since_unix_epoch(
            Duration::from_secs(UnixTime::now().as_secs()) + RENEW_BEFORE,
        );
        names.iter().all(|name| {
            ServerName::try_from(name.as_str()).is_ok_and(|name| {
                verifier
                    .verify_server_cert(leaf, &[], &name, &[], then)
                    .is_ok()
            })
        })
    }

    fn issue(
        &self,
        names: &[String],
        pem_path: &Path,
        key_path: &Path,
    ) -> Result<(CertificateDer<'static>, PrivateKeyDer<'static>), TlsError> {
        let key = KeyPair::generate().map_err(TlsError::Issue)?;
        let mut params = CertificateParams::new(names.to_vec()).map_err(TlsError::Issue)?;
        params.distinguished_name.remove(DnType::CommonName);
        params
            .distinguished_name
            .push(DnType::CommonName, "Ferrite conductor");
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = vec![ExtendedKeyUsagePurpose::ServerAuth];
        params.use_authority_key_identifier_extension = true;
        valid_for(&mut params, SERVER_DAYS);
        let issuer = Issuer::new(ca_params()?, &self.key);
        let leaf = params.signed_by(&key, &issuer).map_err(TlsError::Issue)?;
        // The key first: a certificate is only ever found beside the key it belongs to, or
        // beside a newer one, which `read_server` notices.
        crash::point(Work::MakeCertificate, Moment::Before);
        write(key_path, key.serialize_pem().as_bytes(), 0o600)?;
        crash::point(Work::MakeCertificate, Moment::Acted);
        write(pem_path, leaf.pem().as_bytes(), 0o644)?;
        crash::point(Work::MakeCertificate, Moment::After);
        tracing::info!(?names, days = SERVER_DAYS, "server certificate issued");
        let key = PrivateKeyDer::try_from(key.serialize_der())
            .expect("what rcgen has just written is PKCS #8");
        Ok((leaf.into(), key))
    }
}

/// The CA's certificate is the same for ever, except for the day it was made: its name and key
/// are all that an issuer needs.
fn ca_params() -> Result<CertificateParams, TlsError> {
    let mut params = CertificateParams::new(Vec::new()).map_err(TlsError::Issue)?;
    params.distinguished_name.remove(DnType::CommonName);
    params
        .distinguished_name
        .push(DnType::CommonName, "Ferrite CA");
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    valid_for(&mut params, CA_DAYS);
    Ok(params)
}

/// From yesterday, so that a clock that is a little slow does no harm, for `days`.
fn valid_for(params: &mut CertificateParams, days: i64) {
    let day = |offset: i64| {
        let at = clock::now() + SignedDuration::from_hours(offset * 24);
        let date = at.to_zoned(TimeZone::UTC).date();
        let (month, day) = (date.month().unsigned_abs(), date.day().unsigned_abs());
        rcgen::date_time_ymd(i32::from(date.year()), month, day)
    };
    params.not_before = day(-1);
    params.not_after = day(days);
}

fn all_names(names: &[String]) -> Result<Vec<String>, TlsError> {
    let mut all: Vec<String> = names.to_vec();
    all.extend(LOCAL_NAMES.map(str::to_owned));
    all.sort();
    all.dedup();
    match all
        .iter()
        .find(|n| ServerName::try_from(n.as_str()).is_err())
    {
        Some(bad) => Err(TlsError::Name { name: bad.clone() }),
        None => Ok(all),
    }
}

/// The server's certificate and key, if both are there, whole, and belong together.
fn read_server(
    pem_path: &Path,
    key_path: &Path,
) -> Option<(CertificateDer<'static>, PrivateKeyDer<'static>)> {
    let leaf = CertificateDer::from_pem_slice(&fs::read(pem_path).ok()?).ok()?;
    let key = PrivateKeyDer::from_pem_slice(&fs::read(key_path).ok()?).ok()?;
    let signer = rustls::crypto::ring::sign::any_supported_type(&key).ok()?;
    rustls::sign::CertifiedKey::new(vec![leaf.clone()], signer)
        .keys_match()
        .ok()?;
    Some((leaf, key))
}

fn read(path: &Path) -> Result<Option<String>, TlsError> {
    match fs::read_to_string(path) {
        Ok(text) => Ok(Some(text)),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(None),
        Err(source) => Err(file_error("read", path, source)),
    }
}

/// Writes a file whole or not at all, readable from the first moment only for whom `mode` says.
fn write(path: &Path, bytes: &[u8], mode: u32) -> Result<(), TlsError> {
    let fail = |source| file_error("write", path, source);
    let aside = path.with_extension("new");
    let _ = fs::remove_file(&aside);
    let mut file = fs::OpenOptions::new()
        .write(true)
        .create_new(true)
        .mode(mode)
        .open(&aside)
        .map_err(fail)?;
    file.write_all(bytes).map_err(fail)?;
    file.sync_all().map_err(fail)?;
    fs::rename(&aside, path).map_err(fail)?;
    let dir = path.parent().unwrap_or(Path::new("."));
    fs::File::open(dir).and_then(|d| d.sync_all()).map_err(fail)
}

fn file_error(verb: &'static str, path: &Path, source: io::Error) -> TlsError {
    TlsError::File {
        verb,
        path: path.to_owned(),
        source,
    }
}

fn damaged(path: &Path, source: impl std::error::Error + Send + Sync + 'static) -> TlsError {
    TlsError::Damaged {
        path: path.to_owned(),
        source: Box::new(source),
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::unix::fs::PermissionsExt;

    fn names(names: &[&str]) -> Vec<String> {
        names.iter().map(|&n| n.to_owned()).collect()
    }

    #[test]
    fn a_second_start_finds_the_same_and_new_names_keep_the_ca() {
        let dir = tempfile::tempdir().unwrap();
        let first = load_or_create(dir.path(), &names(&["10.77.0.1"])).unwrap();
        let leaf = fs::read(dir.path().join("server.pem")).unwrap();
        let second = load_or_create(dir.path(), &names(&["10.77.0.1"])).unwrap();
        assert_eq!(first.ca_pin, second.ca_pin);
        assert_eq!(fs::read(dir.path().join("server.pem")).unwrap(), leaf);

        let third = load_or_create(dir.path(), &names(&["10.77.0.1", "ferrite.lab"])).unwrap();
        assert_eq!(first.ca_pin, third.ca_pin);
        assert_ne!(fs::read(dir.path().join("server.pem")).unwrap(), leaf);
    }

    #[test]
    fn keys_are_for_the_owner_alone() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path(), &[]).unwrap();
        for key in ["ca.key", "server.key"] {
            let mode = fs::metadata(dir.path().join(key)).unwrap().permissions();
            assert_eq!(mode.mode() & 0o777, 0o600, "{key}");
        }
    }

    #[test]
    fn a_lost_ca_key_is_no_reason_for_a_new_ca() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path(), &[]).unwrap();
        fs::remove_file(dir.path().join("ca.key")).unwrap();
        let error = load_or_create(dir.path(), &[]).unwrap_err();
        assert!(matches!(error, TlsError::KeyLost { .. }), "{error}");
    }

    #[test]
    fn a_server_key_that_fits_no_more_is_replaced() {
        let dir = tempfile::tempdir().unwrap();
        load_or_create(dir.path(), &[]).unwrap();
        let other = KeyPair::generate().unwrap().serialize_pem();
        fs::write(dir.path().join("server.key"), other).unwrap();
        load_or_create(dir.path(), &[]).unwrap();
    }

    #[test]
    fn a_name_that_is_none_is_named() {
        let dir = tempfile::tempdir().unwrap();
        let error = load_or_create(dir.path(), &names(&["not a name"])).unwrap_err();
        assert!(error.to_string().contains("not a name"));
    }
}
