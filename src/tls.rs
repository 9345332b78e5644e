//! The TLS library that the cargo features choose.

/// Appended to a problem that another build of the same service does not have.
#[cfg(all(feature = "unleash", not(any(feature = "_rustls", feature = "tls-native"))))]
pub(crate) const WITHOUT: &str = "needs TLS, and this build has none; enable feature `tls-ring`, `tls-aws-lc` or `tls-native` of crate cutover";

/// Cryptography for this library's own connections. They never use the default of the process, which is absent when a binary
/// contains several providers.
#[cfg(all(feature = "_rustls", any(feature = "unleash", feature = "redis")))]
pub(crate) fn provider() -> rustls::crypto::CryptoProvider {
    #[cfg(feature = "tls-ring")]
    return rustls::crypto::ring::default_provider();
    #[cfg(not(feature = "tls-ring"))]
    return rustls::crypto::aws_lc_rs::default_provider();
}

/// Sets the default of the process where it has none. Redis's client takes the default, and rustls panics when a binary
/// contains several providers and none is the default.
#[cfg(all(feature = "_rustls", feature = "redis", any(test, not(feature = "tls-native"))))]
pub(crate) fn ensure_default_provider() {
    // An error means that there is a default.
    let _ = provider().install_default();
}

#[cfg(all(test, feature = "tls-ring", feature = "tls-aws-lc", feature = "redis"))]
mod tests {
    #[test]
    fn a_binary_with_two_providers_has_a_default() {
        super::ensure_default_provider();
        super::ensure_default_provider();
        // Panics without a default.
        let _ = rustls::ClientConfig::builder();
    }
}
