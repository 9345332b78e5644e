//! Attribute macros for the `cutover` crate, which re-exports them.

mod dual_write;

use proc_macro::TokenStream;

/// Makes `cutover::migration::DualWrite<O, N>` implement the trait that it is put on, for any two
/// implementations `O` and `N` of it.
///
/// Every method is an `async fn` that takes `&self` and returns a `Result<T, E>` where `E` is an error type of the
/// repository's own with `E: From<cutover::migration::Error> + std::error::Error`, and is marked as one of:
///
/// - `#[write(key = id)]`, `#[write(keys = ids)]` or `#[write(unknown_rows)]`: takes a `&mut PinnedTx` among its
///   arguments. Runs on the sides that the transaction's phase writes, the old one first. Arguments that are not
///   references are cloned when both sides are written. The keys, expressions over the arguments that implement
///   `Serialize`, say which rows to look after when the new side fails and repairs are wanted.
/// - `#[insert(key = id)]`: a write of a new row. The argument `id` is an `Option<K>`, and what the method returns is
///   the key, or is `Keyed<K>`. With `None` the database makes the key, and where both sides are written the second
///   one gets `Some` of what the first one returned. Sides that return different keys end the transaction. So an
///   implementation inserts the key that it is given, and returns the one that is in the row then:
///   `insert into orders (id, …) values (coalesce($1, nextval('orders_id_seq')), …) returning id`.
/// - `#[read]` or `#[read(key = id)]`: runs on the side that the phase reads. The key is an expression over the
///   arguments whose value implements `Hash`; while reads are split it decides which side is asked, always the
///   same one for the same key. Without a key the old side is asked until the percentage is 100. A read that
///   takes a `&mut PinnedTx` follows the transaction's phase, another one a pin of its own.
///
/// Methods with a body and without a mark stay as they are. The transaction's type is recognised by its name,
/// `PinnedTx`, so an alias of it is not; so is `Option`.
///
/// With `#[dual_write(at_once = Name)]` there is another trait, `Name`, of the writes alone. An implementation of it,
/// given to `DualWrite::at_once`, writes both sides in one statement while both are written.
///
/// The trait may be generic and may be an `#[async_trait]` one, when that attribute stands below this one.
/// Associated types and constants are not supported.
///
/// See `cutover::migration::DualWrite` for an example.
#[proc_macro_attribute]
pub fn dual_write(arguments: TokenStream, item: TokenStream) -> TokenStream {
    dual_write::expand(arguments.into(), item.into()).into()
}
