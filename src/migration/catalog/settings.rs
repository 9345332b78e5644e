/// The settings under which every mapping is evaluated, by batches and by the guard trigger alike. A session's own
/// settings would otherwise decide what `at::date` or `payload::text` gives.
pub(crate) const MAPPING_SETTINGS: [(&str, &str); 5] = [
    ("timezone", "UTC"),
    ("datestyle", "ISO, MDY"),
    ("intervalstyle", "postgres"),
    ("bytea_output", "hex"),
    ("extra_float_digits", "1"),
];
