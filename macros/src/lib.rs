//! Attribute macros for the `cutover` crate, which re-exports them.

mod dual_write;

use proc_macro::TokenStream;

/// Makes `cutover::migration::data::DualWrite<O, N>` implement the trait that it is put on, for any two
/// implementations `O` and `N` of it.
///
/// Every method is an `async fn` that takes `&self` and returns a `Result<T, E>` with
/// `E: From<cutover::migration::control::Error>`, and is marked as one of:
///
/// - `#[write]`: takes a `&mut PinnedTx` among its arguments. Runs on the sides that the transaction's phase
///   writes, the old one first. Arguments that are not references are cloned when both sides are written.
/// - `#[read]` or `#[read(key = id)]`: runs on the side that the phase reads. The key is an expression over the
///   arguments whose value implements `Hash`; while reads are split it decides which side is asked, always the
///   same one for the same key. Without a key the old side is asked until the percentage is 100. A read that
///   takes a `&mut PinnedTx` follows the transaction's phase, another one a pin of its own.
///
/// Methods with a body and without a mark stay as they are. The transaction's type is recognised by its name,
/// `PinnedTx`, so an alias of it is not.
///
/// The trait may be generic and may be an `#[async_trait]` one, when that attribute stands below this one.
/// Associated types and constants are not supported.
///
/// See `cutover::migration::data::DualWrite` for an example.
#[proc_macro_attribute]
pub fn dual_write(arguments: TokenStream, item: TokenStream) -> TokenStream {
    dual_write::expand(arguments.into(), item.into()).into()
}
