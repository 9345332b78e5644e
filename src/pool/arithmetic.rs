use crate::ledger::ShareTable;

/// Divides the capacity among requests of (minimum, maximum): first the minimums, in the order of the requests, then the
/// rest one by one to the smallest share, up to the maximums.
fn fair(capacity: u32, requests: &[(u32, u32)]) -> Vec<u32> {
    let mut left = capacity;
    let mut shares: Vec<u32> = requests
        .iter()
        .map(|(min_connections, _)| {
            let share = left.min(*min_connections);
            left -= share;
            share
        })
        .collect();
    while left > 0 {
        let mut open: Vec<_> =
            shares.iter_mut().zip(requests).filter(|(share, (_, max))| **share < *max).collect();
        // To the smallest share, so that a large minimum gives no further advantage.
        open.sort_by_key(|(share, _)| **share);
        let Some((share, _)) = open.into_iter().next() else { break };
        *share += 1;
        left -= 1;
    }
    shares
}

/// The number of connections that this instance should reach, and the number that it may have now.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) struct Decision {
    pub(super) target: u32,
    pub(super) granted: u32,
}

/// Decides for the instance whose share is `mine` and whose pool can have `holding` connections at the moment.
///
/// A connection that another instance still holds is not granted. The instance keeps what it holds until it has given it
/// back.
pub(super) fn decide(table: &ShareTable, holding: u32) -> Decision {
    let ended: u32 = table.shares.iter().filter(|share| !share.alive).map(|share| share.held).sum();
    let living: Vec<_> = table.shares.iter().filter(|share| share.alive).collect();
    let requests: Vec<_> =
        living.iter().map(|share| (share.min_connections, share.max_connections)).collect();
    let shares = fair(table.capacity.saturating_sub(ended), &requests);
    let target = living.iter().zip(shares).find(|(share, _)| share.mine).map_or(0, |(_, share)| share);
    let others: u32 = table.shares.iter().filter(|share| !share.mine).map(|share| share.held).sum();
    let free = table.capacity.saturating_sub(others);
    Decision { target, granted: target.min(free).max(holding) }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ledger::Share;

    #[test]
    fn minimums_come_first_and_the_rest_is_divided_evenly() {
        assert_eq!(fair(10, &[(1, 10), (1, 10)]), [5, 5]);
        assert_eq!(fair(10, &[(1, 2), (1, 10)]), [2, 8]);
        assert_eq!(fair(3, &[(2, 10), (2, 10)]), [2, 1]);
        assert_eq!(fair(9, &[(5, 9), (1, 9)]), [5, 4]);
        assert_eq!(fair(0, &[(1, 1)]), [0]);
    }

    /// Instances start, leave, shrink slowly and are killed at random.
    #[test]
    fn the_sum_never_exceeds_the_budget() {
        for seed in 0..500 {
            let mut random = fastrand::Rng::with_seed(seed);
            let capacity = random.u32(0..40);
            let mut shares: Vec<Share> = Vec::new();
            for _ in 0..200 {
                match random.u8(0..10) {
                    0 if shares.len() < 8 => {
                        let min_connections = random.u32(0..4);
                        let max_connections = min_connections + random.u32(0..20);
                        shares.push(Share {
                            min_connections,
                            max_connections,
                            held: 0,
                            alive: true,
                            mine: false,
                        });
                    }
                    1 if !shares.is_empty() => {
                        let at = random.usize(0..shares.len());
                        shares[at].alive = false;
                    }
                    2 => shares.retain(|share| share.alive),
                    _ if !shares.is_empty() => {
                        let at = random.usize(0..shares.len());
                        if !shares[at].alive {
                            continue;
                        }
                        let mut table =
                            ShareTable { shares: shares.clone(), capacity, reckoning: String::new() };
                        table.shares[at].mine = true;
                        let decision = decide(&table, shares[at].held);
                        // It gives back its idle connections, however many there are.
                        let back = decision.granted.saturating_sub(decision.target);
                        shares[at].held = decision.granted - random.u32(0..=back);
                    }
                    _ => {}
                }
                let sum: u32 = shares.iter().map(|share| share.held).sum();
                assert!(sum <= capacity, "seed {seed}: {sum} of {capacity}");
            }
        }
    }
}
