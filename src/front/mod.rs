//! The front door: one builder that composes all rooms for the ordinary service.
//!
//! Every part also stands alone; nothing here does more than make them and put them together. It is the only
//! room besides [`release`](crate::release) that reads the environment:
//!
//! | variable | meaning | default |
//! |---|---|---|
//! | `LISTEN_ADDR` | address of the public listener | `0.0.0.0:8080` |
//! | `ADMIN_ADDR` | address of the listener for probes, metrics and `/drain` | `0.0.0.0:9090` |
//! | `UNLEASH_URL`, `UNLEASH_TOKEN` | the flag server and a backend token of it | none: every flag has its default |
//! | `CUTOVER_VERSION`, `CUTOVER_REVISION`, `CUTOVER_INSTANCE` | see [`Release::from_env`](crate::release::Release::from_env) | |

mod builder;
mod desired;
mod error;
mod instance;
#[cfg(feature = "unleash")]
mod kept;

pub use builder::Cutover;
pub use error::StartError;
pub use instance::Instance;
