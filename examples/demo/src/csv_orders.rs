//! Reads orders from a CSV file.
//!
//! Columns are found by name, in any order: `customer`, `amount_cents`, `status` and, optionally, `id`. Bad rows are counted,
//! and the first few are shown with their line.

use std::{collections::HashSet, io::Read, path::Path};

use csv::StringRecord;

use crate::{
    dataset::Order,
    failure::{During, Failure, Result},
};

/// Number of bad rows that are shown.
const SHOWN: usize = 5;

/// The content of a file.
#[derive(Debug)]
pub(crate) struct Import {
    pub(crate) orders: Vec<Order>,
    pub(crate) bad_rows: u64,
    /// `line 17: amount_cents is "1,20", not a whole number of cents`
    pub(crate) first_bad: Vec<String>,
}

pub(crate) fn read_file(path: &Path) -> Result<Import> {
    let what = format!("reading orders from {}", path.display());
    let file = std::fs::File::open(path).during(&what)?;
    read(std::io::BufReader::new(file)).during(&what)
}

fn read(source: impl Read) -> Result<Import> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).flexible(true).from_reader(source);
    let columns = Columns::find(reader.headers()?)?;
    let mut import = Import { orders: Vec::new(), bad_rows: 0, first_bad: Vec::new() };
    let mut ids = HashSet::new();
    for (number, record) in (1..).zip(reader.records()) {
        let (line, order) = match record {
            Ok(record) => {
                let line = record.position().map_or(0, csv::Position::line);
                (line, columns.order(&record, number))
            }
            Err(error) if error.is_io_error() => return Err(error.into()),
            Err(error) => (error.position().map_or(0, csv::Position::line), Err(error.to_string())),
        };
        let order = order.and_then(|order| {
            let is_new = ids.insert(order.id);
            is_new.then_some(order.clone()).ok_or(format!("id {} was used before", order.id))
        });
        match order {
            Ok(order) => import.orders.push(order),
            Err(why) => {
                import.bad_rows += 1;
                if import.first_bad.len() < SHOWN {
                    import.first_bad.push(format!("line {line}: {why}"));
                }
            }
        }
    }
    if import.orders.is_empty() {
        let shown = import.first_bad.join("; ");
        return Err(Failure::new(format!("no row could be used ({} bad rows: {shown})", import.bad_rows)));
    }
    Ok(import)
}

struct Columns {
    id: Option<usize>,
    customer: usize,
    amount_cents: usize,
    status: usize,
}

impl Columns {
    fn find(header: &StringRecord) -> Result<Self> {
        let header = header.iter().map(|name| name.trim_start_matches('\u{feff}').to_lowercase());
        let header: Vec<String> = header.collect();
        let find = |name: &str| header.iter().position(|column| column == name);
        let missing = ["customer", "amount_cents", "status"].into_iter().filter(|name| find(name).is_none());
        let missing: Vec<&str> = missing.collect();
        match (find("customer"), find("amount_cents"), find("status")) {
            (Some(customer), Some(amount_cents), Some(status)) => {
                Ok(Self { id: find("id"), customer, amount_cents, status })
            }
            _ => Err(Failure::new(format!(
                "the first line must name the columns customer, amount_cents and status (id is optional); \
                 missing: {}",
                missing.join(", ")
            ))),
        }
    }

    /// `number` is the row's number, which becomes the id if the file has none.
    fn order(&self, record: &StringRecord, number: u64) -> Result<Order, String> {
        let field = |at: usize, name: &str| record.get(at).ok_or(format!("{name} is missing"));
        let id = match self.id {
            None => number,
            Some(at) => {
                let text = field(at, "id")?.trim();
                let id = text.parse().ok().filter(|id| (1..=i64::MAX as u64 / 2).contains(id));
                id.ok_or(format!("id is {text:?}, not a positive whole number"))?
            }
        };
        let customer = field(self.customer, "customer")?.trim();
        if customer.is_empty() {
            return Err("customer is empty".to_owned());
        }
        let amount = field(self.amount_cents, "amount_cents")?.trim();
        let amount_cents = amount.parse().ok().filter(|cents| *cents >= 0);
        let amount_cents =
            amount_cents.ok_or(format!("amount_cents is {amount:?}, not a whole number of cents"))?;
        // The status is kept as it is. Postgres has no text with a NUL character.
        let status = field(self.status, "status")?;
        if status.contains('\0') || customer.contains('\0') {
            return Err("a field contains a NUL character".to_owned());
        }
        let status = (!status.is_empty()).then(|| status.to_owned());
        Ok(Order { id, customer: customer.to_owned(), amount_cents, status })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn columns_are_found_by_name_and_ids_are_generated() {
        let import = read("status, customer ,amount_cents\n Paid ,ann,1250\n,bob,0\n".as_bytes()).unwrap();
        let order = |id, customer: &str, amount_cents, status: Option<&str>| Order {
            id,
            customer: customer.to_owned(),
            amount_cents,
            status: status.map(str::to_owned),
        };
        assert_eq!(import.orders, [order(1, "ann", 1250, Some(" Paid ")), order(2, "bob", 0, None)]);
        assert_eq!(import.bad_rows, 0);
    }

    #[test]
    fn bad_rows_are_counted_and_named_by_line() {
        let file = "id,customer,amount_cents,status\n\
            1,ann,1250,PAID\n\
            x,bob,1,PAID\n\
            3,,1,PAID\n\
            4,\"quoted\nname\",12,new\n\
            5,eve,\"1,20\",PAID\n\
            1,again,1,PAID\n\
            7,short\n\
            -8,mallory,1,PAID\n\
            9,zoe,-5,PAID\n";
        let import = read(file.as_bytes()).unwrap();
        assert_eq!(import.orders.iter().map(|order| order.id).collect::<Vec<_>>(), [1, 4]);
        assert_eq!(import.bad_rows, 7);
        assert_eq!(
            import.first_bad,
            [
                "line 3: id is \"x\", not a positive whole number",
                "line 4: customer is empty",
                "line 7: amount_cents is \"1,20\", not a whole number of cents",
                "line 8: id 1 was used before",
                "line 9: amount_cents is missing",
            ]
        );
    }

    #[test]
    fn a_file_without_usable_rows_is_refused() {
        let error = read("id,customer,amount_cents,status\n1,,x,\n".as_bytes()).unwrap_err().to_string();
        assert!(error.contains("no row could be used (1 bad rows: line 2: customer is empty)"), "{error}");
        let error = read("kunde,amount_cents\na,1\n".as_bytes()).unwrap_err().to_string();
        assert!(error.ends_with("missing: customer, status"), "{error}");
        let error = read("".as_bytes()).unwrap_err().to_string();
        assert!(error.contains("must name the columns"), "{error}");
    }

    #[test]
    fn invalid_utf8_is_one_bad_row() {
        let import = read(&b"customer,amount_cents,status\nann,1,paid\n\xff\xfe,1,x\nbob,2,\n"[..]).unwrap();
        assert_eq!((import.orders.len(), import.bad_rows), (2, 1));
        assert_eq!(import.orders[1].id, 3, "a row's number is its place in the file");
    }
}
