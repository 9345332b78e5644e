//! Constraints that come and objects that go while writers break the rules that come, as long as they may.

mod model;
mod shape;
mod world;
mod writer;

pub(crate) use shape::ChangeShape;
pub(crate) use world::ChangeWorld;
