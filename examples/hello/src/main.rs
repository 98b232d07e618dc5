//! A small web server that answers with its name and asks its siblings through DNS: the demo application.
//!
//! Only the standard library: the binary is static and must not call the C library's resolver, which would load the name
//! services of whatever system it finds around it. `resolver` asks the name server in `/etc/resolv.conf` itself.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr, reason = "a container logs to its standard output")]

mod datagrams;
mod heartbeat;
mod resolver;
mod server;
mod stop;

use std::net::{Ipv4Addr, SocketAddr};

fn main() -> std::process::ExitCode {
    let port = match std::env::var("PORT").map(|text| text.parse::<u16>()) {
        Ok(Ok(port)) => port,
        Ok(Err(_)) => {
            eprintln!("PORT must be a number from 1 to 65535");
            return std::process::ExitCode::from(2);
        }
        Err(_) => 8080,
    };
    if let Err(error) = heartbeat::begin() {
        eprintln!("HEARTBEAT: {error}");
        return std::process::ExitCode::from(2);
    }
    match server::run(SocketAddr::from((Ipv4Addr::UNSPECIFIED, port))) {
        Ok(()) => std::process::ExitCode::SUCCESS,
        Err(error) => {
            eprintln!("cannot serve on port {port}: {error}");
            std::process::ExitCode::FAILURE
        }
    }
}
