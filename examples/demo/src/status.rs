//! The meaning of each payment status.
//!
//! The judge must not share code with what it judges. This mapping is the demo's own: neither the service nor the migration uses it.

/// The words that the service writes and returns.
pub(crate) const CANONICAL: [&str; 7] =
    ["pending", "authorized", "paid", "shipped", "refunded", "failed", "cancelled"];

/// The canonical word for a value of the old column.
pub(crate) fn canonical(raw: Option<&str>) -> &'static str {
    // Only blanks, as SQL's trim does.
    let word = raw.unwrap_or_default().trim_matches(' ').to_ascii_lowercase();
    match word.as_str() {
        "" | "pending" | "new" | "open" => "pending",
        "auth" | "authorised" | "authorized" => "authorized",
        "paid" | "settled" | "captured" | "complete" => "paid",
        "ship" | "shipped" | "sent" => "shipped",
        "refund" | "refunded" | "chargeback" => "refunded",
        "fail" | "failed" | "error" | "declined" => "failed",
        "void" | "canceled" | "cancelled" => "cancelled",
        _ => "unknown",
    }
}

/// The canonical word for a value of the second migration's column, as text.
pub(crate) fn of_code(raw: Option<&str>) -> &'static str {
    const WORDS: [&str; 8] =
        ["unknown", "pending", "authorized", "paid", "shipped", "refunded", "failed", "cancelled"];
    raw.and_then(|text| text.parse().ok()).and_then(|code: usize| WORDS.get(code)).unwrap_or(&"NULL")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn irregular_spellings_have_a_meaning() {
        let cases = [
            (None, "pending"),
            (Some("  "), "pending"),
            (Some(" Paid"), "paid"),
            (Some("SETTLED"), "paid"),
            (Some("CANCELED"), "cancelled"),
            (Some("chargeback"), "refunded"),
            (Some("???"), "unknown"),
            (Some("pay ed"), "unknown"),
            (Some("paid\t"), "unknown"),
        ];
        for (raw, meaning) in cases {
            assert_eq!(canonical(raw), meaning, "{raw:?}");
        }
    }

    #[test]
    fn canonical_words_mean_themselves() {
        for word in CANONICAL {
            assert_eq!(canonical(Some(word)), word);
            assert_eq!(canonical(Some(&word.to_uppercase())), word);
        }
    }
}
