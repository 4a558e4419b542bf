//! Tests with the official SDKs' vectors and with the simulator.

mod rotation;
mod vectors;
