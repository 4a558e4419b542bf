//! The ingress without a socket, on a real database: the router is called as the accept loop would call it.

mod auth;
mod callbacks;
mod creating;
mod http;
mod pages;
mod reading;
mod starting;
mod streams;
mod validation;
mod world;
