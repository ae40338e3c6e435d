// SPDX-License-Identifier: MIT OR Apache-2.0

//! How tables look.

use comfy_table::CellAlignment;
use comfy_table::Table;
use comfy_table::presets;

/// A table with these headings and no lines.
pub(crate) fn new(headings: impl Into<comfy_table::Row>) -> Table {
    let mut table = Table::new();
    table.load_style(presets::NOTHING);
    table.set_header(headings);
    table
}

/// Aligns columns to the right, once the table has rows.
pub(crate) fn align_right(table: &mut Table, columns: impl IntoIterator<Item = usize>) {
    for column in columns {
        if let Some(column) = table.column_mut(column) {
            column.set_cell_alignment(CellAlignment::Right);
        }
    }
}
