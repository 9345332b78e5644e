//! The live demonstration behind `make demo`.

mod args;
mod balancer;
mod board;
mod client;
mod csv_orders;
mod customers;
mod database;
mod dataset;
mod failure;
mod ledger;
mod load;
#[cfg(test)]
mod load_tests;
mod proxy;
mod report;
mod screen;
mod stats;
mod status;
#[cfg(test)]
mod stub;

fn main() {}
