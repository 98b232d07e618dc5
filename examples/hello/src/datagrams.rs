//! The same answer by UDP: who asks on the server's port is told who answers.

use std::io;
use std::net::{Ipv4Addr, UdpSocket};

/// A thread that answers each datagram on `port` with `hello`, for as long as the program lives.
pub fn begin(port: u16, hello: String) -> io::Result<()> {
    let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, port))?;
    std::thread::Builder::new().name("datagrams".into()).stack_size(256 << 10).spawn(move || {
        let mut question = [0; 64];
        loop {
            // An error is that of an earlier answer that found nobody.
            if let Ok((_, from)) = socket.recv_from(&mut question) {
                let _ = socket.send_to(hello.as_bytes(), from);
            }
        }
    })?;
    Ok(())
}
