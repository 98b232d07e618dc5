//! Sockets in the server's network namespace: made on a thread that lives there, used anywhere.

use std::io;
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr, TcpListener, UdpSocket};
use std::os::fd::{AsFd, OwnedFd};
use std::sync::Arc;
use std::sync::mpsc::{SyncSender, sync_channel};

use rustix::net::{AddressFamily, SocketFlags, SocketType, bind, connect, listen, socket_with, sockopt};
use rustix::thread::{LinkNameSpaceType, move_into_link_name_space};
use tokio::sync::oneshot;

/// Connections the kernel holds until they are accepted.
const BACKLOG: i32 = 128;
/// Room for a burst of questions while the loop is busy.
const UDP_RECEIVE_BYTES: usize = 1 << 20;

/// A wish for a socket.
#[derive(Debug, Clone, Copy)]
pub(crate) enum Wish {
    /// A UDP socket that answers at an address.
    Udp(SocketAddr),
    /// A TCP socket that listens at an address.
    Listen(SocketAddr),
    /// A UDP socket that talks to one server only, from a random port the kernel picks.
    To(SocketAddr),
    /// A TCP socket on its way to a server.
    Connect(SocketAddr),
}

/// Makes sockets.
#[derive(Debug, Clone)]
pub(crate) enum Sockets {
    /// In the namespace of whoever asks.
    Here,
    /// On a thread that moved to another namespace.
    Elsewhere(SyncSender<(Wish, oneshot::Sender<io::Result<OwnedFd>>)>),
}

impl Sockets {
    /// For a namespace, or for the caller's own.
    pub(crate) fn new(netns: Option<Arc<OwnedFd>>) -> io::Result<Sockets> {
        let Some(netns) = netns else { return Ok(Sockets::Here) };
        let (wishes, queue) = sync_channel::<(Wish, oneshot::Sender<io::Result<OwnedFd>>)>(64);
        let (entered, answer) = sync_channel(1);
        std::thread::Builder::new().name("dns-sockets".to_owned()).stack_size(128 * 1024).spawn(move || {
            let moved = move_into_link_name_space(netns.as_fd(), Some(LinkNameSpaceType::Network));
            let ready = moved.is_ok();
            if entered.send(moved).is_err() || !ready {
                return;
            }
            while let Ok((wish, answer)) = queue.recv() {
                drop(answer.send(make(wish)));
            }
        })?;
        answer.recv().map_err(io::Error::other)??;
        Ok(Sockets::Elsewhere(wishes))
    }

    /// Makes a non-blocking socket.
    pub(crate) async fn make(&self, wish: Wish) -> io::Result<OwnedFd> {
        match self {
            Sockets::Here => make(wish),
            Sockets::Elsewhere(wishes) => {
                let (answer, socket) = oneshot::channel();
                wishes.try_send((wish, answer)).map_err(|_| io::Error::from(io::ErrorKind::WouldBlock))?;
                socket.await.map_err(io::Error::other)?
            }
        }
    }

    pub(crate) async fn udp(&self, wish: Wish) -> io::Result<tokio::net::UdpSocket> {
        tokio::net::UdpSocket::from_std(UdpSocket::from(self.make(wish).await?))
    }

    pub(crate) async fn listener(&self, address: SocketAddr) -> io::Result<tokio::net::TcpListener> {
        tokio::net::TcpListener::from_std(TcpListener::from(self.make(Wish::Listen(address)).await?))
    }

    /// Connects; the caller bounds the time.
    pub(crate) async fn connect(&self, server: SocketAddr) -> io::Result<tokio::net::TcpStream> {
        let socket = self.make(Wish::Connect(server)).await?;
        let stream = tokio::net::TcpStream::from_std(std::net::TcpStream::from(socket))?;
        stream.writable().await?;
        match stream.take_error()? {
            Some(error) => Err(error),
            None => Ok(stream),
        }
    }
}

fn make(wish: Wish) -> io::Result<OwnedFd> {
    let (kind, address) = match wish {
        Wish::Udp(address) | Wish::To(address) => (SocketType::DGRAM, address),
        Wish::Listen(address) | Wish::Connect(address) => (SocketType::STREAM, address),
    };
    let family = if address.is_ipv4() { AddressFamily::INET } else { AddressFamily::INET6 };
    let socket = socket_with(family, kind, SocketFlags::CLOEXEC | SocketFlags::NONBLOCK, None)?;
    match wish {
        Wish::Udp(_) => {
            free(&socket, address)?;
            if let Err(error) = sockopt::set_socket_recv_buffer_size(&socket, UDP_RECEIVE_BYTES) {
                tracing::debug!(%error, "the name server's receive buffer stays small");
            }
            bind(&socket, &address)?;
        }
        Wish::Listen(_) => {
            free(&socket, address)?;
            sockopt::set_socket_reuseaddr(&socket, true)?;
            bind(&socket, &address)?;
            listen(&socket, BACKLOG)?;
        }
        Wish::To(_) => {
            let any = if address.is_ipv4() { Ipv4Addr::UNSPECIFIED.into() } else { Ipv6Addr::UNSPECIFIED.into() };
            bind(&socket, &SocketAddr::new(any, 0))?;
            connect(&socket, &address)?;
        }
        Wish::Connect(_) => match connect(&socket, &address) {
            Ok(()) | Err(rustix::io::Errno::INPROGRESS) => {}
            Err(error) => return Err(error.into()),
        },
    }
    Ok(socket)
}

/// Lets the socket have an address that the node does not have yet: the bridge may come later, or come back.
fn free(socket: &OwnedFd, address: SocketAddr) -> io::Result<()> {
    if address.is_ipv4() { Ok(sockopt::set_ip_freebind(socket, true)?) } else { Ok(()) }
}
