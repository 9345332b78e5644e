//! Session settings under which both sides' values are computed.

use std::sync::LazyLock;

/// Whether `EST` is a time of New York or of Sydney. To set this the server reads a file, which takes longer than the rest of a
/// call of the guard trigger.
pub(crate) const TIME_ZONE_ABBREVIATIONS: &str = "timezone_abbreviations";

/// The settings under which every mapping is evaluated, by batches, scans, repairs and the guard trigger alike. A session's
/// own settings would otherwise decide what `at::date` or `payload::text` gives.
///
/// `search_path` is not among them: expressions may use unqualified names.
pub(crate) const MAPPING_SETTINGS: [(&str, &str); 15] = [
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
    // The guard trigger's function is parsed in the session of the writer.
    ("standard_conforming_strings", "on"),
    (TIME_ZONE_ABBREVIATIONS, "Default"),
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
