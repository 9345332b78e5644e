use std::fs;
use std::path::Path;

use anyhow::Result;
use serde_json::{Map, Value, json};

/// The result of one measurement: rows of numbers under the same headings.
pub(crate) struct Table {
    title: &'static str,
    headings: Vec<&'static str>,
    rows: Vec<(String, Vec<f64>)>,
}

impl Table {
    pub(crate) fn new(title: &'static str, headings: &[&'static str]) -> Self {
        Self { title, headings: headings.to_vec(), rows: Vec::new() }
    }

    pub(crate) fn row(&mut self, name: impl Into<String>, numbers: Vec<f64>) {
        self.rows.push((name.into(), numbers));
    }

    /// The rows after the first one, with the first one subtracted.
    pub(crate) fn minus_first(&self, title: &'static str) -> Self {
        let mut less = Self::new(title, &self.headings);
        if let Some(((_, first), rows)) = self.rows.split_first() {
            for (name, numbers) in rows {
                less.row(name, numbers.iter().zip(first).map(|(number, first)| number - first).collect());
            }
        }
        less
    }

    /// Prints the table and writes `target/bench/<file>.json`.
    pub(crate) fn publish(&self, file: &str) -> Result<()> {
        let width = self.rows.iter().map(|(name, _)| name.chars().count()).max().unwrap_or(0);
        println!("\n{}\n", self.title);
        let headings: String = self.headings.iter().map(|heading| format!("  {heading:>14}")).collect();
        println!("{:width$}{headings}", "");
        for (name, numbers) in &self.rows {
            let numbers: String = numbers.iter().map(|number| format!("  {:>14}", shown(*number))).collect();
            println!("{name:width$}{numbers}");
        }
        let rows: Vec<Value> = self
            .rows
            .iter()
            .map(|(name, numbers)| {
                let mut row = Map::from_iter([("name".to_owned(), json!(name))]);
                row.extend(
                    self.headings.iter().zip(numbers).map(|(heading, n)| ((*heading).to_owned(), json!(n))),
                );
                Value::Object(row)
            })
            .collect();
        let folder = Path::new("target/bench");
        fs::create_dir_all(folder)?;
        let text = serde_json::to_string_pretty(&json!({ "title": self.title, "rows": rows }))?;
        fs::write(folder.join(file).with_extension("json"), text + "\n")?;
        Ok(())
    }
}

fn shown(number: f64) -> String {
    match number {
        n if n.is_nan() => "–".into(),
        n if n == 0.0 || n.abs() >= 1_000.0 => format!("{n:.0}"),
        n if n.abs() < 10.0 => format!("{n:.2}"),
        n => format!("{n:.1}"),
    }
}
