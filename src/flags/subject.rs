//! Whom a decision is about.

use std::{fmt, net::IpAddr};

#[cfg(feature = "unleash")]
use unleash_api_client::context::{Context, IPAddress};

// Without the client there is nothing that reads a subject except a user's own code.
#[cfg(not(feature = "unleash"))]
#[derive(Default)]
struct Context {
    user_id: Option<String>,
    session_id: Option<String>,
    remote_address: Option<IPAddress>,
    properties: std::collections::HashMap<String, String>,
}

#[cfg(not(feature = "unleash"))]
struct IPAddress(IpAddr);

/// Whom a decision is about: what rollouts stick to and constraints look at.
///
/// A partial rollout sticks to the user if there is one, else to the session, else to nothing: then
/// every request draws its own lot. (Unleash's default stickiness.)
///
/// Whoever holds a session's id holds the session, so don't hand out the cookie's value: a hash of
/// it sticks as well. `Debug` shows neither user nor session nor values.
#[derive(Default)]
pub struct Subject {
    context: Context,
}

impl Subject {
    /// Nobody in particular. Allocates nothing.
    pub fn new() -> Self {
        Self::default()
    }

    /// With the id of a user.
    #[must_use]
    pub fn user(mut self, id: impl Into<String>) -> Self {
        self.context.user_id = Some(id.into());
        self
    }

    /// With the id of a session.
    #[must_use]
    pub fn session(mut self, id: impl Into<String>) -> Self {
        self.context.session_id = Some(id.into());
        self
    }

    /// With the address that the request came from.
    #[must_use]
    pub fn remote_address(mut self, address: IpAddr) -> Self {
        self.context.remote_address = Some(IPAddress(address));
        self
    }

    /// With a property for constraints of the flag's strategies, such as `region`.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.context.properties.insert(name.into(), value.into());
        self
    }

    /// The user's id.
    pub fn user_id(&self) -> Option<&str> {
        self.context.user_id.as_deref()
    }

    /// The session's id.
    pub fn session_id(&self) -> Option<&str> {
        self.context.session_id.as_deref()
    }

    /// The value of a property.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.context.properties.get(name).map(String::as_str)
    }
}

#[cfg(feature = "unleash")]
impl Subject {
    pub(super) fn context(&self) -> &Context {
        &self.context
    }

    /// A copy that also says which application asks.
    pub(super) fn context_in(&self, app_name: &str) -> Context {
        let from = &self.context;
        Context {
            user_id: from.user_id.clone(),
            session_id: from.session_id.clone(),
            remote_address: from.remote_address.as_ref().map(|ip| IPAddress(ip.0)),
            properties: from.properties.clone(),
            app_name: app_name.to_owned(),
            ..Context::default()
        }
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("user", &self.context.user_id.is_some())
            .field("session", &self.context.session_id.is_some())
            .field("remote_address", &self.address())
            .field("properties", &self.context.properties.len())
            .finish()
    }
}

impl Subject {
    fn address(&self) -> Option<IpAddr> {
        self.context.remote_address.as_ref().map(|ip| ip.0)
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
