//! One real server in a process of its own, so that its CPU time and its memory can be told from the agents'.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, ChildStdout, Command, Stdio};
use std::time::Duration;

use coracle_control_plane::server::{JoinedCluster, ServerConfig};
use coracle_control_plane::sessions::NetworkPlan;
use serde_json::{Value, json};

/// The word that makes this program a server.
pub const WORD: &str = "server";
/// How long an orderly end may take.
const END_WITHIN: Duration = Duration::from_secs(10);

/// What a server is told on its command line.
#[derive(Clone)]
pub struct Plan {
    pub data: PathBuf,
    pub ip: Ipv4Addr,
    pub api_port: u16,
    pub peer_port: u16,
    /// The cluster's name and a server of it, for one that joins.
    pub join: Option<(String, String)>,
}

/// A server's process, as its parent sees it.
pub struct Server {
    pub plan: Plan,
    child: Child,
    ask: ChildStdin,
    answers: BufReader<ChildStdout>,
    /// The cluster's name, as the server told.
    pub cluster: String,
}

impl Server {
    /// Starts it and waits until it answers.
    pub fn start(plan: Plan) -> Result<Self, String> {
        let program = std::env::current_exe().map_err(|error| error.to_string())?;
        let mut command = Command::new(program);
        command.arg(WORD).arg(&plan.data).arg(plan.ip.to_string());
        command.args([plan.api_port.to_string(), plan.peer_port.to_string()]);
        if let Some((cluster, server)) = &plan.join {
            command.args([cluster, server]);
        }
        let spawned = command.stdin(Stdio::piped()).stdout(Stdio::piped()).spawn();
        let mut child = spawned.map_err(|error| format!("cannot start a server: {error}"))?;
        let (Some(ask), Some(answers)) = (child.stdin.take(), child.stdout.take()) else {
            return Err("a server without pipes".to_owned());
        };
        let mut server = Self { plan, child, ask, answers: BufReader::new(answers), cluster: String::new() };
        let hello = server.line()?;
        server.cluster = hello["cluster"].as_str().unwrap_or_default().to_owned();
        Ok(server)
    }

    fn line(&mut self) -> Result<Value, String> {
        let mut line = String::new();
        self.answers.read_line(&mut line).map_err(|error| error.to_string())?;
        serde_json::from_str(&line).map_err(|_| "a server ended before it answered".to_owned())
    }

    /// What it counts: of the log by name, and of its process `cpu` (seconds) and `rss` (bytes).
    pub fn metrics(&mut self) -> Result<Value, String> {
        self.ask.write_all(b"metrics\n").map_err(|error| error.to_string())?;
        self.line()
    }

    /// Where agents dial.
    pub fn peer(&self) -> SocketAddr {
        (self.plan.ip, self.plan.peer_port).into()
    }

    /// Where the API is.
    pub fn api(&self) -> SocketAddr {
        (self.plan.ip, self.plan.api_port).into()
    }

    /// As a power cut would.
    pub fn kill(mut self) -> Plan {
        let _ = self.child.kill();
        let _ = self.child.wait();
        self.plan.clone()
    }
}

impl Drop for Server {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}

/// The addresses of the cluster: room for 16,000 nodes.
fn network() -> Result<NetworkPlan, String> {
    let cidr = |text: &str| text.parse().map_err(|_| format!("{text} is no block"));
    Ok(NetworkPlan {
        cluster_cidr: cidr("10.0.0.0/10")?,
        service_cidr: cidr("10.200.0.0/16")?,
        node_prefix: 24,
        domain: "cluster.local".to_owned(),
    })
}

/// The server's own side: runs until nobody asks any more.
pub async fn serve(words: &[String]) -> Result<(), String> {
    let [data, ip, api_port, peer_port, join @ ..] = words else { return Err("a server needs four words".to_owned()) };
    let bad = |word: &String| format!("{word} is no address or port");
    let ip: Ipv4Addr = ip.parse().map_err(|_| bad(ip))?;
    let port = |word: &String| word.parse::<u16>().map_err(|_| bad(word));
    let join = match join {
        [cluster, server] => Some(JoinedCluster { cluster: cluster.clone(), servers: vec![server.clone()] }),
        _ => None,
    };
    let name = Path::new(data).file_name().and_then(|name| name.to_str()).unwrap_or("server");
    let config = ServerConfig {
        data_dir: PathBuf::from(data),
        api_listen: (ip, port(api_port)?).into(),
        peer_listen: (ip, port(peer_port)?).into(),
        node_name: name.to_owned(),
        node_ip: ip,
        network: network()?,
        log_segment_bytes: 64 << 20,
        join,
    };
    let drain = coracle_daemon::Drain::new();
    let started = coracle_control_plane::server::start(config, drain.watch()).await;
    let server = started.map_err(|error| coracle_base::one_line(&error))?;
    say(&json!({"cluster": server.log.cluster_id()}))?;
    loop {
        let line = tokio::task::spawn_blocking(|| {
            let mut line = String::new();
            std::io::stdin().lock().read_line(&mut line).map(|read| read > 0).unwrap_or(false)
        });
        if !line.await.unwrap_or(false) {
            break;
        }
        let used = coracle_daemon::metrics::process_use();
        let mut all = json!({"cpu": used.cpu_seconds, "rss": used.rss_bytes});
        for (name, value) in server.log_metrics() {
            all[name] = json!(value);
        }
        let work = server.work.by_name.lock().unwrap_or_else(std::sync::PoisonError::into_inner).clone();
        // Rounds, proposals, refusals, microseconds of planning.
        all["work"] = json!(work);
        say(&all)?;
    }
    drain.finish(END_WITHIN).await;
    server.close().await;
    Ok(())
}

fn say(value: &Value) -> Result<(), String> {
    let mut out = std::io::stdout().lock();
    writeln!(out, "{value}").and_then(|()| out.flush()).map_err(|error| error.to_string())
}
