//! Who this process is: service, version, revision and instance.
//!
//! **Hazard.** A canary is judged by comparing series of one version with series of
//! another. Where each layer finds its own name for "this version", the comparison runs
//! over an empty or mixed set and the bad build looks healthy. So the identity is made
//! once, checked once, and handed to everything that labels or registers something.

mod error;
mod identity;

pub use error::ReleaseError;
pub use identity::Release;
