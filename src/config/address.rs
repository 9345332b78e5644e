//! Addresses of servers that hold secrets.

use std::fmt;
use std::str::FromStr;

use sqlx::postgres::PgConnectOptions;

use super::known::remember_password;

/// The parameters of an address that the driver knows, apart from `options[…]`.
const PARAMETERS: [&str; 18] = [
    "application_name",
    "dbname",
    "host",
    "hostaddr",
    "options",
    "password",
    "port",
    "ssl-ca",
    "ssl-cert",
    "ssl-key",
    "ssl-mode",
    "ssl-root-cert",
    "sslcert",
    "sslkey",
    "sslmode",
    "sslrootcert",
    "statement-cache-capacity",
    "user",
];

/// Parameters of other clients. A name that is in neither list may be a part of a password with `&`, so it is not shown.
const OF_OTHER_CLIENTS: [&str; 26] = [
    "channel_binding",
    "client_encoding",
    "connect_timeout",
    "connection_limit",
    "fallback_application_name",
    "gssencmode",
    "keepalives",
    "keepalives_count",
    "keepalives_idle",
    "keepalives_interval",
    "load_balance_hosts",
    "passfile",
    "pgbouncer",
    "pool_timeout",
    "require_auth",
    "requirepeer",
    "schema",
    "socket_timeout",
    "sslcompression",
    "sslcrl",
    "sslnegotiation",
    "sslpassword",
    "sslsni",
    "statement_cache_size",
    "target_session_attrs",
    "tcp_user_timeout",
];

/// The connect options of an address of Postgres, or what is wrong with it. Neither the problem nor a log line holds any part
/// of the address that may be secret.
///
/// The driver accepts any scheme, takes a part of a password with `/` for the host, and logs parameters that it does not know
/// with their values. Such parameters are left out here, with a warning that names them.
pub fn postgres_options(url: &str) -> Result<PgConnectOptions, String> {
    let schemes = ["postgres://", "postgresql://"];
    let rest = without_scheme(url, &schemes)?;
    match address_problem(rest) {
        Some(problem @ AddressProblem::SeveralHosts) => {
            return Err(format!(
                "{problem}; use one name or address that leads to the primary, such as that of a proxy or a service, \
                 and leave target_session_attrs out: a server that is read-only is refused in any case"
            ));
        }
        Some(problem) => return Err(problem.to_string()),
        None => {}
    }
    let (url, unknown) = known_parameters(url)?;
    missing_file(&url)?;
    let options =
        PgConnectOptions::from_str(&url).map_err(|error| format!("could not be parsed: {error}"))?;
    remember_password(&options);
    if !unknown.is_empty() {
        tracing::warn!(
            parameters = unknown.join(", "),
            "the address of Postgres has parameters that the driver does not know; they have no effect"
        );
    }
    Ok(options)
}

/// The address behind one of these schemes.
pub(crate) fn without_scheme<'a>(url: &'a str, schemes: &[&str]) -> Result<&'a str, String> {
    let rest = schemes.iter().find_map(|scheme| url.strip_prefix(scheme));
    rest.ok_or_else(|| format!("has to begin with {}", schemes.join(" or ")))
}

/// What is wrong with an address. The text has no part of it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(crate) enum AddressProblem {
    /// A password with `/`, `?` or `#` ends the host too early, and the rest of it would be logged as part of a path.
    Unencoded,
    SeveralHosts,
}

impl fmt::Display for AddressProblem {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Self::Unencoded => "has a user or password with / ? or #; write %2F, %3F or %23 instead",
            Self::SeveralHosts => "names several hosts",
        })
    }
}

pub(crate) fn address_problem(rest: &str) -> Option<AddressProblem> {
    let (authority, after) = rest.split_at(rest.find(['/', '?', '#']).unwrap_or(rest.len()));
    let (path, query) = after.split_once('?').unwrap_or((after, ""));
    let before_at = query.split_once('@').map(|(before, _)| before);
    if path.contains('@') || before_at.is_some_and(|before| !before.contains('=')) {
        return Some(AddressProblem::Unencoded);
    }
    let parameters = query.split('&').filter_map(|pair| pair.split_once('='));
    let hosts =
        parameters.filter(|(name, _)| ["host", "hostaddr", "port"].contains(name)).map(|(_, value)| value);
    if authority
        .rsplit('@')
        .next()
        .into_iter()
        .chain(hosts)
        .any(|host| host.contains(',') || host.contains("%2C"))
    {
        return Some(AddressProblem::SeveralHosts);
    }
    None
}

/// The driver's error for a missing file does not name the file.
fn missing_file(url: &str) -> Result<(), String> {
    let query = url.split_once('?').map(|(_, query)| query).unwrap_or_default();
    for (name, file) in query.split('&').filter_map(|pair| pair.split_once('=')) {
        // A value with `%` may be the certificate itself.
        let is_file = name.starts_with("ssl") && file.starts_with('/') && !file.contains('%');
        if is_file && let Err(error) = std::fs::File::open(file) {
            return Err(format!("names the file {file} in {name}, which cannot be read: {error}"));
        }
    }
    Ok(())
}

