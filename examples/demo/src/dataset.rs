//! The initial orders: generated from a seed, or imported.

use std::collections::HashMap;

use crate::status;

/// An order as it is loaded.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(crate) struct Order {
    pub(crate) id: u64,
    pub(crate) customer: String,
    pub(crate) amount_cents: i64,
    /// In its original spelling. `None` is NULL.
    pub(crate) status: Option<String>,
}

/// The source of the orders.
pub(crate) enum Orders {
    /// Each row is computed from seed and id, so a million rows take no memory.
    Seeded { seed: u64, rows: u64 },
    /// In the order of the file, with the position of each id.
    Imported { orders: Vec<Order>, places: HashMap<u64, usize> },
}

impl Orders {
    pub(crate) fn imported(orders: Vec<Order>) -> Self {
        let places = orders.iter().enumerate().map(|(place, order)| (order.id, place)).collect();
        Self::Imported { orders, places }
    }

    pub(crate) fn len(&self) -> u64 {
        match self {
            Self::Seeded { rows, .. } => *rows,
            Self::Imported { orders, .. } => orders.len() as u64,
        }
    }

    /// The order at `place`, from 0 to `len() - 1`.
    pub(crate) fn at(&self, place: u64) -> Order {
        match self {
            Self::Seeded { seed, .. } => generated(*seed, place + 1),
            Self::Imported { orders, .. } => orders[place as usize].clone(),
        }
    }

    pub(crate) fn id_at(&self, place: u64) -> u64 {
        match self {
            Self::Seeded { .. } => place + 1,
            Self::Imported { orders, .. } => orders[place as usize].id,
        }
    }

    pub(crate) fn all(&self) -> impl Iterator<Item = Order> + '_ {
        (0..self.len()).map(|place| self.at(place))
    }

    /// The canonical status that order `id` was loaded with; `None` if it was not loaded.
    pub(crate) fn first_status(&self, id: u64) -> Option<&'static str> {
        match self {
            Self::Seeded { seed, rows } => {
                (1..=*rows).contains(&id).then(|| status::canonical(generated_status(&mut rng(*seed, id))))
            }
            Self::Imported { orders, places } => {
                places.get(&id).map(|&place| status::canonical(orders[place].status.as_deref()))
            }
        }
    }
}

/// The frequency of each spelling, in thousandths: what many programs wrote over ten years.
const SPELLINGS: [(u32, Option<&str>); 30] = [
    (330, Some("PAID")),
    (140, Some("SHIPPED")),
    (120, Some("PENDING")),
    (60, None),
    (45, Some(" Paid")),
    (40, Some("settled")),
    (35, Some("REFUNDED")),
    (30, Some("FAILED")),
    (25, Some("CANCELLED")),
    (22, Some("CANCELED")),
    (20, Some("AUTHORIZED")),
    (18, Some("auth")),
    (15, Some("")),
    (12, Some("captured")),
    (12, Some("sent")),
    (10, Some("refund")),
    (10, Some("chargeback")),
    (8, Some("complete ")),
    (8, Some("Declined")),
    (7, Some("void")),
    (6, Some("new")),
    (5, Some("open")),
    (5, Some("authorised")),
    (5, Some("ship")),
    (4, Some("  ")),
    (3, Some("error")),
    (2, Some("fail")),
    (1, Some("paid?")),
    (1, Some("TODO ask bank")),
    (1, Some("0")),
];

fn generated(seed: u64, id: u64) -> Order {
    let mut rng = rng(seed, id);
    let status = generated_status(&mut rng).map(str::to_owned);
    // Most orders are small.
    let amount_cents = 99 + (rng.f64().powi(4) * 250_000.0) as i64;
    Order { id, customer: format!("customer-{}", rng.u32(1..=50_000)), amount_cents, status }
}

fn generated_status(rng: &mut fastrand::Rng) -> Option<&'static str> {
    let total = SPELLINGS.iter().map(|(weight, _)| weight).sum();
    let mut left = rng.u32(0..total);
    let chosen = SPELLINGS.iter().find(|(weight, _)| {
        let found = left < *weight;
        left = left.saturating_sub(*weight);
        found
    });
    chosen.and_then(|(_, spelling)| *spelling)
}

fn rng(seed: u64, id: u64) -> fastrand::Rng {
    fastrand::Rng::with_seed(seed ^ id.wrapping_mul(0x9E37_79B9_7F4A_7C15))
}

#[cfg(test)]
mod tests {
    use std::collections::HashSet;

    use super::*;

    #[test]
    fn orders_depend_on_the_seed_only() {
        let orders = |seed| Orders::Seeded { seed, rows: 200 }.all().collect::<Vec<_>>();
        assert_eq!(orders(7), orders(7));
        assert_ne!(orders(7), orders(8));
        assert_eq!(orders(7)[199].id, 200);
    }

    #[test]
    fn all_meanings_and_spellings_occur() {
        let orders = Orders::Seeded { seed: 1, rows: 20_000 };
        let meanings: HashSet<_> = orders.all().map(|o| status::canonical(o.status.as_deref())).collect();
        assert!(status::CANONICAL.iter().all(|word| meanings.contains(word)), "{meanings:?}");
        assert!(meanings.contains("unknown"));
        let spellings: HashSet<_> = orders.all().map(|order| order.status).collect();
        assert_eq!(spellings.len(), SPELLINGS.len());
        assert!(orders.all().all(|order| order.amount_cents > 0 && !order.customer.is_empty()));
    }

    #[test]
    fn first_status_is_found_by_id() {
        let seeded = Orders::Seeded { seed: 3, rows: 500 };
        let imported = Orders::imported(seeded.all().collect());
        for order in seeded.all() {
            let meaning = status::canonical(order.status.as_deref());
            assert_eq!(seeded.first_status(order.id), Some(meaning));
            assert_eq!(imported.first_status(order.id), Some(meaning));
        }
        assert_eq!(seeded.first_status(501), None);
        assert_eq!(imported.first_status(501), None);
    }
}
