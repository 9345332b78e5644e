//! What a method must look like, and its arguments.

use quote::format_ident;
use syn::{Error, FnArg, Ident, Pat, PatIdent, ReturnType, Signature, Type, parse_quote};

/// A method's arguments.
pub(crate) struct Arguments {
    /// All arguments in order, as they are passed to a side.
    pub(crate) all: Vec<(Ident, Type)>,
    pub(crate) transaction: Option<Ident>,
}

impl Arguments {
    pub(crate) fn type_of(&self, name: &Ident) -> Option<&Type> {
        self.all.iter().find(|(argument, _)| argument == name).map(|(_, ty)| ty)
    }
}

/// Checks what every method has in common.
pub(crate) fn check(signature: &Signature) -> Result<(), Error> {
    let name = &signature.ident;
    if signature.asyncness.is_none() {
        return Err(Error::new_spanned(signature.fn_token, format!("`{name}` must be an `async fn`")));
    }
    let receiver = signature.receiver();
    if !receiver.is_some_and(|receiver| receiver.reference.is_some() && receiver.mutability.is_none()) {
        let message = format!("`{name}` must take `&self`: all requests share the repository");
        return Err(match receiver {
            Some(receiver) => Error::new_spanned(receiver, message),
            None => Error::new_spanned(name, message),
        });
    }
    if matches!(signature.output, ReturnType::Default) {
        let message =
            format!("`{name}` must return a `Result<T, E>` with `E: From<cutover::migration::Error>`");
        return Err(Error::new_spanned(name, message));
    }
    Ok(())
}

/// Gives every argument a name.
pub(crate) fn arguments(signature: &mut Signature) -> Result<Arguments, Error> {
    let mut found = Arguments { all: Vec::new(), transaction: None };
    for (index, argument) in signature.inputs.iter_mut().enumerate() {
        let FnArg::Typed(argument) = argument else { continue };
        let name = match &*argument.pat {
            Pat::Ident(PatIdent { ident, .. }) => ident.clone(),
            _ => format_ident!("__argument_{index}"),
        };
        *argument.pat = parse_quote!(#name);
        found.all.push((name.clone(), (*argument.ty).clone()));
        if is_transaction(&argument.ty)? && found.transaction.replace(name).is_some() {
            return Err(Error::new_spanned(argument, "a method can only take one `&mut PinnedTx`"));
        }
    }
    Ok(found)
}

/// Whether the last segment of the type's path is `name`.
pub(crate) fn is_named(ty: &Type, name: &str) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == name))
}

fn is_transaction(ty: &Type) -> Result<bool, Error> {
    let named = |ty: &Type| is_named(ty, "PinnedTx");
    match ty {
        Type::Reference(reference) if named(&reference.elem) => match reference.mutability {
            Some(_) => Ok(true),
            None => Err(Error::new_spanned(
                ty,
                "take the transaction as `&mut PinnedTx`: queries need a mutable reference",
            )),
        },
        ty if named(ty) => {
            Err(Error::new_spanned(ty, "take the transaction as `&mut PinnedTx`: the caller commits it"))
        }
        _ => Ok(false),
    }
}
