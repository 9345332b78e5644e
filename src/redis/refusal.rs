//! What the error codes of Redis mean for the command that got one.

use deadpool_redis::redis::{ErrorKind, RedisError};

use crate::config::{REDIS, with_tls_advice};

/// What becomes of a command that a server refused.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Outlook {
    /// The server did not run it. A new connection, or the same server a moment later, may.
    Passing,
    /// It is refused until a person changes something.
    Lasting,
}

use Outlook::{Lasting, Passing};

/// The codes of refusals that do not depend on the command, what to expect, and what a person can do.
const CODES: [(&str, Outlook, &str); 13] = [
    (
        "READONLY",
        Passing,
        "the server refuses writes because it is a replica; point the address at the primary, \
         or promote this server with: REPLICAOF NO ONE",
    ),
    (
        "NOREPLICAS",
        Passing,
        "the server refuses writes because too few replicas are in step; see: INFO replication, and min-replicas-to-write",
    ),
    (
        "MASTERDOWN",
        Passing,
        "the server is a replica that lost its primary; point the address at the primary, \
         or promote this server with: REPLICAOF NO ONE",
    ),
    ("LOADING", Passing, "the server loads its data and answers afterwards; see: INFO persistence"),
    (
        "CLUSTERDOWN",
        Passing,
        "a part of the cluster has no primary; see: CLUSTER INFO, and on a replica of that part: CLUSTER FAILOVER FORCE",
    ),
    ("TRYAGAIN", Passing, "the cluster is moving the slot of the key"),
    ("BUSY", Passing, "the server runs a script that takes too long; end it with: SCRIPT KILL"),
    (
        "MOVED",
        Lasting,
        "the server belongs to a Redis Cluster; use a pool of `deadpool_redis::cluster`, which `Cutover::redis` accepts",
    ),
    (
        "ASK",
        Lasting,
        "the server belongs to a Redis Cluster; use a pool of `deadpool_redis::cluster`, which `Cutover::redis` accepts",
    ),
    (
        "OOM",
        Lasting,
        "the server has reached its limit of memory and evicts no key; \
         raise it with: CONFIG SET maxmemory <bytes>, or see: CONFIG GET maxmemory-policy",
    ),
    (
        "MISCONF",
        Lasting,
        "the server refuses writes because it cannot save its data to disk; see its log, and: INFO persistence",
    ),
    (
        "NOAUTH",
        Lasting,
        "the address has no password, and the server requires one; use redis://:<password>@host",
    ),
    ("WRONGPASS", Lasting, "the server does not accept the user and password of the address"),
];

/// The code of a refusal that is in [`CODES`]. Versions before 7 report an error inside a script as text of an `ERR`.
fn known(error: &RedisError) -> Option<&'static (&'static str, Outlook, &'static str)> {
    let code = error.code()?;
    let inside = |known: &str| {
        let mark = format!("-{known} ");
        code == "ERR" && error.detail().is_some_and(|detail| detail.contains(&mark))
    };
    CODES.iter().find(|(known, ..)| code == *known || inside(known))
}

pub(super) fn is_passing(error: &RedisError) -> bool {
    known(error).is_some_and(|(_, outlook, _)| *outlook == Passing)
}

/// Whether the user lacks a privilege for the command or its key.
pub(crate) fn is_missing_privilege(error: &RedisError) -> bool {
    error.code() == Some("NOPERM")
}

/// The error for people, with what to do about it.
pub(crate) fn describe(error: &RedisError) -> String {
    match (known(error), error.kind()) {
        (Some((_, _, advice)), _) => format!("{advice} ({error})"),
        (None, ErrorKind::MasterNameNotFoundBySentinel) => {
            format!("no Sentinel knows a primary of this name; see: SENTINEL MASTERS ({error})")
        }
        (None, _) => with_tls_advice(error.to_string(), &REDIS),
    }
}

#[cfg(test)]
mod tests {
    use deadpool_redis::redis::{Value, make_extension_error, parse_redis_value};

    use super::*;

    fn error(line: &str) -> RedisError {
        let value: Value = parse_redis_value(format!("-{line}\r\n").as_bytes()).unwrap();
        value.extract_error().unwrap_err()
    }

    #[test]
    fn each_code_has_an_outlook_and_advice() {
        for (code, outlook, advice) in CODES {
            let refused = error(&format!("{code} because of something"));
            assert_eq!(is_passing(&refused), outlook == Passing, "{code}");
            assert!(describe(&refused).starts_with(advice), "{code}: {}", describe(&refused));
        }
    }

    #[test]
    fn a_refusal_inside_a_script_is_known_on_every_version() {
        let old = error(
            "ERR Error running script (call to f_1): @user_script:1: -READONLY You can't write against a read only replica.",
        );
        let new =
            error("READONLY You can't write against a read only replica. script: f_1, on @user_script:1.");
        assert!(is_passing(&old) && is_passing(&new));
        assert!(describe(&old).contains("REPLICAOF NO ONE"));
    }

    #[test]
    fn other_errors_last() {
        for line in ["ERR unknown command", "WRONGTYPE wrong kind of value", "NOPERM no permission"] {
            assert!(!is_passing(&error(line)), "{line}");
        }
        assert!(is_missing_privilege(&error("NOPERM no permission")));
        assert!(!is_passing(&make_extension_error("OTHER".to_owned(), None)));
    }
}
