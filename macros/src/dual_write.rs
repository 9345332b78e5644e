use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::parse::Parser;
use syn::spanned::Spanned;
use syn::{Attribute, Error, Expr, Ident, ItemTrait, TraitItem, TraitItemFn, parse_quote};

use crate::marks::{Mark, Rows, check_key, take_mark};
use crate::signature::{arguments, check};

/// The trait without the marks on its methods, and its implementation for `DualWrite`.
pub(crate) fn expand(arguments: TokenStream, item: TokenStream) -> TokenStream {
    let mut original: ItemTrait = match syn::parse2(item) {
        Ok(item) => item,
        Err(error) => {
            let message = "#[dual_write] can only be used on a trait";
            return Error::new(error.span(), message).into_compile_error();
        }
    };
    let mut errors = Errors(None);
    let at_once = at_once(arguments).unwrap_or_else(|error| {
        errors.add(error);
        None
    });
    let methods = methods(&mut original, at_once.as_ref(), &mut errors);
    match errors.0 {
        // The trait stays, so that code that uses it causes no further errors.
        Some(errors) => {
            let errors = errors.into_compile_error();
            quote!(#original #errors)
        }
        None => {
            let implementation = implementation(&original, at_once.as_ref(), &methods);
            let other = at_once.map(|name| writes_at_once(&original, &name, &methods));
            // Callers know the types of both sides, so the compiler sees whether their futures are `Send`.
            quote!(#[allow(async_fn_in_trait)] #original #implementation #other)
        }
    }
}

/// The name of the trait for combined writes, if there is one.
fn at_once(arguments: TokenStream) -> Result<Option<Ident>, Error> {
    if arguments.is_empty() {
        return Ok(None);
    }
    let span = arguments.span();
    let parser = |input: syn::parse::ParseStream| {
        let name: Ident = input.parse()?;
        input.parse::<syn::Token![=]>()?;
        let value: Ident = input.parse()?;
        if name == "at_once" && input.is_empty() { Ok(value) } else { Err(input.error("")) }
    };
    parser.parse2(arguments).map(Some).map_err(|_| {
        Error::new(span, "#[dual_write] takes no arguments, or `at_once = Name` with a name for the trait of combined writes")
    })
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

/// A method of the implementation.
struct Method {
    tokens: TokenStream,
    /// For a write: the method of the trait, with a name for every argument.
    written: Option<TraitItemFn>,
}

/// Removes the marks from the trait and returns the methods of the implementation.
fn methods(item: &mut ItemTrait, at_once: Option<&Ident>, errors: &mut Errors) -> Vec<Method> {
    let mut methods = Vec::new();
    let mut entries = std::mem::take(&mut item.items);
    for entry in &mut entries {
        match entry {
            TraitItem::Fn(method) => match take_mark(&method.sig.ident, &mut method.attrs) {
                Ok(Some(mark)) => match self::method(item, method, &mark, at_once) {
                    Ok(method) => methods.push(method),
                    Err(error) => errors.add(error),
                },
                // Its body calls the other methods.
                Ok(None) if method.default.is_some() => {}
                Ok(None) => errors.add(Error::new_spanned(
                    &method.sig.ident,
                    format!(
                        "mark `{}` as #[write(key = …)], #[insert(key = …)], #[read] or #[read(key = …)]",
                        method.sig.ident
                    ),
                )),
                Err(error) => errors.add(error),
            },
            other => errors.add(Error::new_spanned(
                other,
                "a #[dual_write] trait can only have methods: move this item to another trait",
            )),
        }
    }
    item.items = entries;
    methods
}

fn method(
    item: &ItemTrait,
    method: &TraitItemFn,
    mark: &Mark,
    at_once: Option<&Ident>,
) -> Result<Method, Error> {
    let mut signature = method.sig.clone();
    check(&signature)?;
    let arguments = arguments(&mut signature)?;
    check_key(mark, &arguments)?;
    let (name, trait_name) = (&signature.ident, &item.ident);
    let (_, trait_generics, _) = item.generics.split_for_impl();
    let operation = if matches!(mark, Mark::Read { .. }) { "Read" } else { "Write" };
    let call = |side: &str, trait_name: &Ident, arguments: &[TokenStream]| {
        let measured = match side {
            OLD => "Old",
            NEW => "New",
            _ => "Both",
        };
        let measured = format_ident!("{operation}{measured}");
        let side = Ident::new(side, Span::call_site());
        quote! {
            ::cutover::migration::DualWrite::timer(self, ::cutover::migration::SideCall::#measured)
                .ended(<#side as #trait_name #trait_generics>::#name(__side, #(#arguments),*).await)
        }
    };
    let moved: Vec<TokenStream> = arguments.all.iter().map(|(argument, _)| quote!(#argument)).collect();
    let (old, new) = (call(OLD, trait_name, &moved), call(NEW, trait_name, &moved));
    let body = match (mark, &arguments.transaction) {
        (Mark::Write(_) | Mark::Insert(_), None) => {
            return Err(Error::new_spanned(
                name,
                format!(
                    "`{name}` is a write and needs a `&mut PinnedTx` argument: the transaction decides which sides are \
                     written"
                ),
            ));
        }
        (Mark::Write(_) | Mark::Insert(_), Some(tx)) => {
            let kept: Vec<TokenStream> =
                arguments.all.iter().map(|(argument, _)| keep(argument, tx)).collect();
            let first = call(OLD, trait_name, &kept);
            let both = at_once.map(|other| {
                let both = call(BOTH, other, &moved);
                quote!(::cutover::migration::Writes::Both { at_once: ::core::option::Option::Some(__side), .. } => #both?,)
            });
            let Second { before, rows, attempt, check } = second(mark, &new);
            quote! {
                let __value = match ::cutover::migration::DualWrite::begin_write(self, #tx)? {
                    ::cutover::migration::Writes::Old(__side) => #old?,
                    ::cutover::migration::Writes::New(__side) => #new?,
                    #both
                    ::cutover::migration::Writes::Both { old: __side, new: __second, .. } => {
                        let __from_old = #first?;
                        #before
                        let __guard = ::cutover::migration::DualWrite::protect_new_side(self, #tx, #rows).await?;
                        let __side = __second;
                        let __attempt = #attempt;
                        match ::cutover::migration::DualWrite::finish_new_side(self, #tx, __guard, __attempt).await? {
                            ::core::option::Option::Some(__from_new) => {
                                #check
                                match ::cutover::migration::DualWrite::answers(self, #tx)? {
                                    ::cutover::migration::Side::Old => __from_old,
                                    ::cutover::migration::Side::New => __from_new,
                                }
                            }
                            ::core::option::Option::None => __from_old,
                        }
                    }
                };
                ::core::result::Result::Ok(::cutover::migration::DualWrite::end_write(self, #tx, __value))
            }
        }
        (Mark::Read { key }, Some(tx)) => {
            let key = key_of(key);
            quote! {
                match ::cutover::migration::DualWrite::read_in(self, #tx, #key)? {
                    ::cutover::migration::Reads::Old(__side) => #old,
                    ::cutover::migration::Reads::New(__side) => #new,
                }
            }
        }
        (Mark::Read { key }, None) => {
            let key = key_of(key);
            quote! {
                let __reading = ::cutover::migration::DualWrite::read_by(self, || #key)?;
                let __value = match __reading.side() {
                    ::cutover::migration::Reads::Old(__side) => #old?,
                    ::cutover::migration::Reads::New(__side) => #new?,
                };
                __reading.finish(__value)
            }
        }
    };
    let is_write = !matches!(mark, Mark::Read { .. });
    let written = TraitItemFn { sig: signature.clone(), default: None, ..method.clone() };
    Ok(Method { tokens: quote!(#signature { #body }), written: is_write.then_some(written) })
}

/// The code around the call of the second side.
struct Second {
    before: TokenStream,
    rows: TokenStream,
    attempt: TokenStream,
    check: TokenStream,
}

fn second(mark: &Mark, call: &TokenStream) -> Second {
    let attempt = quote!(#call);
    let rows = quote!(::cutover::migration::Rows);
    match mark {
        // The second side inserts the key that the first one returned.
        Mark::Insert(key) => Second {
            before: quote! {
                let __key = ::cutover::migration::inserted_key(#key, &__from_old)?;
                let #key = ::core::option::Option::Some(::core::clone::Clone::clone(&__key));
            },
            rows: quote!(#rows::one(&__key)),
            attempt: quote!(::cutover::migration::explain_duplicate(&__key, #call)),
            check: quote!(::cutover::migration::check_same_key(&__key, &__from_new)?;),
        },
        Mark::Write(Rows::One(key)) => {
            Second { before: quote!(), rows: quote!(#rows::one(&(#key))), attempt, check: quote!() }
        }
        Mark::Write(Rows::Many(keys)) => {
            Second { before: quote!(), rows: quote!(#rows::many(&(#keys))), attempt, check: quote!() }
        }
        Mark::Write(Rows::Unknown) | Mark::Read { .. } => {
            Second { before: quote!(), rows: quote!(#rows::unknown()), attempt, check: quote!() }
        }
    }
}

/// An argument of the first of two calls.
fn keep(argument: &Ident, transaction: &Ident) -> TokenStream {
    if argument == transaction {
        quote!(#argument)
    } else {
        quote_spanned!(argument.span()=> ::core::clone::Clone::clone(&#argument))
    }
}

fn key_of(key: &Option<Expr>) -> TokenStream {
    match key {
        Some(key) => quote!(::cutover::migration::Key::of(&(#key))),
        None => quote!(::cutover::migration::Key::NONE),
    }
}

/// The generic parameters for the two sides and for the combined writer.
const OLD: &str = "__Old";
const NEW: &str = "__New";
const BOTH: &str = "__Both";

fn implementation(item: &ItemTrait, at_once: Option<&Ident>, methods: &[Method]) -> TokenStream {
    let name = &item.ident;
    let (_, trait_generics, _) = item.generics.split_for_impl();
    let mut generics = item.generics.clone();
    let boxed = boxed(item);
    // Boxed futures have to be `Send`, which takes sides that can be shared.
    let shared =
        if boxed.is_empty() { quote!() } else { quote!(+ ::core::marker::Send + ::core::marker::Sync) };
    let sides = [Some((OLD, name)), Some((NEW, name)), at_once.map(|other| (BOTH, other))];
    let mut parameters = Vec::new();
    for (parameter, implements) in sides.into_iter().flatten() {
        let parameter = Ident::new(parameter, Span::call_site());
        generics.params.push(parse_quote!(#parameter: #implements #trait_generics #shared));
        parameters.push(parameter);
    }
    let (impl_generics, _, where_clause) = generics.split_for_impl();
    let methods = methods.iter().map(|method| &method.tokens);
    quote! {
        #(#boxed)*
        impl #impl_generics #name #trait_generics for ::cutover::migration::DualWrite<#(#parameters),*>
        #where_clause
        {
            #(#methods)*
        }
    }
}

/// The trait for combined writes, implemented for `Separate`, which has no values.
fn writes_at_once(item: &ItemTrait, name: &Ident, methods: &[Method]) -> TokenStream {
    let (visibility, generics, supertraits) = (&item.vis, &item.generics, &item.supertraits);
    let boxed = boxed(item);
    let (impl_generics, trait_generics, where_clause) = generics.split_for_impl();
    let written: Vec<&TraitItemFn> = methods.iter().filter_map(|method| method.written.as_ref()).collect();
    let signatures = written.iter().map(|method| &method.sig);
    let doc = format!("The writes of [`{}`], each of both sides in one statement.", item.ident);
    quote! {
        #[doc = #doc]
        #[allow(async_fn_in_trait)]
        #(#boxed)*
        #visibility trait #name #generics: #supertraits #where_clause {
            #(#written)*
        }

        #(#boxed)*
        impl #impl_generics #name #trait_generics for ::cutover::migration::Separate #where_clause {
            #(#[allow(unused_variables)] #signatures { match *self {} })*
        }
    }
}

fn boxed(item: &ItemTrait) -> Vec<&Attribute> {
    item.attrs.iter().filter(|attribute| is_async_trait(attribute)).collect()
}

fn is_async_trait(attribute: &Attribute) -> bool {
    attribute.path().segments.last().is_some_and(|last| last.ident == "async_trait")
}
