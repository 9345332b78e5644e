//! The subject of a decision.

use std::{collections::HashMap, fmt, net::IpAddr, sync::LazyLock};

static NO_PROPERTIES: LazyLock<HashMap<String, String>> = LazyLock::new(HashMap::new);

/// The subject of a decision: rollouts are sticky by it, and constraints compare its fields.
///
/// A partial rollout is sticky by the user if there is one, otherwise by the session, otherwise random for every request
/// (Unleash's default stickiness).
///
/// A session id grants access to the session, so do not use the value of the cookie; a hash of it is as sticky. `Debug`
/// shows neither the user, nor the session, nor the values of properties.
#[derive(Default)]
pub struct Subject(
    /// In a box, because the layer moves the subject of every request several times, and most have no field.
    Option<Box<Fields>>,
);

#[derive(Default)]
struct Fields {
    user: Option<String>,
    session: Option<String>,
    address: Option<String>,
    properties: HashMap<String, String>,
}

impl Subject {
    /// A subject without any fields. Does not allocate.
    pub fn new() -> Self {
        Self::default()
    }

    fn fields_mut(&mut self) -> &mut Fields {
        self.0.get_or_insert_default()
    }

    /// Sets the id of the user.
    #[must_use]
    pub fn user(mut self, id: impl Into<String>) -> Self {
        self.fields_mut().user = Some(id.into());
        self
    }

    /// Sets the id of the session.
    #[must_use]
    pub fn session(mut self, id: impl Into<String>) -> Self {
        self.fields_mut().session = Some(id.into());
        self
    }

    /// Sets the client's address.
    #[must_use]
    pub fn remote_address(mut self, address: IpAddr) -> Self {
        self.fields_mut().address = Some(address.to_string());
        self
    }

    /// Sets a property for constraints of the flag's strategies, such as `region`.
    ///
    /// The names `environment`, `appName` (default: the application's) and `currentTime` (RFC 3339; default: now) set
    /// those fields of Unleash's context.
    #[must_use]
    pub fn property(mut self, name: impl Into<String>, value: impl Into<String>) -> Self {
        self.fields_mut().properties.insert(name.into(), value.into());
        self
    }

    /// The user's id.
    pub fn user_id(&self) -> Option<&str> {
        self.0.as_ref()?.user.as_deref()
    }

    /// The session's id.
    pub fn session_id(&self) -> Option<&str> {
        self.0.as_ref()?.session.as_deref()
    }

    /// The value of a property.
    pub fn get(&self, name: &str) -> Option<&str> {
        self.properties().get(name).map(String::as_str)
    }

    /// The client's address.
    pub fn address(&self) -> Option<&str> {
        self.0.as_ref()?.address.as_deref()
    }

    /// All properties.
    pub fn properties(&self) -> &HashMap<String, String> {
        self.0.as_ref().map_or(&*NO_PROPERTIES, |fields| &fields.properties)
    }
}

impl fmt::Debug for Subject {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Subject")
            .field("user", &self.user_id().is_some())
            .field("session", &self.session_id().is_some())
            .field("remote_address", &self.address())
            .field("properties", &self.properties().len())
            .finish()
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn debug_output_contains_no_ids() {
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
