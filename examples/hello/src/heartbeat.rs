//! Tells somebody outside, by datagrams, that this very process lives: who must run only once is counted by others.

use std::io;
use std::net::{Ipv4Addr, SocketAddr, UdpSocket};
use std::time::Duration;

/// Between two heartbeats.
const EVERY: Duration = Duration::from_millis(20);

/// With `HEARTBEAT=ADDRESS:PORT` a thread sends the pod's name, its number of the beat and nothing else there, fifty times a second.
pub fn begin() -> io::Result<()> {
    let Ok(text) = std::env::var("HEARTBEAT") else { return Ok(()) };
    let to: SocketAddr = text.parse().map_err(|error| io::Error::new(io::ErrorKind::InvalidInput, error))?;
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0))?;
    let name = crate::server::host_name();
    std::thread::Builder::new().name("heartbeat".into()).spawn(move || {
        for beat in 0_u64.. {
            // Nobody listens, or the network is not there yet: the next one may arrive.
            let _ = socket.send_to(format!("{name} {beat}").as_bytes(), to);
            std::thread::sleep(EVERY);
        }
    })?;
    Ok(())
}
