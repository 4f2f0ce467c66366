//! TLS with a pinned CA: the conductor's chain must contain the certificate whose SHA-256 the boot
//! medium carries, and that certificate is the only root. Names, addresses and times are checked
//! as usual. Deliberately no platform roots: the ramdisk has none.

use std::sync::Arc;

use ferrite_proto::boot::CaPin;
use rustls::client::WebPkiServerVerifier;
use rustls::client::danger::{HandshakeSignatureValid, ServerCertVerified, ServerCertVerifier};
use rustls::crypto::{CryptoProvider, verify_tls12_signature, verify_tls13_signature};
use rustls::{
    CertificateError, ClientConfig, DigitallySignedStruct, RootCertStore, SignatureScheme,
};
use rustls_pki_types::{CertificateDer, ServerName, UnixTime};
use sha2::{Digest, Sha256};

/// The one provider of cryptography.
pub(crate) fn provider() -> Arc<CryptoProvider> {
    Arc::new(rustls::crypto::ring::default_provider())
}

/// A client configuration that trusts one CA.
pub fn pinned(pin: CaPin) -> Result<ClientConfig, rustls::Error> {
    let provider = provider();
    let verifier = Arc::new(PinnedCa {
        pin,
        provider: Arc::clone(&provider),
    });
    let config = ClientConfig::builder_with_provider(provider)
        .with_safe_default_protocol_versions()?
        .dangerous()
        .with_custom_certificate_verifier(verifier)
        .with_no_client_auth();
    Ok(config)
}

#[derive(Debug)]
struct PinnedCa {
    pin: CaPin,
    provider: Arc<CryptoProvider>,
}

impl PinnedCa {
    /// An ordinary verifier with the pinned certificate as its only root, if the chain has it.
    fn verifier(
        &self,
        chain: &[CertificateDer<'_>],
    ) -> Result<Arc<WebPkiServerVerifier>, rustls::Error> {
        let pinned = |cert: &&CertificateDer<'_>| Sha256::digest(cert)[..] == self.pin.0[..];
        let ca = chain
            .iter()
            .find(pinned)
            .ok_or(CertificateError::UnknownIssuer)?;
        let mut roots = RootCertStore::empty();
        roots.add(ca.clone().into_owned())?;
        let provider = Arc::clone(&self.provider);
        WebPkiServerVerifier::builder_with_provider(Arc::new(roots), provider)
            .build()
            .map_err(|error| rustls::Error::General(error.to_string()))
    }
}

impl ServerCertVerifier for PinnedCa {
    fn verify_server_cert(
        &self,
        end_entity: &CertificateDer<'_>,
        intermediates: &[CertificateDer<'_>],
        server_name: &ServerName<'_>,
        ocsp_response: &[u8],
        now: UnixTime,
    ) -> Result<ServerCertVerified, rustls::Error> {
        let verifier = self.verifier(intermediates)?;
        verifier.verify_server_cert(end_entity, intermediates, server_name, ocsp_response, now)
    }

    fn verify_tls12_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls12_signature(message, cert, signed, algorithms)
    }

    fn verify_tls13_signature(
        &self,
        message: &[u8],
        cert: &CertificateDer<'_>,
        signed: &DigitallySignedStruct,
    ) -> Result<HandshakeSignatureValid, rustls::Error> {
        let algorithms = &self.provider.signature_verification_algorithms;
        verify_tls13_signature(message, cert, signed, algorithms)
    }

    fn supported_verify_schemes(&self) -> Vec<SignatureScheme> {
        self.provider
            .signature_verification_algorithms
            .supported_schemes()
    }
}

/// A CA and a server of its own, for the tests of this and other modules.
#[cfg(test)]
pub(crate) mod fixture {
    use super::{CaPin, CertificateDer, Digest, Sha256};
    use rcgen::{BasicConstraints, CertificateParams, IsCa, Issuer, KeyPair};

    /// A made-up authority with one server certificate.
    pub(crate) struct Authority {
        pub(crate) ca: CertificateDer<'static>,
        pub(crate) server: CertificateDer<'static>,
        pub(crate) key: KeyPair,
    }

    impl Authority {
        /// Issues a certificate for the names; `years` is the time it is valid in.
        pub(crate) fn new(names: &[&str], years: (i32, i32)) -> Self {
            let ca_key = KeyPair::generate().unwrap();
            let mut params = CertificateParams::new(vec![]).unwrap();
            params.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
            let ca = params.self_signed(&ca_key).unwrap().der().clone();
            let issuer = Issuer::new(params, ca_key);
            let names: Vec<String> = names.iter().map(|&n| n.to_owned()).collect();
            let mut params = CertificateParams::new(names).unwrap();
            params.not_before = rcgen::date_time_ymd(years.0, 1, 1);
            params.not_after = rcgen::date_time_ymd(years.1, 1, 1);
            let key = KeyPair::generate().unwrap();
            let server = params.signed_by(&key, &issuer).unwrap().der().clone();
            Self { ca, server, key }
        }

        /// What a boot medium would carry.
        pub(crate) fn pin(&self) -> CaPin {
            CaPin(Sha256::digest(&self.ca).into())
        }

        /// What its server presents.
        pub(crate) fn chain(&self) -> Vec<CertificateDer<'static>> {
            vec![self.server.clone(), self.ca.clone()]
        }
    }
}

#[cfg(test)]
mod tests {
    use super::fixture::Authority;
    use super::*;

    fn verify(pin: CaPin, authority: &Authority, name: &str) -> Result<(), rustls::Error> {
        let verifier = PinnedCa {
            pin,
            provider: provider(),
        };
        let name = ServerName::try_from(name.to_owned()).unwrap();
        let (server, ca) = (&authority.server, [authority.ca.clone()]);
        verifier
            .verify_server_cert(server, &ca, &name, &[], UnixTime::now())
            .map(drop)
    }

    #[test]
    fn the_pinned_ca_passes_and_nothing_else_does() {
        let ours = Authority::new(&["10.77.0.1"], (2020, 2090));
        let other = Authority::new(&["10.77.0.1"], (2020, 2090));
        assert_eq!(verify(ours.pin(), &ours, "10.77.0.1"), Ok(()));
        assert!(
            verify(other.pin(), &ours, "10.77.0.1").is_err(),
            "another CA"
        );
        assert!(
            verify(ours.pin(), &ours, "10.77.0.2").is_err(),
            "another address"
        );
        let expired = Authority::new(&["10.77.0.1"], (2020, 2021));
        assert!(
            verify(expired.pin(), &expired, "10.77.0.1").is_err(),
            "expired"
        );
    }

    #[test]
    fn presenting_the_pinned_ca_beside_a_foreign_certificate_is_no_way_in() {
        let ours = Authority::new(&["10.77.0.1"], (2020, 2090));
        let mut forged = Authority::new(&["10.77.0.1"], (2020, 2090));
        forged.ca = ours.ca.clone();
        assert!(verify(ours.pin(), &forged, "10.77.0.1").is_err());
    }
}
