//! The admin API of Unleash.

use std::fmt;

use reqwest::{Client, Method, RequestBuilder};
use serde_json::{Value, json};

use crate::{KitError, http};

/// A client of the admin API of any Unleash server, for flags of project `default` in environment `development`.
///
/// Every call sets a state, so it can be repeated.
#[derive(Clone)]
pub struct UnleashAdmin {
    client: Client,
    features: String,
    archive: String,
    tokens: String,
    client_features: String,
    metrics: String,
    token: String,
}

impl UnleashAdmin {
    /// `url` is the server's, without `/api`; `token` is an admin token.
    ///
    /// # Errors
    ///
    /// [`KitError::Http`] if no HTTP client can be made.
    pub fn new(url: impl AsRef<str>, token: impl Into<String>) -> Result<Self, KitError> {
        let url = url.as_ref().trim_end_matches('/');
        Ok(Self {
            client: http::client()?,
            features: format!("{url}/api/admin/projects/default/features"),
            archive: format!("{url}/api/admin/archive"),
            tokens: format!("{url}/api/admin/api-tokens"),
            client_features: format!("{url}/api/client/features"),
            metrics: format!("{url}/api/admin/client-metrics"),
            token: token.into(),
        })
    }

    /// Makes the flag if it does not exist. A new flag is off.
    ///
    /// # Errors
    ///
    /// [`KitError::Http`], [`KitError::Refused`]. The other calls have the same errors, also for a flag that does not
    /// exist.
    pub async fn ensure_flag(&self, name: &str) -> Result<(), KitError> {
        let request =
            self.request(Method::POST, &self.features).json(&json!({ "name": name, "type": "release" }));
        let answer = http::send(&format!("make flag {name}"), request, &[409]).await?;
        // The status is 409 for an archived name, too. Only a flag in use is accepted.
        if answer.status().as_u16() == 409 {
            let url = format!("{}/{name}", self.features);
            let request = self.request(Method::GET, &url);
            http::send(&format!("find flag {name}"), request, &[]).await?;
        }
        Ok(())
    }

    /// Enables it for `percent` of the users, always the same ones (sticky by `userId`).
    ///
    /// # Errors
    ///
    /// [`KitError::Misuse`] for more than 100.
    pub async fn set_rollout(&self, name: &str, percent: u8) -> Result<(), KitError> {
        if percent > 100 {
            return Err(KitError::Misuse(format!("rollout of {name}: {percent} % is more than 100 %")));
        }
        self.set_strategy(name, percent, "userId", json!([])).await
    }

    /// Sets one variant for all users, with the string payload `payload`.
    ///
    /// # Errors
    ///
    /// See [`ensure_flag`](Self::ensure_flag).
    pub async fn set_variant(&self, name: &str, payload: &str) -> Result<(), KitError> {
        let variant = json!({
            "name": "value",
            "weight": 1000,
            "weightType": "variable",
            "stickiness": "default",
            "payload": { "type": "string", "value": payload },
        });
        // With stickiness by `userId`, a request without a user would get no variant.
        self.set_strategy(name, 100, "default", json!([variant])).await
    }

    /// Switches it on.
    ///
    /// # Errors
    ///
    /// See [`ensure_flag`](Self::ensure_flag).
    pub async fn enable(&self, name: &str) -> Result<(), KitError> {
        self.switch(name, "on").await
    }

    /// Switches it off. Its strategy is kept.
    ///
    /// # Errors
    ///
    /// See [`ensure_flag`](Self::ensure_flag).
    pub async fn disable(&self, name: &str) -> Result<(), KitError> {
        self.switch(name, "off").await
    }

    /// Marks it as stale: about to be removed.
    ///
    /// # Errors
    ///
    /// See [`ensure_flag`](Self::ensure_flag).
    pub async fn mark_stale(&self, name: &str) -> Result<(), KitError> {
        let request = self.request(Method::PATCH, &format!("{}/{name}", self.features));
        let patch = json!([{ "op": "replace", "path": "/stale", "value": true }]);
        http::send(&format!("mark flag {name} as stale"), request.json(&patch), &[]).await?;
        Ok(())
    }

    /// Archives it. Clients no longer see it.
    ///
    /// # Errors
    ///
    /// See [`ensure_flag`](Self::ensure_flag).
    pub async fn archive(&self, name: &str) -> Result<(), KitError> {
        let request = self.request(Method::DELETE, &format!("{}/{name}", self.features));
        http::send(&format!("archive flag {name}"), request, &[]).await?;
        Ok(())
    }

    /// Brings an archived flag back. It is off.
    ///
    /// # Errors
    ///
    /// See [`ensure_flag`](Self::ensure_flag).
    pub async fn revive(&self, name: &str) -> Result<(), KitError> {
        let request = self.request(Method::POST, &format!("{}/revive/{name}", self.archive));
        http::send(&format!("revive flag {name}"), request, &[]).await?;
        Ok(())
    }

