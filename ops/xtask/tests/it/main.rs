//! What this tool relies on: that the checks which it runs can fail.

mod migrations;
mod readme;
mod rooms;
mod supply;
mod tidy;
