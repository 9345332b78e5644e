//! What carries the flag client's connections over TLS, by the cargo features.

#[cfg(all(not(feature = "_rustls"), feature = "tls-native"))]
pub(super) use native::{Secured, secured};
#[cfg(not(any(feature = "_rustls", feature = "tls-native")))]
pub(super) use plain::{Secured, secured};
#[cfg(feature = "_rustls")]
pub(super) use with_rustls::{Secured, secured};

#[cfg(feature = "_rustls")]
mod with_rustls {
    use hyper_rustls::{ConfigBuilderExt, HttpsConnector, HttpsConnectorBuilder};
    use rustls::{ClientConfig, RootCertStore};

    use super::super::options::UnleashOptions;

    pub(in super::super) type Secured<C> = HttpsConnector<C>;

    pub(in super::super) fn secured<C>(
        options: &UnleashOptions,
        tls: bool,
        connector: C,
    ) -> std::io::Result<Secured<C>> {
        let builder = HttpsConnectorBuilder::new().with_tls_config(client_config(options, tls)?);
        let builder = if tls { builder.https_only() } else { builder.https_or_http() };
        Ok(builder.enable_http1().wrap_connector(connector))
    }

    fn client_config(options: &UnleashOptions, tls: bool) -> std::io::Result<ClientConfig> {
        if let Some(config) = &options.tls {
            let mut config = ClientConfig::clone(config);
            // The connector sets the protocols, and refuses a configuration that already does.
            config.alpn_protocols.clear();
            return Ok(config);
        }
        let builder = ClientConfig::builder_with_provider(crate::tls::provider().into())
            .with_safe_default_protocol_versions()
            .map_err(std::io::Error::other)?;
        // Plain HTTP checks no certificate, and the machine may have none.
        let builder = if tls {
            builder.with_native_roots()?
        } else {
            builder.with_root_certificates(RootCertStore::empty())
        };
        Ok(builder.with_no_client_auth())
    }
}

#[cfg(all(not(feature = "_rustls"), feature = "tls-native"))]
mod native {
    use hyper_tls::HttpsConnector;

    use super::super::options::UnleashOptions;

    pub(in super::super) type Secured<C> = HttpsConnector<C>;

    pub(in super::super) fn secured<C>(
        _: &UnleashOptions,
        tls: bool,
        connector: C,
    ) -> std::io::Result<Secured<C>> {
        let mut connector = HttpsConnector::new_with_connector(connector);
        connector.https_only(tls);
        Ok(connector)
    }
}

/// `https` is refused when the options are checked.
#[cfg(not(any(feature = "_rustls", feature = "tls-native")))]
mod plain {
    use super::super::options::UnleashOptions;

    pub(in super::super) type Secured<C> = C;

    pub(in super::super) fn secured<C>(_: &UnleashOptions, _: bool, connector: C) -> std::io::Result<C> {
        Ok(connector)
    }
}
