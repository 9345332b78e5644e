//! Whom a decision is about.

use std::{collections::HashMap, fmt, net::IpAddr};

/// Whom a decision is about: what rollouts stick to and constraints look at.
///
/// A partial rollout sticks to the user if there is one, else to the session, else to nothing: then
/// every request draws its own lot. (Unleash's default stickiness.)
///
/// Whoever holds a session's id holds the session, so don't hand out the cookie's value: a hash of
/// it sticks as well. `Debug` shows neither user nor session nor values.
#[derive(Default)]
pub struct Subject {
    user: Option<String>,
    session: Option<String>,
    address: Option<String>,
    properties: HashMap<String, String>,
}

impl Subject {
    /// Nobody in particular. Allocates nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// With the id of a user.
    #[must_use]
    pub fn user(mut self, id: impl Into<String>) -> Self {
        self.user = Some(id.into());
        self
    }

    /// With the id of a session.
    #[must_use]
    pub fn session(mut self, id: impl Into<String>) -> Self {
        self.session = Some(id.into());
        self
    }

    /// With the address that the request came from.
    #[must_use]
    pub fn remote_address(mut self, address: IpAddr) -> Self {
        self.address = Some(address.to_string());
        self
    }

    /// With a property for constraints of the flag's strategies, such as `region`.
    ///
    /// Named like a field of Unleash's own context it is that field: `environment`, `appName`
    /// (otherwise the application's), `currentTime` (RFC 3339; otherwise now).
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.properties.insert(name.into(), value.into());
        self
    }

    /// The user's id.
    pub fn user_id(&self) -> Option<&str> {
        self.user.as_deref()
    }

    /// The session's id.
    pub fn session_id(&self) -> Option<&str> {
        self.session.as_deref()
    }

    /// The value of a property.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.properties.get(name).map(String::as_str)
    }

    /// The address that the request came from.
    pub fn address(&self) -> Option<&str> {
        self.address.as_deref()
    }

    /// All properties.
    pub fn properties(&self) -> &HashMap<String, String> {
        &self.properties
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("user", &self.user.is_some())
            .field("session", &self.session.is_some())
            .field("remote_address", &self.address)
            .field("properties", &self.properties.len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_keeps_ids_to_itself() {
        let subject = Subject::new().user("alice").session("s3cret").property("card", "4111");
        let text = format!("{subject:?}");
        for hidden in ["alice", "s3cret", "4111"] {
            assert!(!text.contains(hidden), "{text}");
        }
        assert_eq!(subject.user_id(), Some("alice"));
        assert_eq!(subject.session_id(), Some("s3cret"));
        assert_eq!(subject.get("card"), Some("4111"));
    }
}
