//! The statuses of a payment.

use serde::{Deserialize, Serialize};

/// The status of an order's payment.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
pub enum Status {
    /// Nothing has happened yet.
    Pending,
    /// The bank has reserved the money.
    Authorized,
    /// The bank has transferred the money.
    Paid,
    /// Paid, and the order is on its way.
    Shipped,
    /// The money was returned.
    Refunded,
    /// The bank refused the payment.
    Failed,
    /// The customer cancelled the order.
    Cancelled,
    /// The column contains a word without a known meaning.
    Unknown,
}

impl Status {
    /// The word in column `new_payment_status`.
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

    /// The word that this service writes into column `old_payment_status`.
    pub fn legacy_name(self) -> String {
        self.name().to_ascii_uppercase()
    }

    /// Parses column `old_payment_status`, which many programs have written. The same mapping as [`FORWARD`].
    pub fn from_legacy(text: Option<&str>) -> Self {
        // Only blanks, as SQL's trim does.
        match text.unwrap_or_default().trim_matches(' ').to_ascii_lowercase().as_str() {
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

    /// The number in column `payment_code`.
    pub fn code(self) -> i16 {
        match self {
            Status::Unknown => 0,
            Status::Pending => 1,
            Status::Authorized => 2,
            Status::Paid => 3,
            Status::Shipped => 4,
            Status::Refunded => 5,
            Status::Failed => 6,
            Status::Cancelled => 7,
        }
    }

    /// Parses column `payment_code`.
    pub fn from_code(code: Option<i16>) -> Self {
        match code {
            Some(1) => Status::Pending,
            Some(2) => Status::Authorized,
            Some(3) => Status::Paid,
            Some(4) => Status::Shipped,
            Some(5) => Status::Refunded,
            Some(6) => Status::Failed,
            Some(7) => Status::Cancelled,
            _ => Status::Unknown,
        }
    }

    /// Parses column `new_payment_status`.
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

/// The old column as an SQL expression over the new one, for the way back.
pub const BACKWARD: &str = "upper(new_payment_status)";

/// Column `payment_code` as an SQL expression over `new_payment_status`, and back.
pub const CODE_FORWARD: &str = "case new_payment_status when 'pending' then 1 when 'authorized' then 2 \
     when 'paid' then 3 when 'shipped' then 4 when 'refunded' then 5 when 'failed' then 6 when 'cancelled' then 7 \
     else 0 end";

/// Column `new_payment_status` as an SQL expression over `payment_code`, for the way back.
pub const CODE_BACKWARD: &str = "(array['unknown', 'pending', 'authorized', 'paid', 'shipped', 'refunded', 'failed', \
     'cancelled'])[1 + coalesce(payment_code, 0)]";

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn irregular_spellings_are_parsed() {
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
    fn both_columns_are_parsed_as_they_are_written() {
        for word in ["pending", "authorized", "paid", "shipped", "refunded", "failed", "cancelled", "unknown"]
        {
            let status = Status::from_name(Some(word));
            assert_eq!(status.name(), word);
            assert_eq!(Status::from_legacy(Some(&status.legacy_name())), status);
            assert_eq!(Status::from_code(Some(status.code())), status);
        }
    }
}
