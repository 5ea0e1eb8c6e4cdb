//! Lists: columns for people, JSON for machines.

use clap::Args;
use serde_json::{Map, Value};
use sluice_domain::time::UnixMillis;

use crate::terminal;

/// Space between two columns.
const GAP: &str = "  ";
/// What stands for nothing.
const NOTHING: &str = "-";

/// How a list is printed.
#[derive(Debug, Clone, Copy, Args)]
pub(super) struct ListArgs {
    /// Print JSON, for machines
    #[arg(long)]
    pub(super) json: bool,
}

/// Rows of one shape.
pub(super) struct Table {
    columns: &'static [&'static str],
    rows: Vec<Vec<Value>>,
}

impl Table {
    /// Begins a table. The names of the columns are the fields of the JSON form.
    pub(super) fn new(columns: &'static [&'static str]) -> Self {
        Self {
            columns,
            rows: Vec::new(),
        }
    }

    pub(super) fn push(&mut self, row: impl IntoIterator<Item = Value>) {
        self.rows.push(row.into_iter().collect());
    }

    /// Prints the rows; for people, `empty` stands where there is none.
    pub(super) fn print(&self, args: ListArgs, empty: &str) -> anyhow::Result<()> {
        if args.json {
            terminal::result(&self.to_json())?;
        } else if self.rows.is_empty() {
            terminal::note(empty);
        } else {
            terminal::result(&self.to_text())?;
        }
        Ok(())
    }

    fn to_json(&self) -> String {
        let rows = self.rows.iter().map(|row| {
            let fields = self.columns.iter().zip(row);
            Value::Object(
                fields
                    .map(|(name, cell)| ((*name).to_owned(), cell.clone()))
                    .collect::<Map<_, _>>(),
            )
        });
        format!("{:#}", Value::Array(rows.collect()))
    }

    fn to_text(&self) -> String {
        let header = self
            .columns
            .iter()
            .map(|name| name.replace('_', " ").to_uppercase());
        let rows = self
            .rows
            .iter()
            .map(|row| row.iter().map(cell_text).collect());
        let lines: Vec<Vec<String>> = std::iter::once(header.collect()).chain(rows).collect();
        let mut widths = vec![0; self.columns.len()];
        for line in &lines {
            for (width, cell) in widths.iter_mut().zip(line) {
                *width = (*width).max(cell.chars().count());
            }
        }
        let mut out = String::new();
        for line in &lines {
            let mut text = String::new();
            for (width, cell) in widths.iter().zip(line) {
                if !text.is_empty() {
                    text.push_str(GAP);
                }
                text.push_str(cell);
                let filled = cell.chars().count();
                text.extend(std::iter::repeat_n(' ', width - filled));
            }
            out.push_str(text.trim_end());
            out.push('\n');
        }
        out
    }
}

fn cell_text(cell: &Value) -> String {
    match cell {
        Value::Null => NOTHING.to_owned(),
        Value::String(text) => text.clone(),
        Value::Number(number) => grouped(&number.to_string()),
        Value::Array(entries) if entries.is_empty() => NOTHING.to_owned(),
        Value::Array(entries) => entries.iter().map(cell_text).collect::<Vec<_>>().join(", "),
        other => other.to_string(),
    }
}

/// Returns a time as lists show it, to the second.
pub(super) fn time(at: UnixMillis) -> Value {
    Value::from(UnixMillis(at.as_seconds() * 1_000).to_rfc3339())
}

/// Separates thousands, as the amounts that commands take may be written.
pub(super) fn grouped(digits: &str) -> String {
    let mut out = String::with_capacity(digits.len() + digits.len() / 3);
    for (index, digit) in digits.chars().enumerate() {
        if index > 0 && (digits.len() - index).is_multiple_of(3) {
            out.push('_');
        }
        out.push(digit);
    }
    out
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    fn table() -> Table {
        let mut table = Table::new(&["name", "quota_tokens", "models"]);
        table.push([json!("acme"), json!(1_500_000), json!(["a", "b"])]);
        table.push([json!("é"), Value::Null, json!([])]);
        table
    }

    #[test]
    fn people_see_columns() {
        assert_eq!(
            table().to_text(),
            "NAME  QUOTA TOKENS  MODELS\n\
             acme  1_500_000     a, b\n\
             é     -             -\n"
        );
    }

    #[test]
    fn machines_see_fields() {
        let json: Value = serde_json::from_str(&table().to_json()).unwrap();
        assert_eq!(
            json,
            json!([
                {"name": "acme", "quota_tokens": 1_500_000, "models": ["a", "b"]},
                {"name": "é", "quota_tokens": null, "models": []},
            ])
        );
    }
}
