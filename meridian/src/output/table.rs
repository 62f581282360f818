//! Tables: a title, headers, rows; numbers to the right.

use std::fmt;

use comfy_table::{CellAlignment, ContentArrangement, LineStyle, TableStyle};

/// A line below the header and nothing else: rows stay readable, and `grep` and `cut` work.
const STYLE: TableStyle = TableStyle::new().header_separator(LineStyle::none().fill('─').junction('─'));

/// A table in the making.
#[derive(Debug)]
pub struct Table {
    inner: comfy_table::Table,
}

impl Table {
    /// A table with these columns. A name that begins with `>` is a column of numbers, aligned to the right.
    pub fn new(columns: &[&str]) -> Table {
        let mut inner = comfy_table::Table::new();
        inner.load_style(STYLE).set_content_arrangement(ContentArrangement::Disabled);
        inner.force_no_tty();
        inner.set_header(columns.iter().map(|name| name.trim_start_matches('>')));
        for (index, name) in columns.iter().enumerate() {
            if let Some(column) = inner.column_mut(index)
                && name.starts_with('>')
            {
                column.set_cell_alignment(CellAlignment::Right);
            }
        }
        Table { inner }
    }

    /// Adds a row; one cell per column.
    pub fn row<T: Into<String>>(&mut self, cells: impl IntoIterator<Item = T>) -> &mut Table {
        self.inner.add_row(cells.into_iter().map(Into::into).collect::<Vec<String>>());
        self
    }

    /// Whether it has no rows.
    pub fn is_empty(&self) -> bool {
        self.inner.is_empty()
    }
}

impl fmt::Display for Table {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(&self.inner.trim_fmt())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_table_aligns_words_left_and_numbers_right() {
        let mut table = Table::new(&["bucket", ">keys"]);
        table.row(["orders", "7"]).row(["a", "1,234"]);
        let expected = " bucket    keys\n────────────────\n orders       7\n a        1,234";
        assert_eq!(table.to_string(), expected);
    }
}
