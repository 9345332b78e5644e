//! The marks `#[write]`, `#[insert]` and `#[read]` on a method.

use syn::{Attribute, Error, Expr, Ident};

use crate::signature::{Arguments, is_named};

/// The mark of a method.
pub(crate) enum Mark {
    Write(Rows),
    /// A new row, with the argument that has its key.
    Insert(Ident),
    Read {
        key: Option<Expr>,
    },
}

/// The rows that a write changes.
pub(crate) enum Rows {
    One(Expr),
    Many(Expr),
    Unknown,
}

/// Removes the mark from a method's attributes.
pub(crate) fn take_mark(method: &Ident, attributes: &mut Vec<Attribute>) -> Result<Option<Mark>, Error> {
    let is_mark = |attribute: &Attribute| {
        ["write", "insert", "read"].iter().any(|mark| attribute.path().is_ident(mark))
    };
    let marks: Vec<Attribute> = attributes.extract_if(.., |attribute| is_mark(attribute)).collect();
    let [mark] = marks.as_slice() else {
        return match marks.get(1) {
            Some(second) => Err(Error::new_spanned(
                second,
                "a method can only have one of #[write], #[insert] and #[read]",
            )),
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
        "name the rows that `{method}` writes: #[write(key = id)], #[write(keys = ids)], or #[write(unknown_rows)] if a \
         condition selects them; use #[insert(key = id)] if the database generates the key of a new row"
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

/// Checks that the key of an insert is an `Option`, and that the key of another write is not.
pub(crate) fn check_key(mark: &Mark, arguments: &Arguments) -> Result<(), Error> {
    match mark {
        Mark::Insert(key) => match arguments.type_of(key) {
            None => Err(Error::new_spanned(key, format!("there is no argument `{key}`"))),
            Some(ty) if !is_named(ty, "Option") => Err(Error::new_spanned(
                ty,
                format!("`{key}` must be an `Option`: with `None` the database generates the key"),
            )),
            Some(_) => Ok(()),
        },
        Mark::Write(Rows::One(Expr::Path(path))) => {
            let key = path.path.get_ident();
            match key.and_then(|key| arguments.type_of(key)) {
                Some(ty) if is_named(ty, "Option") => Err(Error::new_spanned(
                    path,
                    "an optional key is a key that the database generates: mark the method #[insert(key = …)], so that both \
                     sides get the same key",
                )),
                _ => Ok(()),
            }
        }
        _ => Ok(()),
    }
}
