use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::spanned::Spanned;
use syn::{
    Attribute, Error, Expr, FnArg, Ident, ItemTrait, Pat, PatIdent, ReturnType, Signature, TraitItem,
    TraitItemFn, Type, parse_quote,
};

/// The trait as it was written, without the marks, and its implementation for a pair of sides.
pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let mut original: ItemTrait = match syn::parse2(item) {
        Ok(item) => item,
        Err(error) => {
            let message = "#[dual_write] goes on a trait";
            return Error::new(error.span(), message).into_compile_error();
        }
    };
    let mut errors = Errors(None);
    if !arguments.is_empty() {
        errors.add(Error::new(arguments.span(), "#[dual_write] takes no arguments"));
    }
    let methods = methods(&mut original, &mut errors);
    match errors.0 {
        // The trait stays, so that what uses it brings no errors of its own.
        Some(errors) => {
            let errors = errors.into_compile_error();
            quote!(#original #errors)
        }
        None => {
            let implementation = implementation(&original, &methods);
            quote!(#original #implementation)
        }
    }
}

/// All errors of one expansion.
struct Errors(Option<Error>);

impl Errors {
    fn add(&mut self, error: Error) {
        match &mut self.0 {
            Some(errors) => errors.combine(error),
            None => self.0 = Some(error),
        }
    }
}

/// What a method was marked as.
enum Mark {
    Write,
    Read { key: Option<Expr> },
}

/// Takes the marks off the trait and returns the methods of the implementation.
fn methods(item: &mut ItemTrait, errors: &mut Errors) -> Vec<TokenStream> {
    let mut methods = Vec::new();
    let mut entries = std::mem::take(&mut item.items);
    for entry in &mut entries {
        match entry {
            TraitItem::Fn(method) => match take_mark(&mut method.attrs) {
                Ok(Some(mark)) => match self::method(item, method, &mark) {
                    Ok(tokens) => methods.push(tokens),
                    Err(error) => errors.add(error),
                },
                // It has a body that calls the others.
                Ok(None) if method.default.is_some() => {}
                Ok(None) => errors.add(Error::new_spanned(
                    &method.sig.ident,
                    format!("mark `{}` as #[write], #[read] or #[read(key = …)]", method.sig.ident),
                )),
                Err(error) => errors.add(error),
            },
            other => errors.add(Error::new_spanned(
                other,
                "a #[dual_write] trait has methods only: put this into another trait",
            )),
        }
    }
    item.items = entries;
    methods
}

fn take_mark(attributes: &mut Vec<Attribute>) -> Result<Option<Mark>, Error> {
    let is_mark =
        |attribute: &Attribute| attribute.path().is_ident("write") || attribute.path().is_ident("read");
    let marks: Vec<Attribute> = attributes.extract_if(.., |attribute| is_mark(attribute)).collect();
    let [mark] = marks.as_slice() else {
        return match marks.get(1) {
            Some(second) => Err(Error::new_spanned(second, "a method is either a write or a read, once")),
            None => Ok(None),
        };
    };
    if mark.path().is_ident("write") {
        mark.meta.require_path_only()?;
        return Ok(Some(Mark::Write));
    }
    let mut key = None;
    if !matches!(mark.meta, syn::Meta::Path(_)) {
        mark.parse_nested_meta(|meta| {
            if meta.path.is_ident("key") && key.is_none() {
                key = Some(meta.value()?.parse()?);
                Ok(())
            } else {
                Err(meta.error("use #[read] or #[read(key = argument)]"))
            }
        })?;
    }
    Ok(Some(Mark::Read { key }))
}

/// A method's arguments.
struct Arguments {
    /// All of them in their order, as they are passed to a side.
    all: Vec<Ident>,
    transaction: Option<Ident>,
}

fn method(item: &ItemTrait, method: &TraitItemFn, mark: &Mark) -> Result<TokenStream, Error> {
    let mut signature = method.sig.clone();
    check(&signature)?;
    let Arguments { all, transaction } = arguments(&mut signature)?;
    let (name, trait_name) = (&signature.ident, &item.ident);
    let (_, trait_generics, _) = item.generics.split_for_impl();
    let call = |side: &str, arguments: &[TokenStream]| {
        let side = Ident::new(side, Span::call_site());
        quote!(<#side as #trait_name #trait_generics>::#name(__side, #(#arguments),*).await)
    };
    let moved: Vec<TokenStream> = all.iter().map(|argument| quote!(#argument)).collect();
    let (old, new) = (call(OLD, &moved), call(NEW, &moved));
    let body = match (mark, transaction) {
        (Mark::Write, None) => {
            return Err(Error::new_spanned(
                name,
                format!(
                    "`{name}` is a write, so it takes a `&mut PinnedTx`: the transaction says which sides are \
                     written"
                ),
            ));
        }
        (Mark::Write, Some(tx)) => {
            let kept: Vec<TokenStream> = all.iter().map(|argument| keep(argument, &tx)).collect();
            let first = call(OLD, &kept);
            quote! {
                match ::cutover::migration::data::DualWrite::writes(self, #tx)? {
                    ::cutover::migration::data::Writes::Old(__side) => #old,
                    ::cutover::migration::data::Writes::Both { old: __side, new: __second, returns: __returns } => {
                        let __from_old = #first?;
                        let __side = __second;
                        let __from_new = #new?;
                        ::core::result::Result::Ok(match __returns {
                            ::cutover::migration::Side::Old => __from_old,
                            ::cutover::migration::Side::New => __from_new,
                        })
                    }
                    ::cutover::migration::data::Writes::New(__side) => #new,
                }
            }
        }
        (Mark::Read { key }, Some(tx)) => {
            let key = key_of(key);
            quote! {
                match ::cutover::migration::data::DualWrite::read_in(self, #tx, #key)? {
                    ::cutover::migration::data::Reads::Old(__side) => #old,
                    ::cutover::migration::data::Reads::New(__side) => #new,
                }
            }
        }
        (Mark::Read { key }, None) => {
            let key = key_of(key);
            quote! {
                let __reading = ::cutover::migration::data::DualWrite::read(self, #key)?;
                let __value = match __reading.side() {
                    ::cutover::migration::data::Reads::Old(__side) => #old?,
                    ::cutover::migration::data::Reads::New(__side) => #new?,
                };
                __reading.finish(__value)
            }
        }
    };
    Ok(quote!(#signature { #body }))
}

/// An argument for the first of two calls.
fn keep(argument: &Ident, transaction: &Ident) -> TokenStream {
    if argument == transaction {
        quote!(#argument)
    } else {
        quote_spanned!(argument.span()=> ::core::clone::Clone::clone(&#argument))
    }
}

fn key_of(key: &Option<Expr>) -> TokenStream {
    match key {
        Some(key) => quote!(::cutover::migration::data::Key::of(&(#key))),
        None => quote!(::cutover::migration::data::Key::NONE),
    }
}

fn check(signature: &Signature) -> Result<(), Error> {
    let name = &signature.ident;
    if signature.asyncness.is_none() {
        return Err(Error::new_spanned(signature.fn_token, format!("`{name}` has to be an `async fn`")));
    }
    let receiver = signature.receiver();
    if !receiver.is_some_and(|receiver| receiver.reference.is_some() && receiver.mutability.is_none()) {
        let message = format!("`{name}` has to take `&self`: a repository is shared by all requests");
        return Err(match receiver {
            Some(receiver) => Error::new_spanned(receiver, message),
            None => Error::new_spanned(name, message),
        });
    }
    if matches!(signature.output, ReturnType::Default) {
        let message = format!(
            "`{name}` has to return a `Result<T, E>` with `E: From<cutover::migration::control::Error>`"
        );
        return Err(Error::new_spanned(name, message));
    }
    Ok(())
}

/// Gives every argument a name.
fn arguments(signature: &mut Signature) -> Result<Arguments, Error> {
    let mut found = Arguments { all: Vec::new(), transaction: None };
    for (index, argument) in signature.inputs.iter_mut().enumerate() {
        let FnArg::Typed(argument) = argument else { continue };
        let name = match &*argument.pat {
            Pat::Ident(PatIdent { ident, .. }) => ident.clone(),
            _ => format_ident!("__argument_{index}"),
        };
        *argument.pat = parse_quote!(#name);
        found.all.push(name.clone());
        if is_transaction(&argument.ty)? && found.transaction.replace(name).is_some() {
            return Err(Error::new_spanned(argument, "one `&mut PinnedTx` is enough"));
        }
    }
    Ok(found)
}

fn is_transaction(ty: &Type) -> Result<bool, Error> {
    let named = |ty: &Type| matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == "PinnedTx"));
    match ty {
        Type::Reference(reference) if named(&reference.elem) => match reference.mutability {
            Some(_) => Ok(true),
            None => Err(Error::new_spanned(ty, "queries need the transaction as `&mut PinnedTx`")),
        },
        ty if named(ty) => {
            Err(Error::new_spanned(ty, "take the transaction as `&mut PinnedTx`: its owner commits it"))
        }
        _ => Ok(false),
    }
}

/// The generic parameters that stand for the two sides.
const OLD: &str = "__Old";
const NEW: &str = "__New";

fn implementation(item: &ItemTrait, methods: &[TokenStream]) -> TokenStream {
    let name = &item.ident;
    let (_, trait_generics, _) = item.generics.split_for_impl();
    let (old, new) = (Ident::new(OLD, Span::call_site()), Ident::new(NEW, Span::call_site()));
    let mut generics = item.generics.clone();
    let boxed: Vec<&Attribute> = item.attrs.iter().filter(|attribute| is_async_trait(attribute)).collect();
    // Boxed futures have to be `Send`, which takes sides that can be shared.
    let shared =
        if boxed.is_empty() { quote!() } else { quote!(+ ::core::marker::Send + ::core::marker::Sync) };
    generics.params.push(parse_quote!(#old: #name #trait_generics #shared));
    generics.params.push(parse_quote!(#new: #name #trait_generics #shared));
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    quote! {
        #(#boxed)*
        impl #impl_generics #name #trait_generics for ::cutover::migration::data::DualWrite<#old, #new>
        #where_clause
        {
            #(#methods)*
        }
    }
}

fn is_async_trait(attribute: &Attribute) -> bool {
    attribute.path().segments.last().is_some_and(|last| last.ident == "async_trait")
}
