//! Attribute macros for the `cutover` crate.
