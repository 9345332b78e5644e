//! The two sides.
