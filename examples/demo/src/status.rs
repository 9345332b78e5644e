//! What the payment statuses mean, written down once more.
//!
//! The judge must not share code with what it judges, so this mapping is the demo's own: neither the
//! service nor the migration uses it.

/// The words that the service writes and answers with.
pub(crate) const CANONICAL: [&str; 7] =
    ["pending", "authorized", "paid", "shipped", "refunded", "failed", "cancelled"];

/// The canonical word for what a person, a script or a bank's file once put into the column.
pub(crate) fn canonical(raw: Option<&str>) -> &'static str {
    // Blanks only: that is what SQL's trim takes off.
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

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_words_have_a_meaning() {
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
    fn canonical_words_mean_themselves_in_either_case() {
        for word in CANONICAL {
            assert_eq!(canonical(Some(word)), word);
            assert_eq!(canonical(Some(&word.to_uppercase())), word);
        }
    }
}