/// The address with the parameters that the driver knows, and the names of the others.
fn known_parameters(url: &str) -> Result<(String, Vec<String>), String> {
    let Some((address, query)) = url.split_once('?') else { return Ok((url.to_owned(), Vec::new())) };
    let (mut known, mut unknown) = (Vec::new(), Vec::new());
    for (position, pair) in (1..).zip(query.split('&').filter(|pair| !pair.is_empty())) {
        let Some((name, _)) = pair.split_once('=') else {
            return Err("has a parameter without a value; write & in a value as %26".to_owned());
        };
        let is_option = name.starts_with("options[") || name.to_ascii_lowercase().starts_with("options%5b");
        if PARAMETERS.contains(&name) || is_option {
            known.push(pair);
        } else if OF_OTHER_CLIENTS.contains(&name) {
            unknown.push(name.to_owned());
        } else if name.bytes().all(|byte| byte.is_ascii_alphanumeric() || b"_-".contains(&byte)) {
            unknown.push(format!("number {position}"));
        } else {
            return Err("has a parameter whose name is not made of letters, digits, - and _; \
                        write & in a value as %26, and # as %23"
                .to_owned());
        }
    }
    let separator = if known.is_empty() { "" } else { "?" };
    Ok((format!("{address}{separator}{}", known.join("&")), unknown))
}

#[cfg(test)]
mod tests {
    use sqlx::ConnectOptions;

    use super::*;

    #[test]
    fn an_address_that_would_be_misread_is_refused() {
        for good in
            ["u:p@db/x", "db", "/var/run/redis.sock", "db/x?user=me@server", "u:p%2Fq@[::1]:5432/x?a=b"]
        {
            assert_eq!(address_problem(good), None, "{good}");
        }
        for password in ["12/34", "12?34", "12#34", "a/b?c"] {
            let problem = address_problem(&format!("u:{password}@db/x")).unwrap().to_string();
            assert!(problem.contains("%2F") && !problem.contains("12"), "{password}: {problem}");
        }
        for hosts in ["u:p@db1,db2/x", "u:p@db1:1,db2:2/x", "db/x?host=a,b", "/x?host=a%2Cb", "/x?port=1,2"] {
            assert_eq!(address_problem(hosts), Some(AddressProblem::SeveralHosts), "{hosts}");
        }
    }

    #[test]
    fn several_hosts_are_refused_with_what_to_use_instead() {
        let url = "postgres://me:hunter2@a:5432,b:5432/app?target_session_attrs=read-write";
        let problem = postgres_options(url).unwrap_err();
        assert!(problem.contains("several hosts; use one") && !problem.contains("hunter2"), "{problem}");
    }

    #[test]
    fn hosts_of_every_kind_and_odd_passwords_are_read() {
        let of = |url: &str| postgres_options(url).unwrap();
        assert_eq!(of("postgres://me@[2001:db8::1]:6432/app").get_host(), "[2001:db8::1]");
        assert_eq!(of("postgresql:///app?host=2001:db8::1").get_host(), "2001:db8::1");
        assert_eq!(of("postgres://me@%2Frun%2Fpg/app").get_socket().unwrap().as_os_str(), "/run/pg");
        let odd: String = (' '..='~').chain("äé€".chars()).collect();
        let plain = |byte: u8| byte.is_ascii_alphanumeric();
        let encode =
            |byte: u8| if plain(byte) { char::from(byte).to_string() } else { format!("%{byte:02X}") };
        let encoded: String = odd.bytes().map(encode).collect();
        for url in
            [format!("postgres://me:{encoded}@db/app"), format!("postgres://me@db/app?password={encoded}")]
        {
            assert_eq!(of(&url).to_url_lossy().password(), Some(&*encoded));
        }
    }

    #[test]
    fn parameters_that_the_driver_does_not_know_are_left_out() {
        let url = "postgres://db/app?sslpassword=hunter2&sslmode=require&connect_timeout=5&options[a.b]=c";
        let (known, unknown) = known_parameters(url).unwrap();
        assert_eq!(known, "postgres://db/app?sslmode=require&options[a.b]=c");
        assert_eq!(unknown, ["sslpassword", "connect_timeout"]);
        let (_, unknown) = known_parameters("postgres://db/app?password=a&hunter2=b").unwrap();
        assert_eq!(unknown, ["number 2"]);
        let problem = postgres_options("postgres://db/app?password=a&hunter2").unwrap_err();
        assert!(problem.contains("%26") && !problem.contains("hunter2"), "{problem}");
        assert_eq!(known_parameters("postgres://db/app?x=1").unwrap().0, "postgres://db/app");
        let problem = postgres_options("postgres://db/app?password=a&hun ter2=x").unwrap_err();
        assert!(problem.contains("%26") && !problem.contains("ter2"), "{problem}");
    }
}
