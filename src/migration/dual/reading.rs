use crate::migration::runtime::{Error, Pin};

/// The side that a read goes to.
#[derive(Debug)]
pub enum Reads<'a, O, N> {
    /// The old side.
    Old(&'a O),
    /// The new side.
    New(&'a N),
}

/// A read under a pin. The migration does not move on until it ends.
#[must_use = "a value that was read is valid only after `finish`"]
#[derive(Debug)]
pub struct Reading<'a, O, N> {
    pin: Pin<'a>,
    reads: Reads<'a, O, N>,
}

impl<'a, O, N> Reading<'a, O, N> {
    #[inline]
    pub(super) fn new(reads: Reads<'a, O, N>, pin: Pin<'a>) -> Self {
        Self { pin, reads }
    }

    /// The side to read.
    #[inline]
    pub fn side(&self) -> &Reads<'a, O, N> {
        &self.reads
    }

    /// Ends the read and returns `value` if this instance was in the fleet during all of it.
    ///
    /// # Errors
    ///
    /// [`Error::NotInFleet`]: the value may be out of date.
    #[inline]
    pub fn finish<T, E: From<Error>>(self, value: T) -> Result<T, E> {
        if self.pin.holds() { Ok(value) } else { Err(Error::NotInFleet.into()) }
    }
}
