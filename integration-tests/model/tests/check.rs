//! Checks the protocol, and that the check can fail.
use std::collections::BTreeSet;
use std::time::Instant;

use cutover::migration::phase::Phase;
use cutover_model::{Build, Protocol, Rule};
use stateright::{Checker, HasDiscoveries, Model};

fn walk(epochs: u8) -> Protocol {
    Protocol {
        starts: vec![Phase::Off],
        epochs,
        instances: 2,
        operations: 1,
        drops: true,
        builds: &[Build::Both],
        paused_driver: false,
        failover: false,
        judges_before_contact: false,
        without: None,
    }
}

fn try_out(name: &str, protocol: Protocol) {
    let began = Instant::now();
    let checker = protocol.checker().finish_when(HasDiscoveries::AnyFailures).spawn_bfs().join();
    println!("{name}: {} states, {} steps, {:?}", checker.unique_state_count(), checker.state_count(), began.elapsed());
    for (name, path) in checker.discoveries() {
        if name.starts_with("no ") || name.starts_with("at most") {
        println!("{name}: {:#?} {:?}", path.clone().into_actions(), path.last_state());
        } else { println!("   {name} {}", path.into_actions().len()); }
    }
    let _: BTreeSet<Rule> = BTreeSet::new();
}

#[test]
fn explore() {
    let epochs: u8 = std::env::var("EPOCHS").map_or(5, |e| e.parse().unwrap());
    let mut protocol = walk(epochs);
    let on = |name: &str| std::env::var("WITH").is_ok_and(|with| with.contains(name));
    if on("all") { protocol.starts = Phase::ALL.to_vec(); }
    if on("paused") { protocol.paused_driver = true; }
    if on("failover") { protocol.failover = true; }
    if on("judge") { protocol.judges_before_contact = true; }
    if on("builds") { protocol.builds = &[Build::Unaware, Build::Both, Build::NewOnly]; protocol.operations = 0; }
    if let Ok(n) = std::env::var("OPS") { protocol.operations = n.parse().unwrap(); }
    if let Ok(n) = std::env::var("N") { protocol.instances = n.parse().unwrap(); }
    if let Ok(rule) = std::env::var("RULE") { protocol.without = Rule::ALL.into_iter().find(|r| format!("{r:?}") == rule); assert!(protocol.without.is_some()); }
    try_out("explore", protocol);
}
