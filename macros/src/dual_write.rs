use proc_macro2::{Span, TokenStream};
use quote::{format_ident, quote, quote_spanned};
use syn::parse::Parser;
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
    let at_once = at_once(arguments).unwrap_or_else(|error| {
        errors.add(error);
        None
    });
    let methods = methods(&mut original, at_once.as_ref(), &mut errors);
    match errors.0 {
        // The trait stays, so that what uses it brings no errors of its own.
        Some(errors) => {
            let errors = errors.into_compile_error();
            quote!(#original #errors)
        }
        None => {
            let implementation = implementation(&original, at_once.as_ref(), &methods);
            let other = at_once.map(|name| writes_at_once(&original, &name, &methods));
            quote!(#original #implementation #other)
        }
    }
}

/// The name of the trait for writes of both sides at once, where one is wanted.
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
        Error::new(span, "#[dual_write] takes nothing, or `at_once = NameOfTheTraitForWritesOfBothSides`")
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

/// What a method was marked as.
enum Mark {
    Write(Rows),
    /// A new row; the argument that carries its key.
    Insert(Ident),
    Read {
        key: Option<Expr>,
    },
}

/// The rows that a write is about.
enum Rows {
    One(Expr),
    Many(Expr),
    Unknown,
}

/// A method of the implementation.
struct Method {
    tokens: TokenStream,
    /// Of a write, as it is in the trait, with a name for every argument.
    written: Option<TraitItemFn>,
}

/// Takes the marks off the trait and returns the methods of the implementation.
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
                // It has a body that calls the others.
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
                "a #[dual_write] trait has methods only: put this into another trait",
            )),
        }
    }
    item.items = entries;
    methods
}

fn take_mark(method: &Ident, attributes: &mut Vec<Attribute>) -> Result<Option<Mark>, Error> {
    let is_mark = |attribute: &Attribute| {
        ["write", "insert", "read"].iter().any(|mark| attribute.path().is_ident(mark))
    };
    let marks: Vec<Attribute> = attributes.extract_if(.., |attribute| is_mark(attribute)).collect();
    let [mark] = marks.as_slice() else {
        return match marks.get(1) {
            Some(second) => Err(Error::new_spanned(second, "a method has one mark")),
            None => Ok(None),
        };
    };
    if mark.path().is_ident("write") {
        return written_rows(method, mark).map(|rows| Some(Mark::Write(rows)));
    }
    let mut key = None;
    if !matches!(mark.meta, syn::Meta::Path(_)) {
        mark.parse_nested_meta(|meta| {
            if meta.path.is_ident("key") && key.is_none() {
                key = Some(meta.value()?.parse()?);
                Ok(())
            } else if mark.path().is_ident("read") {
                Err(meta.error("use #[read] or #[read(key = argument)]"))
            } else {
                Err(meta.error("use #[insert(key = argument)]"))
            }
        })?;
    }
    match (mark.path().is_ident("read"), key) {
        (true, key) => Ok(Some(Mark::Read { key })),
        (false, Some(Expr::Path(key))) if key.path.get_ident().is_some() => {
            Ok(key.path.get_ident().cloned().map(Mark::Insert))
        }
        (false, _) => Err(Error::new_spanned(
            mark,
            format!(
                "name the argument of `{method}` that carries the new row's key: #[insert(key = id)] with \
                 `id: Option<…>`"
            ),
        )),
    }
}

fn written_rows(method: &Ident, mark: &Attribute) -> Result<Rows, Error> {
    let usage = format!(
        "say which rows `{method}` writes: #[write(key = id)], #[write(keys = ids)], or #[write(unknown_rows)] where \
         a condition finds them; a new row whose key the database makes is an #[insert(key = id)]"
    );
    let mut rows = None;
    if !matches!(mark.meta, syn::Meta::Path(_)) {
        mark.parse_nested_meta(|meta| {
            let named = |name| meta.path.is_ident(name);
            rows = Some(match rows {
                None if named("key") => Rows::One(meta.value()?.parse()?),
                None if named("keys") => Rows::Many(meta.value()?.parse()?),
                None if named("unknown_rows") => Rows::Unknown,
                _ => return Err(meta.error(&usage)),
            });
            Ok(())
        })?;
    }
    rows.ok_or_else(|| Error::new_spanned(mark, usage))
}

/// A method's arguments.
struct Arguments {
    /// All of them in their order, as they are passed to a side.
    all: Vec<(Ident, Type)>,
    transaction: Option<Ident>,
}

