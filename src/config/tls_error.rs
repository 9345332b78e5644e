//! What a person can do about a certificate that was not accepted.

/// What the settings of a client are called.
pub(crate) struct TlsSettings {
    /// How to trust another authority.
    pub(crate) authority: &'static str,
    /// How to connect to a server whose certificate is for another name.
    pub(crate) name: &'static str,
    /// How to present a certificate.
    pub(crate) client: &'static str,
}

pub(crate) const POSTGRES: TlsSettings = TlsSettings {
    authority: "set sslrootcert to the file of the authority's certificate",
    name: "use the name in the certificate as the host of the address, or sslmode=verify-ca",
    client: "set sslcert and sslkey to the files of a certificate that the server accepts",
};

#[cfg(feature = "redis")]
pub(crate) const REDIS: TlsSettings = TlsSettings {
    authority: "add the authority's certificate to those of the system, or name its file in SSL_CERT_FILE",
    name: "use the name in the certificate as the host of the address",
    client: "pass a pool with a client certificate to `Cutover::redis`, or set tls-auth-clients of the server to optional",
};

#[cfg(feature = "unleash")]
pub(crate) const UNLEASH: TlsSettings = TlsSettings {
    authority: "add the authority's certificate to those of the system, name its file in SSL_CERT_FILE, or set `UnleashOptions::tls`",
    name: "use the name in the certificate as the host of the URL",
    client: "set `UnleashOptions::tls` to a configuration with a client certificate",
};

/// The text of an error, after the advice for it if it is one of TLS.
pub(crate) fn with_tls_advice(text: String, settings: &TlsSettings) -> String {
    match tls_advice(&text, settings) {
        Some(advice) => format!("{advice} ({text})"),
        None => text,
    }
}

/// The advice for an error with this text, which is that of OpenSSL or of rustls.
pub(crate) fn tls_advice(text: &str, settings: &TlsSettings) -> Option<String> {
    let has = |reasons: &[&str]| reasons.iter().any(|reason| text.contains(reason));
    // An alert comes from the server, so it is about the client's certificate.
    if has(&["fatal alert: CertificateRequired", "alert certificate required"]) {
        return Some(format!("the server requires a client certificate; {}", settings.client));
    }
    if has(&[
        "fatal alert: UnknownCA",
        "fatal alert: BadCertificate",
        "fatal alert: CertificateExpired",
        "fatal alert: CertificateUnknown",
        "alert unknown ca",
        "alert bad certificate",
        "alert certificate expired",
    ]) {
        return Some(format!("the server does not accept the client certificate; {}", settings.client));
    }
    if !has(&["certificate verify failed", "invalid peer certificate"]) {
        return None;
    }
    Some(if has(&["has expired", "certificate expired", "Expired"]) {
        "the server's certificate has expired; give the server a new one and reload it".to_owned()
    } else if has(&["not yet valid", "not valid yet", "NotValidYet"]) {
        "the server's certificate is not valid yet; compare the clocks of both machines".to_owned()
    } else if has(&["mismatch", "NotValidForName", "not valid for name"]) {
        format!("the server's certificate is for another name; {}", settings.name)
    } else {
        format!("the authority that signed the server's certificate is not trusted; {}", settings.authority)
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[cfg(feature = "_rustls")]
    #[test]
    fn each_reason_of_rustls_has_its_advice() {
        use std::time::Duration;

        use rustls::pki_types::{ServerName, UnixTime};
        use rustls::{AlertDescription, CertificateError, Error};

        let time = |seconds| UnixTime::since_unix_epoch(Duration::from_secs(seconds));
        let name = CertificateError::NotValidForNameContext {
            expected: ServerName::try_from("db").unwrap(),
            presented: Vec::new(),
        };
        let expired = CertificateError::ExpiredContext { time: time(2), not_after: time(1) };
        let early = CertificateError::NotValidYetContext { time: time(1), not_before: time(2) };
        for (error, part) in [
            (expired, "has expired"),
            (CertificateError::Expired, "has expired"),
            (early, "not valid yet; compare the clocks"),
            (CertificateError::NotValidYet, "not valid yet; compare the clocks"),
            (name, "is for another name"),
            (CertificateError::NotValidForName, "is for another name"),
            (CertificateError::UnknownIssuer, "is not trusted"),
        ] {
            let text = Error::InvalidCertificate(error).to_string();
            let advice = tls_advice(&text, &POSTGRES).unwrap_or_default();
            assert!(advice.contains(part), "{text}: {advice}");
        }
        for (alert, part) in [
            (AlertDescription::CertificateRequired, "requires a client certificate"),
            (AlertDescription::UnknownCA, "does not accept the client certificate"),
        ] {
            let text = Error::AlertReceived(alert).to_string();
            let advice = tls_advice(&text, &POSTGRES).unwrap_or_default();
            assert!(advice.contains(part), "{text}: {advice}");
        }
        assert_eq!(tls_advice("connection refused", &POSTGRES), None);
    }
}
