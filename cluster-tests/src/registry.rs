//! A registry on a machine's loopback: it has what a layout holds under the names there, and answers 404 to all else.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::time::Duration;

use serde_json::Value;

use crate::machine::Machine;

/// Where it listens, `127.0.0.1:PORT`. It serves until the test process ends.
#[must_use]
pub fn serve(machine: &Machine, layout: &Path) -> String {
    let listener = machine.inside(|| TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
    let address = listener.local_addr().expect("an address");
    let layout = layout.to_path_buf();
    std::thread::spawn(move || {
        for stream in listener.incoming().flatten() {
            let layout = layout.clone();
            std::thread::spawn(move || answer(&layout, &stream));
        }
    });
    address.to_string()
}

/// One connection, one request. A client that goes away is no matter.
fn answer(layout: &Path, mut stream: &TcpStream) -> Option<()> {
    stream.set_read_timeout(Some(Duration::from_secs(10))).ok()?;
    let mut lines = BufReader::new(stream).lines();
    let first = lines.next()?.ok()?;
    while !lines.next()?.ok()?.is_empty() {}
    let mut words = first.split(' ');
    let (method, path) = (words.next()?, words.next()?);
    let (status, kind, body) = match found(layout, path) {
        Some((kind, body)) => ("200 OK", kind, body),
        None => {
            let said = br#"{"errors":[{"code":"MANIFEST_UNKNOWN","message":"manifest unknown"}]}"#;
            ("404 Not Found", "application/json".to_owned(), said.to_vec())
        }
    };
    let length = body.len();
    write!(
        stream,
        "HTTP/1.1 {status}\r\ncontent-type: {kind}\r\ncontent-length: {length}\r\nconnection: close\r\n\r\n"
    )
    .ok()?;
    if method == "GET" {
        stream.write_all(&body).ok()?;
    }
    Some(())
}

/// The media type and the bytes of what is at this path of the distribution API.
fn found(layout: &Path, path: &str) -> Option<(String, Vec<u8>)> {
    if path == "/v2/" {
        return Some(("application/json".to_owned(), b"{}".to_vec()));
    }
    let (name, rest) = path.strip_prefix("/v2/")?.split_once('/')?;
    let blob = |digest: &str| -> Option<Vec<u8>> {
        let file: PathBuf = layout.join("blobs").join(digest.replace(':', "/"));
        std::fs::read(file).ok()
    };
    if let Some(digest) = rest.strip_prefix("blobs/") {
        return Some(("application/octet-stream".to_owned(), blob(digest)?));
    }
    let tag = rest.strip_prefix("manifests/")?;
    let index: Value = serde_json::from_slice(&std::fs::read(layout.join("index.json")).ok()?).ok()?;
    let entry = index["manifests"].as_array()?.iter().find(|entry| {
        let known = entry["annotations"]["org.opencontainers.image.ref.name"].as_str().unwrap_or_default();
        known.ends_with(&format!("/{name}:{tag}")) || entry["digest"] == tag
    })?;
    Some((entry["mediaType"].as_str()?.to_owned(), blob(entry["digest"].as_str()?)?))
}
