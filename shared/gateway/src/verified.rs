//! The proof that a gateway has signed a value.

/// A value whose origin a signature has proved.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Verified<T>(T);

impl<T> Verified<T> {
    /// For adapters alone, immediately after they checked the signature.
    pub(crate) fn new(value: T) -> Verified<T> {
        Verified(value)
    }

    /// The value.
    pub fn get(&self) -> &T {
        &self.0
    }

    /// Returns the value and drops the proof.
    pub fn into_inner(self) -> T {
        self.0
    }
}
