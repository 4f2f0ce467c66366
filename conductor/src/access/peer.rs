//! The client certificate of a connection, put into each of its requests.
//!
//! The TLS layer has checked that our CA issued it and that it has not ended. Whether it was
//! revoked, and what its owner may do, the registry says at every request.

use std::future::Future;
use std::io;
use std::pin::Pin;
use std::task::{Context, Poll};

use axum::http::Request;
use axum_server::accept::Accept;
use axum_server::tls_rustls::RustlsAcceptor;
use ferrite_proto::digest::to_hex;
use rustls_pki_types::CertificateDer;
use sha2::{Digest, Sha256};
use tokio::net::TcpStream;
use tokio_rustls::server::TlsStream;
use tower::Service;
use x509_parser::prelude::{FromDer, X509Certificate};

/// Who is at the other end, by certificate.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(crate) struct Peer {
    /// Its common name.
    pub(crate) name: String,
    /// Hex SHA-256 of the certificate.
    pub(crate) fingerprint: String,
}

impl Peer {
    /// Reads a certificate; none when it has no common name.
    pub(crate) fn of(certificate: &CertificateDer<'_>) -> Option<Self> {
        let (_, parsed) = X509Certificate::from_der(certificate).ok()?;
        let name = parsed.subject().iter_common_name().next()?;
        Some(Self {
            name: name.as_str().ok()?.to_owned(),
            fingerprint: to_hex(&Sha256::digest(certificate)),
        })
    }
}

/// Accepts TLS, and keeps who is there.
#[derive(Debug, Clone)]
pub(crate) struct Introduced(pub(crate) RustlsAcceptor);

type Accepting<S> = Pin<Box<dyn Future<Output = io::Result<(TlsStream<TcpStream>, S)>> + Send>>;

impl<S: Send + 'static> Accept<TcpStream, S> for Introduced {
    type Stream = TlsStream<TcpStream>;
    type Service = WithPeer<S>;
    type Future = Accepting<WithPeer<S>>;

    fn accept(&self, stream: TcpStream, service: S) -> Self::Future {
        let accepting = self.0.accept(stream, service);
        Box::pin(async move {
            let (stream, inner) = accepting.await?;
            let certificates = stream.get_ref().1.peer_certificates();
            let peer = certificates.and_then(|all| Peer::of(all.first()?));
            Ok((stream, WithPeer { inner, peer }))
        })
    }
}

/// A connection's service: each request carries the peer.
#[derive(Debug, Clone)]
pub(crate) struct WithPeer<S> {
    inner: S,
    peer: Option<Peer>,
}

impl<S: Service<Request<B>>, B> Service<Request<B>> for WithPeer<S> {
    type Response = S::Response;
    type Error = S::Error;
    type Future = S::Future;

    fn poll_ready(&mut self, context: &mut Context<'_>) -> Poll<Result<(), Self::Error>> {
        self.inner.poll_ready(context)
    }

    fn call(&mut self, mut request: Request<B>) -> Self::Future {
        if let Some(peer) = &self.peer {
            request.extensions_mut().insert(peer.clone());
        }
        self.inner.call(request)
    }
}
