//! Session settings under which both sides' values are computed.

use std::sync::LazyLock;

/// The settings under which every mapping is evaluated, by batches, scans, repairs and the guard trigger alike. A session's
/// own settings would otherwise decide what `at::date` or `payload::text` gives.
///
/// `search_path` is not among them: expressions may use unqualified names.
pub(crate) const MAPPING_SETTINGS: [(&str, &str); 13] = [
    ("timezone", "UTC"),
    ("datestyle", "ISO, MDY"),
    ("intervalstyle", "postgres"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
    ("array_nulls", "on"),
    ("xmloption", "content"),
    ("xmlbinary", "base64"),
    ("quote_all_identifiers", "off"),
    ("transform_null_equals", "off"),
    // The format of money, and templates of `to_char` such as `L`, `D` and `TMMonth`.
    ("lc_monetary", "C"),
    ("lc_numeric", "C"),
    ("lc_time", "C"),
];

/// With this setting a row-level security policy that would hide rows is an error. Without it, copies and comparisons
/// would silently miss these rows.
const NO_HIDDEN_ROWS: (&str, &str) = ("row_security", "off");

/// Shows the triggers of the table that a copy or a repair writes the row, and not the service.
const COPYING: (&str, &str) = ("cutover.copying", "on");

fn all() -> impl Iterator<Item = (&'static str, &'static str)> {
    [NO_HIDDEN_ROWS, COPYING].into_iter().chain(MAPPING_SETTINGS)
}

/// The statements, each with `;`, that set all of this until the end of a transaction.
pub(crate) static ROW_WORK_SETTINGS: LazyLock<String> =
    LazyLock::new(|| all().map(|(name, value)| format!("set local {name} = '{value}'; ")).collect());

/// The same as one query, for drivers that take one statement at a time.
pub(crate) static ROW_WORK_SETTINGS_QUERY: LazyLock<String> = LazyLock::new(|| {
    let calls: Vec<String> =
        all().map(|(name, value)| format!("set_config('{name}', '{value}', true)")).collect();
    format!("select {}", calls.join(", "))
});
