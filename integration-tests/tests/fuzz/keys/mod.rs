//! A key that becomes `bigint` while the service and others write its table and those that refer to it.

mod model;
mod shape;
mod world;
mod writer;

pub(crate) use shape::KeyShape;
pub(crate) use world::KeyWorld;
