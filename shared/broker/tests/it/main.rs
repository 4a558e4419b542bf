//! Tests on a real RabbitMQ.

mod permissions;
mod publish;
mod tls;
mod topology;
