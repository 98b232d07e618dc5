//! The program as it runs in a pod: it answers, asks, and leaves without dropping a request.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::TcpStream;
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use nix::sys::signal::{Signal, kill};
use nix::unistd::Pid;

struct Hello {
    child: Child,
    port: u16,
    log: BufReader<std::process::ChildStdout>,
}

impl Drop for Hello {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

impl Hello {
    /// Starts it on a port the kernel chooses; its first line tells which.
    fn start(drain_ms: u32) -> Self {
        let mut child = Command::new(env!("CARGO_BIN_EXE_hello"))
            .env("PORT", "0")
            .env("POD_IP", "10.42.0.7")
            .env("DRAIN_MS", drain_ms.to_string())
            .env("API_TOKEN", "hush")
            .stdout(Stdio::piped())
            .spawn()
            .unwrap();
        let mut log = BufReader::new(child.stdout.take().unwrap());
        let mut line = String::new();
        log.read_line(&mut line).unwrap();
        let port = line.trim().rsplit(' ').next().unwrap().parse().unwrap_or_else(|_| panic!("{line}"));
        Self { child, port, log }
    }

    fn connect(&self) -> TcpStream {
        let stream = TcpStream::connect(("127.0.0.1", self.port)).unwrap();
        stream.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
        stream
    }

    fn get(&self, path: &str) -> String {
        let mut stream = self.connect();
        write!(stream, "GET {path} HTTP/1.1\r\nhost: x\r\nconnection: close\r\n\r\n").unwrap();
        let mut text = String::new();
        stream.read_to_string(&mut text).unwrap();
        text
    }

    fn stop(&self) {
        kill(Pid::from_raw(i32::try_from(self.child.id()).unwrap()), Signal::SIGTERM).unwrap();
    }

    /// Reads the log until a line contains the words.
    fn wait_for(&mut self, words: &str) {
        let mut line = String::new();
        while self.log.read_line(&mut line).unwrap() > 0 {
            if line.contains(words) {
                return;
            }
            line.clear();
        }
        panic!("it never said `{words}`");
    }
}

#[test]
fn it_answers_and_asks() {
    let hello = Hello::start(0);
    let me = hello.get("/");
    assert!(me.starts_with("HTTP/1.1 200") && me.contains("hello from ") && me.contains("(10.42.0.7)"), "{me}");
    let asked = hello.get(&format!("/ask?host=127.0.0.1&port={}", hello.port));
    assert!(asked.contains("asked 127.0.0.1 at 127.0.0.1: hello from "), "{asked}");
    assert!(hello.get("/ask?host=").starts_with("HTTP/1.1 502"));
    assert!(hello.get("/client").ends_with("\r\n\r\n127.0.0.1\n"));
    let socket = std::net::UdpSocket::bind("127.0.0.1:0").unwrap();
    socket.set_read_timeout(Some(Duration::from_secs(10))).unwrap();
    socket.send_to(b"?", ("127.0.0.1", hello.port)).unwrap();
    let mut answer = [0; 200];
    let length = socket.recv(&mut answer).unwrap();
    assert!(answer[..length].starts_with(b"hello from ") && answer[..length].ends_with(b"(10.42.0.7)"));
    assert!(hello.get("/ready").starts_with("HTTP/1.1 200"));
    assert!(hello.get("/nowhere").starts_with("HTTP/1.1 404"));
    let environment = hello.get("/env");
    assert!(
        environment.contains("POD_IP=10.42.0.7\n")
            && environment.contains("API_TOKEN=***\n")
            && !environment.contains("hush")
    );
    // Two requests on one connection, and one that is no GET.
    let mut stream = hello.connect();
    stream.write_all(b"GET /healthz HTTP/1.1\r\n\r\nGET /healthz HTTP/1.1\r\n\r\nPOST / HTTP/1.1\r\n\r\n").unwrap();
    let mut text = String::new();
    stream.read_to_string(&mut text).unwrap();
    assert_eq!((text.matches("200 OK").count(), text.matches("405").count()), (2, 1), "{text}");
}

#[test]
fn it_leaves_without_dropping_a_request() {
    let mut hello = Hello::start(300);
    // A request whose head is half here when the signal comes, and a connection that only idles.
    let mut slow = hello.connect();
    slow.write_all(b"GET / HTTP/1.1\r\nhost: x\r\n").unwrap();
    let _idle = hello.connect();
    hello.stop();
    hello.wait_for("not ready from now on");
    assert!(hello.get("/ready").starts_with("HTTP/1.1 503"), "not ready any more");
    assert!(hello.get("/").starts_with("HTTP/1.1 200"), "whoever still has the address is served");
    // Once the door is closed the open request is still answered.
    let until = Instant::now() + Duration::from_secs(10);
    while TcpStream::connect(("127.0.0.1", hello.port)).is_ok() {
        assert!(Instant::now() < until, "the door stays open");
        std::thread::yield_now();
    }
    slow.write_all(b"\r\n").unwrap();
    let mut text = String::new();
    slow.read_to_string(&mut text).unwrap();
    assert!(text.starts_with("HTTP/1.1 200") && text.contains("connection: close"), "{text}");
    assert!(hello.child.wait().unwrap().success());
}
