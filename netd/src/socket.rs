//! One netlink socket used synchronously: a request is done, and its answers wait in the socket, when `send` returns.

use std::io;
use std::os::fd::OwnedFd;

use coracle_net_model::nft::{self, Reply};
use rustix::net::sockopt;
use rustix::net::{
    AddressFamily, Protocol, RecvFlags, SendFlags, SocketFlags, SocketType, netlink, recv, send, socket_with,
};

/// Room for one datagram of answers; the kernel makes dumps at most half as long.
const RECEIVE_BYTES: usize = 64 * 1024;
/// How often a listing that was cut by somebody's change is begun again.
const LIST_ATTEMPTS: usize = 10;

/// A socket of the network namespace its creating thread was in.
pub(crate) struct Socket {
    fd: OwnedFd,
    buffer: Vec<u8>,
    send_bytes: usize,
}

impl Socket {
    /// For links, addresses and routes.
    pub(crate) fn route() -> io::Result<Socket> {
        Socket::open(None)
    }

    /// For nf_tables and connection tracking.
    pub(crate) fn netfilter() -> io::Result<Socket> {
        Socket::open(Some(netlink::NETFILTER))
    }

    fn open(protocol: Option<Protocol>) -> io::Result<Socket> {
        let fd = socket_with(AddressFamily::NETLINK, SocketType::RAW, SocketFlags::CLOEXEC, protocol)?;
        let send_bytes = sockopt::socket_send_buffer_size(&fd)?;
        Ok(Socket { fd, buffer: vec![0; RECEIVE_BYTES], send_bytes })
    }

    /// Sends requests that ask for acknowledgements and hands each answer (sequence, errno or 0) to `each`.
    pub(crate) fn exchange(&mut self, request: &[u8], mut each: impl FnMut(u32, i32)) -> io::Result<()> {
        self.send(request)?;
        while let Some(length) = self.receive_now()? {
            for frame in nft::frames(&self.buffer[..length]) {
                match nft::reply(&frame) {
                    Reply::Ack => each(frame.sequence, 0),
                    Reply::Error(errno) => each(frame.sequence, errno),
                    Reply::Done(_) | Reply::Data(_) => {}
                }
            }
        }
        Ok(())
    }

    /// Asks for one thing. `None`: the kernel says there is none.
    pub(crate) fn ask<T>(&mut self, request: &[u8], parse: impl Fn(&[u8]) -> Option<T>) -> io::Result<Option<T>> {
        self.send(request)?;
        let mut answer = None;
        let mut failure = 0;
        while let Some(length) = self.receive_now()? {
            for frame in nft::frames(&self.buffer[..length]) {
                match nft::reply(&frame) {
                    Reply::Data(body) => answer = answer.or_else(|| parse(body)),
                    Reply::Error(errno) => failure = errno,
                    Reply::Ack | Reply::Done(_) => {}
                }
            }
        }
        match failure {
            0 => Ok(answer),
            libc::ENOENT | libc::ENODEV => Ok(None),
            errno => Err(io::Error::from_raw_os_error(errno)),
        }
    }

    /// Lists things, from the start again when somebody changed them meanwhile.
    pub(crate) fn list<T>(&mut self, request: &[u8], parse: impl Fn(&[u8], &mut Vec<T>)) -> io::Result<Vec<T>> {
        for _ in 0..LIST_ATTEMPTS {
            let mut found = Vec::new();
            match self.list_once(request, |body| parse(body, &mut found)) {
                Ok(true) => return Ok(found),
                Ok(false) => {}
                Err(error) if error.raw_os_error() == Some(libc::ENOENT) => return Ok(Vec::new()),
                Err(error) => return Err(error),
            }
        }
        Err(io::ErrorKind::Interrupted.into())
    }

    /// One listing; false when it was interrupted.
    fn list_once(&mut self, request: &[u8], mut each: impl FnMut(&[u8])) -> io::Result<bool> {
        self.send(request)?;
        let mut consistent = true;
        loop {
            let length = self.receive(RecvFlags::empty())?;
            for frame in nft::frames(&self.buffer[..length]) {
                consistent &= !frame.is_interrupted();
                match nft::reply(&frame) {
                    Reply::Data(body) => each(body),
                    Reply::Done(libc::EINTR | libc::EAGAIN) => return Ok(false),
                    Reply::Done(0) | Reply::Ack => return Ok(consistent),
                    Reply::Done(errno) | Reply::Error(errno) => return Err(io::Error::from_raw_os_error(errno)),
                }
            }
        }
    }

    fn send(&mut self, request: &[u8]) -> io::Result<()> {
        // A request is one datagram and must fit the send buffer; the kernel doubles what is asked for.
        if request.len() + 4096 > self.send_bytes {
            sockopt::set_socket_send_buffer_size_force(&self.fd, request.len() + 4096)?;
            self.send_bytes = request.len() + 4096;
        }
        loop {
            match send(&self.fd, request, SendFlags::empty()) {
                Ok(_) => return Ok(()),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    fn receive(&mut self, flags: RecvFlags) -> io::Result<usize> {
        loop {
            match recv(&self.fd, &mut self.buffer[..], flags) {
                Ok((length, _)) => return Ok(length),
                Err(rustix::io::Errno::INTR) => {}
                Err(error) => return Err(error.into()),
            }
        }
    }

    /// The next datagram, if one waits.
    fn receive_now(&mut self) -> io::Result<Option<usize>> {
        match self.receive(RecvFlags::DONTWAIT) {
            Ok(length) => Ok(Some(length)),
            Err(error) if error.kind() == io::ErrorKind::WouldBlock => Ok(None),
            Err(error) => Err(error),
        }
    }
}
