//! Whole flows through the built programs.

mod hostile;
mod purchases;
mod repeats;
