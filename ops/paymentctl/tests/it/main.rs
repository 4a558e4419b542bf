//! The commands on a real database. That their role suffices, and what keys say of a replay, the end-to-end tests show.

mod audit;
mod cases;
mod events;
mod explain;
mod export;
mod keys;
mod world;
