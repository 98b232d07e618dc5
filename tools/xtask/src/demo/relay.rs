//! A door from this machine's loopback into a namespace: a browser cannot change its network, so we carry the bytes.

use std::net::{Ipv4Addr, Shutdown, SocketAddr, TcpListener, TcpStream};
use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use super::site::enter;

/// Connections carried at the same time; one more is closed at once. A browser opens six.
const CONNECTIONS: usize = 64;

/// Listens on this port of the loopback, or on any when it is taken, and carries each connection to `to` as seen from the
/// namespace. Ends with the process. Returns where it listens.
///
/// # Errors
/// There is no port, or the namespace is gone; in words.
pub fn start(port: u16, namespace: &Path, to: SocketAddr) -> Result<SocketAddr, String> {
    let bad = |error: std::io::Error| format!("cannot pass the status page on: {error}");
    // Made out here: a socket stays in the network where it was made.
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, port))
        .or_else(|_| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))
        .map_err(bad)?;
    let here = listener.local_addr().map_err(bad)?;
    let namespace = namespace.to_path_buf();
    let carry = move || {
        // Those that this thread starts are in the namespace too.
        if let Err(error) = enter(&namespace) {
            eprintln!("{}", bad(error));
            return;
        }
        let open = Arc::new(());
        for stream in listener.incoming().flatten() {
            if Arc::strong_count(&open) <= CONNECTIONS {
                let counted = open.clone();
                // Without a thread the connection is closed, and the browser says so.
                let _ = std::thread::Builder::new().name("connection".into()).spawn(move || {
                    let _ = connect(&stream, to);
                    drop(counted);
                });
            }
        }
    };
    std::thread::Builder::new().name("relay".into()).spawn(carry).map_err(bad)?;
    Ok(here)
}

/// Carries one connection until both sides have said all.
fn connect(stream: &TcpStream, to: SocketAddr) -> std::io::Result<()> {
    let other = TcpStream::connect_timeout(&to, Duration::from_secs(2))?;
    std::thread::scope(|scope| {
        scope.spawn(|| one_way(stream, &other));
        one_way(&other, stream);
    });
    Ok(())
}

fn one_way(mut from: &TcpStream, mut to: &TcpStream) {
    let whole = std::io::copy(&mut from, &mut to).is_ok();
    let _ = to.shutdown(Shutdown::Write);
    if !whole {
        // Nobody takes the rest: the sender must not wait for us.
        let _ = from.shutdown(Shutdown::Read);
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read as _, Write as _};

    use super::*;

    #[test]
    fn a_question_and_its_answer_are_carried() {
        let server = TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).unwrap();
        let (taken, to) = (server.local_addr().unwrap().port(), server.local_addr().unwrap());
        // Our own namespace: the way in is the same, and nobody has to be root for it but the tests are.
        let here = start(taken, Path::new("/proc/self/ns/net"), to).unwrap();
        assert_ne!(here, to, "a port that is taken is not used");
        let answering = std::thread::spawn(move || {
            let (mut stream, _) = server.accept().unwrap();
            let mut question = String::new();
            stream.read_to_string(&mut question).unwrap();
            write!(stream, "{question}, indeed").unwrap();
        });
        let mut stream = TcpStream::connect(here).unwrap();
        stream.write_all(b"a boat").unwrap();
        stream.shutdown(Shutdown::Write).unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        assert_eq!(answer, "a boat, indeed");
        answering.join().unwrap();
    }
}
