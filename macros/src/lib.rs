//! Attribute macros for the `cutover` crate, which re-exports them.

mod dual_write;
mod marks;
mod signature;

use proc_macro::TokenStream;

/// Implements a repository trait for `cutover::migration::DualWrite<O, N>`, where `O` and `N` are any two
/// implementations of the trait.
///
/// Every method is an `async fn` that takes `&self` and returns a `Result<T, E>`. `E` is an error type with
/// `E: From<cutover::migration::Error>`: any `std::error::Error`, `anyhow::Error`,
/// `eyre::Report` or `Box<dyn Error + Send + Sync>`. Every method has one of these marks:
///
/// - `#[write(key = id)]`, `#[write(keys = ids)]` or `#[write(unknown_rows)]`: a write. It takes a `&mut PinnedTx` among its
///   arguments and runs on the sides that the transaction's phase writes, the old side first. Arguments that are not
///   references are cloned if both sides are written. The keys are expressions over the arguments that implement
///   `Serialize`. They identify the rows to repair if the new side fails and `DualWrite::repair_later` is set.
/// - `#[insert(key = id)]`: a write of a new row. The argument `id` is an `Option<K>`, and the method returns the key or
///   something that is `Keyed<K>`. With `None` the database generates the key. If both sides are written, the second side
///   gets `Some` of the key that the first side returned. If the sides return different keys, the transaction cannot be
///   committed. So an implementation inserts the key that it is given, and returns the key of the row:
///   `insert into orders (id, …) values (coalesce($1, nextval('orders_id_seq')), …) returning id`.
/// - `#[read]` or `#[read(key = id)]`: a read. It runs on the side that the phase reads. The key is an expression over the
///   arguments whose value implements `Hash`. While reads are split, it decides which side is read, always the same side
///   for the same key. A read without a key goes to the old side until the percentage is 100. A read that takes a
///   `&mut PinnedTx` uses the transaction's phase, any other read a pin of its own.
///
/// Methods with a body and without a mark stay as they are. The macro recognises `PinnedTx` and `Option` by these names, so
/// aliases of them do not work.
///
/// `#[dual_write(at_once = Name)]` generates another trait, `Name`, that has only the writes. `DualWrite::at_once` takes an
/// implementation of it, which writes both sides in one statement while both are written.
///
/// The trait may be generic. It may be an `#[async_trait]` trait if that attribute stands below this one. Associated types
/// and constants are not supported.
///
/// See `cutover::migration::DualWrite` for an example.
#[proc_macro_attribute]
pub fn dual_write(arguments: TokenStream, item: TokenStream) -> TokenStream {
    dual_write::expand(arguments.into(), item.into()).into()
}
