//! The words for how far a payment is.

use serde::{Deserialize, Serialize};

/// How far an order's payment is.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing has happened yet.
    Pending,
    /// The bank has reserved the money.
    Authorized,
    /// The money has been taken.
    Paid,
    /// Paid and on its way.
    Shipped,
    /// The money went back.
    Refunded,
    /// The bank refused.
    Failed,
    /// The customer changed his mind.
    Cancelled,
    /// The column says something that nobody can read any more.
    Unknown,
}

impl Status {
    /// As in column `new_payment_status`.
    pub fn name(self) -> &'static str {
        match self {
            Status::Pending => "pending",
            Status::Authorized => "authorized",
            Status::Paid => "paid",
            Status::Shipped => "shipped",
            Status::Refunded => "refunded",
            Status::Failed => "failed",
            Status::Cancelled => "cancelled",
            Status::Unknown => "unknown",
        }
    }

    /// As this service writes it into column `old_payment_status`.
    pub fn legacy_name(self) -> String {
        self.name().to_ascii_uppercase()
    }

    /// Reads what many writers left in column `old_payment_status`. Says the same as [`FORWARD`].
    pub fn from_legacy(text: Option<&str>) -> Self {
        match text.unwrap_or_default().trim().to_ascii_lowercase().as_str() {
            "" | "pending" | "new" | "open" => Status::Pending,
            "settled" | "captured" | "complete" | "paid" => Status::Paid,
            "auth" | "authorised" | "authorized" => Status::Authorized,
            "refund" | "refunded" | "chargeback" => Status::Refunded,
            "canceled" | "cancelled" | "void" => Status::Cancelled,
            "fail" | "failed" | "error" | "declined" => Status::Failed,
            "ship" | "shipped" | "sent" => Status::Shipped,
            _ => Status::Unknown,
        }
    }

    /// Reads column `new_payment_status`.
    pub fn from_name(text: Option<&str>) -> Self {
        match text.unwrap_or_default() {
            "pending" => Status::Pending,
            "authorized" => Status::Authorized,
            "paid" => Status::Paid,
            "shipped" => Status::Shipped,
            "refunded" => Status::Refunded,
            "failed" => Status::Failed,
            "cancelled" => Status::Cancelled,
            _ => Status::Unknown,
        }
    }
}

/// The new column as an SQL expression over the old one.
pub const FORWARD: &str = "case lower(trim(coalesce(old_payment_status, ''))) \
     when '' then 'pending' when 'pending' then 'pending' when 'new' then 'pending' when 'open' then 'pending' \
     when 'settled' then 'paid' when 'captured' then 'paid' when 'complete' then 'paid' when 'paid' then 'paid' \
     when 'auth' then 'authorized' when 'authorised' then 'authorized' when 'authorized' then 'authorized' \
     when 'refund' then 'refunded' when 'refunded' then 'refunded' when 'chargeback' then 'refunded' \
     when 'canceled' then 'cancelled' when 'cancelled' then 'cancelled' when 'void' then 'cancelled' \
     when 'fail' then 'failed' when 'failed' then 'failed' when 'error' then 'failed' when 'declined' then 'failed' \
     when 'ship' then 'shipped' when 'shipped' then 'shipped' when 'sent' then 'shipped' \
     else 'unknown' end";

/// The old column as an SQL expression over the new one, should the migration have to go back.
pub const BACKWARD: &str = "upper(new_payment_status)";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn dirty_words_are_read() {
        for (text, status) in [
            (None, Status::Pending),
            (Some("  "), Status::Pending),
            (Some(" Paid"), Status::Paid),
            (Some("CANCELED"), Status::Cancelled),
            (Some("chargeback"), Status::Refunded),
            (Some("42"), Status::Unknown),
        ] {
            assert_eq!(Status::from_legacy(text), status, "{text:?}");
        }
    }

    #[test]
    fn what_is_written_is_read_the_same_from_both_columns() {
        for word in ["pending", "authorized", "paid", "shipped", "refunded", "failed", "cancelled", "unknown"]
        {
            let status = Status::from_name(Some(word));
            assert_eq!(status.name(), word);
            assert_eq!(Status::from_legacy(Some(&status.legacy_name())), status);
        }
    }
}