    /// Makes a token of this name for the client API, environment `development`.
    ///
    /// # Errors
    ///
    /// [`KitError::Http`], [`KitError::Refused`].
    pub async fn create_token(&self, name: &str) -> Result<String, KitError> {
        let token =
            json!({ "tokenName": name, "type": "client", "environment": "development", "projects": ["*"] });
        let request = self.request(Method::POST, &self.tokens).json(&token);
        let answer = http::json(&format!("make token {name}"), request).await?;
        Ok(answer["secret"].as_str().unwrap_or_default().to_owned())
    }

    /// Deletes a token. The client API answers its user with status 401 from then on.
    ///
    /// # Errors
    ///
    /// [`KitError::Http`], [`KitError::Refused`].
    pub async fn revoke_token(&self, token: &str) -> Result<(), KitError> {
        let request = self.request(Method::DELETE, &format!("{}/{token}", self.tokens));
        http::send("revoke a token", request, &[]).await?;
        Ok(())
    }

    /// Whether the client API accepts a token.
    ///
    /// # Errors
    ///
    /// [`KitError::Http`], [`KitError::Refused`].
    pub async fn accepts(&self, token: &str) -> Result<bool, KitError> {
        let request = self.client.get(&self.client_features).header("Authorization", token);
        let answer = http::send("ask for the flags", request, &[401, 403]).await?;
        Ok(answer.status().is_success())
    }

    /// How often applications reported it as on and as off in the last hours. The server stores reports every five
    /// seconds.
    ///
    /// # Errors
    ///
    /// See [`ensure_flag`](Self::ensure_flag).
    pub async fn reported(&self, name: &str) -> Result<(u64, u64), KitError> {
        let url = format!("{}/features/{name}/raw", self.metrics);
        let answer =
            http::json(&format!("ask for the counts of {name}"), self.request(Method::GET, &url)).await?;
        let rows = answer["data"].as_array().into_iter().flatten();
        let counts = rows.map(|row| (row["yes"].as_u64().unwrap_or(0), row["no"].as_u64().unwrap_or(0)));
        Ok(counts.fold((0, 0), |sum, row| (sum.0 + row.0, sum.1 + row.1)))
    }

    /// Archives and deletes it.
    ///
    /// # Errors
    ///
    /// [`KitError::Http`], [`KitError::Refused`]; a flag that does not exist is no error.
    pub async fn remove(&self, name: &str) -> Result<(), KitError> {
        for base in [&self.features, &self.archive] {
            let request = self.request(Method::DELETE, &format!("{base}/{name}"));
            http::send(&format!("remove flag {name}"), request, &[404]).await?;
        }
        Ok(())
    }

    async fn switch(&self, name: &str, to: &str) -> Result<(), KitError> {
        let url = format!("{}/{to}", self.environment(name));
        let request = self.request(Method::POST, &url);
        http::send(&format!("switch flag {name} {to}"), request, &[]).await?;
        Ok(())
    }

    /// Replaces all strategies of the flag by this one.
    async fn set_strategy(
        &self,
        name: &str,
        percent: u8,
        stickiness: &str,
        variants: Value,
    ) -> Result<(), KitError> {
        let url = format!("{}/strategies", self.environment(name));
        let strategy = json!({
            "name": "flexibleRollout",
            "parameters": {
                "rollout": percent.to_string(), "stickiness": stickiness, "groupId": name,
            },
            "constraints": [],
            "segments": [],
            "variants": variants,
        });
        let doing = format!("set the strategy of flag {name}");
        let present = http::json(&doing, self.request(Method::GET, &url)).await?;
        let mut ids = present
            .as_array()
            .into_iter()
            .flatten()
            .filter(|strategy| strategy["name"] == "flexibleRollout")
            .filter_map(|strategy| strategy["id"].as_str());
        let request = match ids.next() {
            Some(id) => self.request(Method::PUT, &format!("{url}/{id}")),
            None => self.request(Method::POST, &url),
        };
        http::send(&doing, request.json(&strategy), &[]).await?;
        for id in ids {
            let request = self.request(Method::DELETE, &format!("{url}/{id}"));
            http::send(&doing, request, &[404]).await?;
        }
        Ok(())
    }

    fn environment(&self, name: &str) -> String {
        format!("{}/{name}/environments/development", self.features)
    }

    fn request(&self, method: Method, url: &str) -> RequestBuilder {
        self.client.request(method, url).header("Authorization", &self.token)
    }
}

impl fmt::Debug for UnleashAdmin {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("UnleashAdmin").field("features", &self.features).finish_non_exhaustive()
    }
}
