//! The ingress without a socket, on a real database: the router is called as the accept loop would call it.

mod auth;
mod back;
mod callbacks;
mod cases;
mod closing;
mod config;
mod copies;
mod creating;
mod credentials;
mod extra;
mod fuzz;
mod http;
mod limits;
mod pages;
mod reading;
mod refunding;
mod reopening;
mod rights;
mod starting;
mod statistics;
mod strays;
mod streams;
mod support;
mod validation;
mod world;
mod writing;
