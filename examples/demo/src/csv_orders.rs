//! Reads orders from a CSV file.
//!
//! Columns are found by name, in any order: `customer`, `amount_cents`, `status` and, optionally, `id`. `--columns` maps
//! other names. Bad rows are counted, and the first few are shown with their line.

use std::{collections::HashSet, io::Read, path::Path, str::FromStr};

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

/// The columns of an order.
const FIELDS: [&str; 4] = ["id", "customer", "amount_cents", "status"];

/// The name that a column of an order has in the file, as in `status=order_status`.
#[derive(Clone, Debug)]
pub(crate) struct ColumnName {
    field: &'static str,
    name: String,
}

impl FromStr for ColumnName {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (field, name) = text.split_once('=').unwrap_or_default();
        let field = FIELDS.into_iter().find(|known| *known == field.trim());
        match (field, name.trim()) {
            (Some(field), name) if !name.is_empty() => Ok(Self { field, name: name.to_lowercase() }),
            _ => Err(format!(
                "it maps no column; write for example status=order_status, with one of {}",
                FIELDS.join(", ")
            )),
        }
    }
}

pub(crate) fn read_file(path: &Path, names: &[ColumnName]) -> Result<Import> {
    let what = format!("reading orders from {}", path.display());
    let file = std::fs::File::open(path).during(&what)?;
    read(std::io::BufReader::new(file), names).during(&what)
}

fn read(source: impl Read, names: &[ColumnName]) -> Result<Import> {
    let mut reader = csv::ReaderBuilder::new().trim(csv::Trim::Headers).flexible(true).from_reader(source);
    let columns = Columns::find(reader.headers()?, names)?;
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
    fn find(header: &StringRecord, names: &[ColumnName]) -> Result<Self> {
        let header: Vec<&str> = header.iter().map(|name| name.trim_start_matches('\u{feff}')).collect();
        let name = |field| names.iter().find(|one| one.field == field).map_or(field, |one| one.name.as_str());
        let find = |field| header.iter().position(|column| column.to_lowercase() == name(field));
        let is_named = |field: &&str| names.iter().any(|one| one.field == *field);
        let missing = FIELDS.into_iter().filter(|field| *field != "id" || is_named(field));
        let missing: Vec<&str> = missing.filter(|field| find(field).is_none()).collect();
        if let (Some(customer), Some(amount_cents), Some(status), []) =
            (find("customer"), find("amount_cents"), find("status"), &missing[..])
        {
            return Ok(Self { id: find("id"), customer, amount_cents, status });
        }
        let wanted: Vec<&str> = missing.iter().map(|field| name(field)).collect();
        let found = match &header[..] {
            [] => "the file is empty".to_owned(),
            header => format!("it has {}", header.join(", ")),
        };
        let example: Vec<String> = missing.iter().map(|field| format!("{field}=NAME")).collect();
        let example = example.join(",");
        Err(Failure::new(format!(
            "the first line must name the columns customer, amount_cents and status (id is optional); \
             missing: {}; {found}; if they have other names, add --columns {example} (with make: COLUMNS={example})",
            wanted.join(", ")
        )))
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
        let import =
            read("status, customer ,amount_cents\n Paid ,ann,1250\n,bob,0\n".as_bytes(), &[]).unwrap();
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
        let import = read(file.as_bytes(), &[]).unwrap();
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
        let error = read("id,customer,amount_cents,status\n1,,x,\n".as_bytes(), &[]).unwrap_err().to_string();
        assert!(error.contains("no row could be used (1 bad rows: line 2: customer is empty)"), "{error}");
        let error = read("kunde,amount_cents\na,1\n".as_bytes(), &[]).unwrap_err().to_string();
        let said = "missing: customer, status; it has kunde, amount_cents; if they have other names, add \
                    --columns customer=NAME,status=NAME (with make: COLUMNS=customer=NAME,status=NAME)";
        assert!(error.ends_with(said), "{error}");
        let error = read("".as_bytes(), &[]).unwrap_err().to_string();
        assert!(error.contains("must name the columns"), "{error}");
    }

    #[test]
    fn invalid_utf8_is_one_bad_row() {
        let import =
            read(&b"customer,amount_cents,status\nann,1,paid\n\xff\xfe,1,x\nbob,2,\n"[..], &[]).unwrap();
        assert_eq!((import.orders.len(), import.bad_rows), (2, 1));
        assert_eq!(import.orders[1].id, 3, "a row's number is its place in the file");
    }

    #[test]
    fn columns_with_other_names_are_mapped() {
        let names = |text: &str| text.split(',').map(|one| one.parse().unwrap()).collect::<Vec<ColumnName>>();
        let file = "Nr,Kunde,amount_cents,Order_Status\n7,ann,1250,PAID\n";
        let import = read(file.as_bytes(), &names("id=nr,customer=kunde,status=order_status")).unwrap();
        assert_eq!((import.orders[0].id, import.orders[0].customer.as_str()), (7, "ann"));
        let error = read(file.as_bytes(), &names("id=number,customer=kunde")).unwrap_err().to_string();
        assert!(
            error.contains("missing: number, status; it has Nr, Kunde, amount_cents, Order_Status"),
            "{error}"
        );
        for bad in ["status", "state=order_status", "status="] {
            assert!(bad.parse::<ColumnName>().unwrap_err().contains("status=order_status"), "{bad}");
        }
    }
}
