//! The identity of this process: service, version, revision and instance.
//!
//! **Hazard.** A canary is judged by comparing the series of one version with those of another. If each layer finds its
//! own name for "this version", the comparison runs over an empty or a mixed set, and the bad build looks healthy. So the
//! identity is built and checked once, and everything that needs a label or a name gets it from here.

mod identity;

pub use identity::Release;
