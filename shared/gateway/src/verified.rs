//! The proof that a gateway has signed a value.

/// A value whose origin was proved by a signature.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// For adapters alone, right after the check.
    pub(crate) fn new(value: T) -> Verified<T> {
        Verified(value)
    }

    /// The value.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// The value, for good.
    pub fn into_inner(self) -> T {
        self.0
    }
}