impl Arguments {
    fn type_of(&self, name: &Ident) -> Option<&Type> {
        self.all.iter().find(|(argument, _)| argument == name).map(|(_, ty)| ty)
    }
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
    let call = |side: &str, trait_name: &Ident, arguments: &[TokenStream]| {
        let side = Ident::new(side, Span::call_site());
        quote!(<#side as #trait_name #trait_generics>::#name(__side, #(#arguments),*).await)
    };
    let moved: Vec<TokenStream> = arguments.all.iter().map(|(argument, _)| quote!(#argument)).collect();
    let (old, new) = (call(OLD, trait_name, &moved), call(NEW, trait_name, &moved));
    let body = match (mark, &arguments.transaction) {
        (Mark::Write(_) | Mark::Insert(_), None) => {
            return Err(Error::new_spanned(
                name,
                format!(
                    "`{name}` is a write, so it takes a `&mut PinnedTx`: the transaction says which sides are \
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
            let Second { before, rows, check } = second(mark);
            quote! {
                let __value = match ::cutover::migration::DualWrite::begin_write(self, #tx)? {
                    ::cutover::migration::Writes::Old(__side) => #old?,
                    ::cutover::migration::Writes::New(__side) => #new?,
                    #both
                    ::cutover::migration::Writes::Both { old: __side, new: __second, .. } => {
                        let __from_old = #first?;
                        #before
                        let __guard = ::cutover::migration::DualWrite::guard(self, #tx, #rows).await?;
                        let __side = __second;
                        let __attempt = #new;
                        match ::cutover::migration::DualWrite::settle(self, #tx, __guard, __attempt).await? {
                            ::core::option::Option::Some(__from_new) => {
                                #check
                                match #tx.phase().answers() {
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
                let __reading = ::cutover::migration::DualWrite::read(self, #key)?;
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

/// What stands around the second side's call.
struct Second {
    before: TokenStream,
    rows: TokenStream,
    check: TokenStream,
}

fn second(mark: &Mark) -> Second {
    let rows = quote!(::cutover::migration::Rows);
    match mark {
        // The second side inserts the key that the first one returned.
        Mark::Insert(key) => Second {
            before: quote! {
                let __made = ::cutover::migration::made(#key, &__from_old)?;
                let #key = ::core::option::Option::Some(::core::clone::Clone::clone(&__made));
            },
            rows: quote!(#rows::one(&__made)),
            check: quote!(::cutover::migration::same(&__made, &__from_new)?;),
        },
        Mark::Write(Rows::One(key)) => {
            Second { before: quote!(), rows: quote!(#rows::one(&(#key))), check: quote!() }
        }
        Mark::Write(Rows::Many(keys)) => {
            Second { before: quote!(), rows: quote!(#rows::many(&(#keys))), check: quote!() }
        }
        Mark::Write(Rows::Unknown) | Mark::Read { .. } => {
            Second { before: quote!(), rows: quote!(#rows::unknown()), check: quote!() }
        }
    }
}

/// The key of an insert is an `Option`, and that of another write is none.
fn check_key(mark: &Mark, arguments: &Arguments) -> Result<(), Error> {
    match mark {
        Mark::Insert(key) => match arguments.type_of(key) {
            None => Err(Error::new_spanned(key, format!("there is no argument `{key}`"))),
            Some(ty) if !is_named(ty, "Option") => Err(Error::new_spanned(
                ty,
                format!("`{key}` has to be an `Option`: with `None` the database makes the key"),
            )),
            Some(_) => Ok(()),
        },
        Mark::Write(Rows::One(Expr::Path(path))) => {
            let key = path.path.get_ident();
            match key.and_then(|key| arguments.type_of(key)) {
                Some(ty) if is_named(ty, "Option") => Err(Error::new_spanned(
                    path,
                    "a key that may be missing is one that the database makes: mark the method #[insert(key = …)], \
                     so that the other side gets the same one",
                )),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
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
        Some(key) => quote!(::cutover::migration::Key::of(&(#key))),
        None => quote!(::cutover::migration::Key::NONE),
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
        let message =
            format!("`{name}` has to return a `Result<T, E>` with `E: From<cutover::migration::Error>`");
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
        found.all.push((name.clone(), (*argument.ty).clone()));
        if is_transaction(&argument.ty)? && found.transaction.replace(name).is_some() {
            return Err(Error::new_spanned(argument, "one `&mut PinnedTx` is enough"));
        }
    }
    Ok(found)
}

fn is_named(ty: &Type, name: &str) -> bool {
    matches!(ty, Type::Path(path) if path.path.segments.last().is_some_and(|last| last.ident == name))
}

fn is_transaction(ty: &Type) -> Result<bool, Error> {
    let named = |ty: &Type| is_named(ty, "PinnedTx");
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

/// The generic parameters that stand for the two sides, and for what writes both at once.
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

/// The trait for writes of both sides at once, which nothing at all implements as well as something.
fn writes_at_once(item: &ItemTrait, name: &Ident, methods: &[Method]) -> TokenStream {
    let (visibility, generics, supertraits) = (&item.vis, &item.generics, &item.supertraits);
    let boxed = boxed(item);
    let (impl_generics, trait_generics, where_clause) = generics.split_for_impl();
    let written: Vec<&TraitItemFn> = methods.iter().filter_map(|method| method.written.as_ref()).collect();
    let signatures = written.iter().map(|method| &method.sig);
    let doc = format!("The writes of [`{}`], each of both sides in one statement.", item.ident);
    quote! {
        #[doc = #doc]
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
