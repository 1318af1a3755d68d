//! TLS for requests, set up explicitly. A provider for the whole process would be the choice of the program that this is a
//! part of, and the clients of other libraries in it would get it as well.

use std::sync::Arc;

use rustls::pki_types::CertificateDer;
use rustls::{ClientConfig, RootCertStore, crypto};
use rustls_platform_verifier::Verifier;

/// Whose certificates a server may have.
pub(crate) enum Trust {
    /// Nobody's: for requests without TLS, for which a machine needs no certificate authorities.
    Nobody,
    /// The system's, and these authorities' besides.
    SystemAnd(Vec<CertificateDer<'static>>),
}

/// What a client needs to make requests under this trust.
///
/// # Errors
///
/// When the system has no certificate authorities, or one of the certificates is malformed.
pub(crate) fn tls(trust: Trust) -> Result<ClientConfig, rustls::Error> {
    let provider = Arc::new(crypto::ring::default_provider());
    let builder = ClientConfig::builder_with_provider(Arc::clone(&provider)).with_safe_default_protocol_versions()?;
    let builder = match trust {
        Trust::Nobody => builder.with_root_certificates(RootCertStore::empty()),
        Trust::SystemAnd(roots) => {
            let verifier = Verifier::new_with_extra_roots(roots, provider)?;
            builder.dangerous().with_custom_certificate_verifier(Arc::new(verifier))
        }
    };
    let mut config = builder.with_no_client_auth();
    // HTTP/2 where the other side can: all stores then share one connection.
    config.alpn_protocols = vec![b"h2".to_vec(), b"http/1.1".to_vec()];
    Ok(config)
}
