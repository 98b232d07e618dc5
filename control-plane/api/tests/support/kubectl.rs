//! Real kubectl, every version that this machine has.

use std::path::{Path, PathBuf};
use std::process::{Output, Stdio};
use std::time::Duration;

use base64::Engine as _;
use serde_json::json;
use tokio::io::{AsyncBufReadExt as _, AsyncReadExt as _, AsyncWriteExt as _, BufReader};
use tokio::process::{Child, Command};

use super::World;

/// A kubectl of some version with a home and a kubeconfig of its own.
pub struct Kubectl {
    pub name: String,
    /// 31 of 1.31.
    pub minor: u32,
    binary: PathBuf,
    home: tempfile::TempDir,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    pub ok: bool,
    pub out: String,
    pub err: String,
}

impl Said {
    /// Everything, for searching.
    pub fn all(&self) -> String {
        format!("{}{}", self.out, self.err)
    }
}

/// What a binary says its version is; 0 when it says nothing readable.
fn minor(binary: &Path) -> u32 {
    let said = std::process::Command::new(binary).args(["version", "--client", "-o", "json"]).output();
    let json: serde_json::Value =
        said.ok().and_then(|said| serde_json::from_slice(&said.stdout).ok()).unwrap_or_default();
    let minor = json["clientVersion"]["minor"].as_str().unwrap_or_default();
    minor.trim_end_matches('+').parse().unwrap_or(0)
}

impl Kubectl {
    /// A kubectl that talks to this world as its administrator.
    pub fn new(world: &World, name: &str, binary: &Path) -> Self {
        let home = tempfile::tempdir().unwrap();
        let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
        let config = json!({
            "apiVersion": "v1", "kind": "Config", "current-context": "c",
            "clusters": [{"name": "c", "cluster": {
                "server": format!("https://{}", world.address),
                "certificate-authority-data": base64(&world.authority.cert_pem),
            }}],
            "users": [{"name": "c", "user": {
                "client-certificate-data": base64(&world.admin.cert_pem),
                "client-key-data": base64(&world.admin.key_pem),
            }}],
            "contexts": [{"name": "c", "context": {"cluster": "c", "user": "c"}}],
        });
        std::fs::write(home.path().join("config"), config.to_string()).unwrap();
        Self { name: name.to_owned(), minor: minor(binary), binary: binary.to_owned(), home }
    }

    fn command(&self, args: &[&str]) -> Command {
        let mut command = Command::new(&self.binary);
        command
            .args(args)
            .env_clear()
            .env("PATH", std::env::var_os("PATH").unwrap_or_default())
            .env("HOME", self.home.path())
            .env("KUBECONFIG", self.home.path().join("config"))
            .stdin(Stdio::piped())
            .stdout(Stdio::piped())
            .stderr(Stdio::piped())
            .kill_on_drop(true);
        command
    }

    /// Runs a command with `input` on its standard input.
    pub async fn feed(&self, args: &[&str], input: &str) -> Said {
        let run = async {
            let mut child = self.command(args).spawn().unwrap();
            let mut stdin = child.stdin.take().unwrap();
            // One that has ended already does not read: what it said tells why.
            let _ = stdin.write_all(input.as_bytes()).await;
            drop(stdin);
            child.wait_with_output().await.unwrap()
        };
        let Output { status, stdout, stderr } = tokio::time::timeout(Duration::from_secs(60), run)
            .await
            .unwrap_or_else(|_| panic!("{} {args:?} does not end", self.name));
        let text = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
        Said { ok: status.success(), out: text(&stdout), err: text(&stderr) }
    }

    /// Runs a command, whatever comes of it.
    pub async fn run(&self, args: &[&str]) -> Said {
        self.feed(args, "").await
    }

    /// Runs a command that must succeed; gives its output.
    pub async fn ok(&self, args: &[&str]) -> String {
        self.ok_with(args, "").await
    }

    /// Runs a command with input that must succeed; gives its output.
    pub async fn ok_with(&self, args: &[&str], input: &str) -> String {
        let said = self.feed(args, input).await;
        assert!(said.ok, "{} {args:?} failed: {}{}", self.name, said.out, said.err);
        said.out
    }

    /// Starts a command that goes on; its lines come one by one.
    pub fn start(&self, args: &[&str]) -> Running {
        let mut child = self.command(args).spawn().unwrap();
        let lines = BufReader::new(child.stdout.take().unwrap()).lines();
        Running { child, lines, name: format!("{} {args:?}", self.name) }
    }
}

/// A command that goes on; it is killed when this is dropped.
pub struct Running {
    child: Child,
    lines: tokio::io::Lines<BufReader<tokio::process::ChildStdout>>,
    name: String,
}

impl Running {
    /// Reads lines up to one that holds all of `words`.
    pub async fn line_with(&mut self, words: &[&str]) -> String {
        let words_wanted = words;
        let mut seen = Vec::new();
        let search = async {
            while let Some(line) = self.lines.next_line().await.unwrap() {
                if words.iter().all(|word| line.contains(word)) {
                    return Some(line);
                }
                seen.push(line);
            }
            None
        };
        match tokio::time::timeout(Duration::from_secs(30), search).await {
            Ok(Some(line)) => line,
            Ok(None) => {
                let mut words = String::new();
                if let Some(mut stderr) = self.child.stderr.take() {
                    let _ = stderr.read_to_string(&mut words).await;
                }
                panic!("{} ended without a line with {words_wanted:?}; seen: {seen:#?}; it said: {words}", self.name)
            }
            Err(_) => panic!("{}: no line with {words_wanted:?} came in 30 s; seen: {seen:#?}", self.name),
        }
    }

    /// Waits for its end.
    pub async fn end(mut self) -> bool {
        let ended = tokio::time::timeout(Duration::from_secs(30), self.child.wait()).await;
        ended.unwrap_or_else(|_| panic!("{} does not end", self.name)).unwrap().success()
    }
}
