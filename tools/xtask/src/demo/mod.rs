//! `cargo xtask demo`: from a clean clone to an application that answers by its DNS name, with what to try next. On this
//! machine, or as a cluster of several machines that are network namespaces.

mod interrupt;
mod one;
mod relay;
mod several;
mod site;

use std::io::{Read as _, Write as _};
use std::net::{SocketAddr, TcpStream};
use std::path::PathBuf;
use std::time::Duration;

use crate::{cargo, must};

/// The demo must be up well within this; on a busy two-core machine it needs a few seconds.
const PATIENCE: Duration = Duration::from_secs(120);

/// What is asked for on the command line.
#[derive(Debug, Default, PartialEq, Eq)]
struct Wanted {
    once: bool,
    data: Option<PathBuf>,
    nodes: Option<u8>,
}

impl Wanted {
    fn parse(arguments: &[String]) -> Result<Self, String> {
        let mut wanted = Self::default();
        let mut arguments = arguments.iter();
        while let Some(argument) = arguments.next() {
            let mut value = || arguments.next().ok_or_else(|| format!("{argument} needs a value"));
            match argument.as_str() {
                "--once" => wanted.once = true,
                "--data-dir" => wanted.data = Some(value()?.into()),
                "--nodes" => {
                    let count = value()?;
                    let most = site::MOST;
                    let good = count.parse().ok().filter(|count| (1..=most).contains(count));
                    wanted.nodes = Some(good.ok_or_else(|| {
                        format!("`{count}` is no number of machines\nhint: --nodes takes a number from 1 to {most}")
                    })?);
                }
                other => {
                    return Err(format!("`{other}` is unknown\nhint: there are --nodes N, --once and --data-dir DIR"));
                }
            }
        }
        Ok(wanted)
    }
}

/// Runs the task.
///
/// # Errors
/// What did not work, in words.
pub fn run(arguments: &[String]) -> Result<(), String> {
    let wanted = Wanted::parse(arguments)?;
    if wanted.nodes.is_some() && !rustix::process::geteuid().is_root() {
        return Err(
            "machines are network namespaces, which only root can make\nhint: sudo -E cargo xtask demo".to_owned()
        );
    }
    must(cargo().args([
        "build",
        "--quiet",
        "--package",
        "coracle",
        "--package",
        "hello",
        "--package",
        "example-images",
    ]))?;
    let programs = programs()?;
    match wanted.nodes {
        None => one::run(&programs, wanted.data, wanted.once),
        Some(count) => several::run(&programs, count, wanted.data, wanted.once),
    }
}

fn step(words: &str) {
    println!("==> {words}");
}

/// Where cargo put the programs: beside us, since a target folder may be anywhere.
fn programs() -> Result<PathBuf, String> {
    let here = std::env::current_exe().map_err(|error| error.to_string())?;
    here.parent().map(std::path::Path::to_path_buf).ok_or_else(|| "xtask has no folder".to_owned())
}

/// One HTTP/1.0 GET; the body of a 200.
fn fetch(address: SocketAddr, path: &str) -> Result<String, String> {
    let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(2)).map_err(|error| error.to_string())?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).map_err(|error| error.to_string())?;
    write!(stream, "GET {path} HTTP/1.0\r\nHost: hello\r\n\r\n").map_err(|error| error.to_string())?;
    let mut text = String::new();
    stream.read_to_string(&mut text).map_err(|error| error.to_string())?;
    let (head, body) = text.split_once("\r\n\r\n").ok_or("no answer")?;
    if head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.0 200") {
        Ok(body.trim().to_owned())
    } else {
        Err(head.to_owned())
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn parse(words: &str) -> Result<Wanted, String> {
        Wanted::parse(&words.split_whitespace().map(str::to_owned).collect::<Vec<_>>())
    }

    #[test]
    fn what_is_asked_for_is_understood() {
        assert_eq!(parse(""), Ok(Wanted::default()));
        let wanted = Wanted { once: true, data: Some("somewhere".into()), nodes: Some(3) };
        assert_eq!(parse("--nodes 3 --once --data-dir somewhere"), Ok(wanted));
        for bad in ["--nodes", "--nodes 0", "--nodes 10", "--nodes three", "--data-dir", "--one", "3"] {
            assert!(parse(bad).is_err(), "{bad}");
        }
    }
}
