//! Thousands of fake agents in one process against real servers, each in a process of its own. Prints one line of JSON.
//!
//! `simagents [--agents N] [--pods P] [--servers 1|3] [--idle SECONDS]`. The agents speak the real protocol over real connections
//! with papers of the cluster's authority; a pod of theirs starts after a random while, which is all there is of a runtime.
//! What it is at goes to standard error. `cargo xtask bench agents-5000` puts the figures into PROMISES.md.
#![forbid(unsafe_code)]
#![allow(clippy::print_stdout, clippy::print_stderr)]

mod agent;
mod server;

use std::collections::{BTreeMap, HashSet};
use std::net::{Ipv4Addr, TcpListener, UdpSocket};
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::sync::atomic::Ordering;
use std::sync::{Arc, PoisonError};
use std::time::{Duration, Instant};

use coracle_cluster_tests::site::{Answered, Api, Credentials};
use coracle_control_plane::pki::{self, Authority, NODES};
use coracle_protocol::tls::{Papers, Wallet};
use serde_json::{Value, json};

use agent::{Agent, DIALS, Seen, Tally};
use server::{Plan, Server};

/// The servers here are what they are in the program.
#[global_allocator]
static ALLOCATOR: mimalloc::MiMalloc = mimalloc::MiMalloc;

/// Pods of one Deployment.
const REPLICAS: usize = 100;
/// What must come to pass comes to pass within this, or the run has failed.
const PATIENCE: Duration = Duration::from_secs(1800);
/// Whoever waits looks so often.
const LOOK: Duration = Duration::from_millis(10);
/// How long an election may take on a machine that has too much to do.
const LEADERLESS: Duration = Duration::from_secs(60);

struct Options {
    agents: usize,
    pods: usize,
    servers: usize,
    idle: Duration,
}

fn main() -> ExitCode {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build();
    let outcome = runtime.map_err(|error| error.to_string()).and_then(|runtime| {
        if words.first().is_some_and(|word| word == server::WORD) {
            return runtime.block_on(server::serve(&words[1..]));
        }
        let options = options(&words)?;
        let figures = run(&options, &runtime)?;
        println!("{figures}");
        Ok(())
    });
    match outcome {
        Ok(()) => ExitCode::SUCCESS,
        Err(words) => {
            eprintln!("simagents: {words}");
            ExitCode::FAILURE
        }
    }
}

fn options(words: &[String]) -> Result<Options, String> {
    let mut options = Options { agents: 500, pods: 5000, servers: 1, idle: Duration::from_secs(10) };
    for pair in words.chunks(2) {
        let [name, value] = pair else { return Err(format!("{} needs a value", pair[0])) };
        let number = value.parse::<usize>().map_err(|_| format!("{value} is no number"))?;
        match name.as_str() {
            "--agents" => options.agents = number,
            "--pods" => options.pods = number,
            "--servers" => options.servers = number,
            "--idle" => options.idle = Duration::from_secs(number as u64),
            _ => return Err(format!("unknown option {name}; there are --agents --pods --servers --idle")),
        }
    }
    Ok(options)
}

/// The whole run; one line of figures.
fn run(options: &Options, runtime: &tokio::runtime::Runtime) -> Result<Value, String> {
    let folder = tempfile::tempdir().map_err(|error| error.to_string())?;
    let mut servers = start_servers(folder.path(), options.servers)?;
    let data = servers[0].plan.data.clone();
    let tally = Arc::new(Tally::default());
    let addresses = Arc::new(servers.iter().map(|server| server.peer().to_string()).collect::<Vec<_>>());
    let wallets = wallets(&data, options.agents)?;
    let began = Instant::now();
    let dials = Arc::new(tokio::sync::Semaphore::new(DIALS));
    for (number, wallet) in wallets.into_iter().enumerate() {
        runtime.spawn(Agent::new(number, wallet, addresses.clone(), tally.clone(), dials.clone()).run());
    }
    wait("all agents to have a session", &tally, || tally.fed.load(Ordering::Relaxed) == options.agents)?;
    let connected = began.elapsed();
    eprintln!("{} agents are connected after {connected:?}", options.agents);
    let connect_bytes = tally.bytes.load(Ordering::Relaxed);

    let before = cpu(&mut servers)?;
    let mut api = client(&servers[0])?;
    let (applied, refused) = apply(&mut api, options.pods)?;
    eprintln!("all is applied");
    let ready = |seen: &Seen| seen.ready.is_some() && !seen.gone;
    wait("all pods to be ready", &tally, || {
        tally.pods.lock().unwrap_or_else(PoisonError::into_inner).values().filter(|seen| ready(seen)).count()
            == options.pods
    })?;
    let work = cpu(&mut servers)? - before;
    eprintln!("all pods are ready, {work:.1} s of CPU of the servers");
    let seen: Vec<Seen> = tally.pods.lock().unwrap_or_else(PoisonError::into_inner).values().cloned().collect();
    let nodes: HashSet<usize> = seen.iter().map(|seen| seen.node).collect();
    let since = |at: fn(&Seen) -> Option<Instant>| {
        let times = seen.iter().filter_map(|seen| Some(at(seen)?.duration_since(*applied.get(&seen.app)?)));
        percentiles(times.collect())
    };
    let (assigned, running) = (since(|seen| Some(seen.assigned)), since(|seen| seen.ready));

    // What was started settles first: frames count only when nobody writes.
    settle(&mut servers, &tally)?;
    let (frames, idle_cpu, idle_from) = (frames(&mut servers)?, cpu(&mut servers)?, Instant::now());
    std::thread::sleep(options.idle);
    let minutes = idle_from.elapsed().as_secs_f64() / 60.0;
    let frames = (self::frames(&mut servers)? - frames) / minutes;
    let idle_cpu = (cpu(&mut servers)? - idle_cpu) / idle_from.elapsed().as_secs_f64();
    let rss: Vec<Value> = metrics(&mut servers)?.into_iter().map(|one| one["rss"].clone()).collect();
    let planners = metrics(&mut servers)?.into_iter().map(|one| one["work"].clone()).collect::<Vec<_>>();

    eprintln!("at rest: {idle_cpu:.3} cores, {frames:.1} frames a minute, resident {rss:?}");
    let broken = tally.broken.load(Ordering::Relaxed);
    let plans: Vec<Plan> = servers.into_iter().map(Server::kill).collect();
    wait("all agents to notice", &tally, || tally.fed.load(Ordering::Relaxed) == 0)?;
    let bytes = tally.bytes.load(Ordering::Relaxed);
    let began = Instant::now();
    // All at once: two of three are needed for a leader.
    let starting: Vec<_> = plans.into_iter().map(|plan| std::thread::spawn(move || Server::start(plan))).collect();
    let servers: Result<Vec<Server>, String> =
        starting.into_iter().map(|one| one.join().map_err(|_| "a server did not start".to_owned())?).collect();
    let mut servers = servers?;
    let up = began.elapsed();
    eprintln!("killed and up again after {up:?}");
    wait("all agents to be back", &tally, || tally.fed.load(Ordering::Relaxed) == options.agents)?;
    let back = began.elapsed();
    let restarts = tally.pods.lock().unwrap_or_else(PoisonError::into_inner).len() - seen.len();
    Ok(json!({
        "agents": options.agents,
        "pods": options.pods,
        "servers": options.servers,
        "debug_build": cfg!(debug_assertions),
        "connected_s": round(connected),
        "connect_bytes": connect_bytes,
        "applies_without_a_leader": refused,
        "nodes_used": nodes.len(),
        "assigned_p50_s": assigned.0,
        "assigned_p99_s": assigned.1,
        "running_p50_s": running.0,
        "running_p99_s": running.1,
        "servers_cpu_s_for_pods": work,
        "idle_frames_per_minute": frames,
        "idle_cores": idle_cpu,
        "rss_bytes": rss,
        "planners": planners,
        "sessions_broken_before_restart": broken,
        "servers_up_again_s": round(up),
        "reconnected_s": round(back),
        "reconnect_bytes": tally.bytes.load(Ordering::Relaxed) - bytes,
        "pods_started_by_restart": restarts,
        "cpu_s_after_restart": cpu(&mut servers)?,
    }))
}

fn round(time: Duration) -> f64 {
    (time.as_secs_f64() * 1000.0).round() / 1000.0
}

/// The median and the 99th of a hundred, in seconds.
fn percentiles(mut times: Vec<Duration>) -> (f64, f64) {
    times.sort_unstable();
    let at = |percent: usize| times.get((times.len() * percent / 100).min(times.len().saturating_sub(1)));
    (at(50).copied().map_or(0.0, round), at(99).copied().map_or(0.0, round))
}

fn wait(what: &str, tally: &Tally, mut done: impl FnMut() -> bool) -> Result<(), String> {
    let began = Instant::now();
    while !done() {
        if began.elapsed() > PATIENCE {
            let words = tally.last_words.lock().unwrap_or_else(PoisonError::into_inner).clone();
            let fed = tally.fed.load(Ordering::Relaxed);
            return Err(format!(
                "waited {PATIENCE:?} for {what}; {fed} agents are connected; the last to break said: {words}"
            ));
        }
        std::thread::sleep(LOOK); // poll
    }
    Ok(())
}

/// The address of this machine, when it has one; nothing is sent.
fn own_address() -> Ipv4Addr {
    let socket = UdpSocket::bind("0.0.0.0:0").and_then(|socket| socket.connect("192.0.2.1:9").map(|()| socket));
    match socket.and_then(|socket| socket.local_addr()) {
        Ok(std::net::SocketAddr::V4(address)) => *address.ip(),
        _ => Ipv4Addr::LOCALHOST,
    }
}

fn free_port(ip: Ipv4Addr) -> Result<u16, String> {
    let listener = TcpListener::bind((ip, 0)).and_then(|listener| listener.local_addr());
    Ok(listener.map_err(|error| error.to_string())?.port())
}

fn start_servers(folder: &Path, count: usize) -> Result<Vec<Server>, String> {
    // A server on the loopback is alone.
    let ip = if count == 1 { Ipv4Addr::LOCALHOST } else { own_address() };
    let mut servers: Vec<Server> = Vec::new();
    for number in 0..count {
        let data = folder.join(format!("server{number}"));
        let join = servers.first().map(|first| (first.cluster.clone(), first.peer().to_string()));
        if let Some(first) = servers.first() {
            let authority = Authority::open(&first.plan.data.join("pki"), "sim").map_err(|error| error.to_string())?;
            let adopted = pki::adopt(&data.join("pki"), authority.cert_pem(), authority.key_pem());
            adopted.map_err(|error| error.to_string())?;
        }
        servers.push(Server::start(Plan { data, ip, api_port: free_port(ip)?, peer_port: free_port(ip)?, join })?);
    }
    Ok(servers)
}

/// Papers for all agents, signed with the cluster's key.
fn wallets(data: &Path, agents: usize) -> Result<Vec<Wallet>, String> {
    let authority = Authority::open(&data.join("pki"), "sim").map_err(|error| error.to_string())?;
    let wallet = |number| {
        let user = format!("system:node:{}", Agent::name(number));
        let (request, key_pem) = pki::request(&user).map_err(|error| error.to_string())?;
        let cert_pem = authority.sign_request(&request, &user, NODES).map_err(|error| error.to_string())?;
        let papers = Papers { cert_pem, key_pem, ca_pem: authority.cert_pem().to_owned() };
        Wallet::new(&papers).map_err(|error| error.to_string())
    };
    (0..agents).map(wallet).collect()
}

fn client(server: &Server) -> Result<Api, String> {
    let file = server.plan.data.join("admin.kubeconfig");
    let text = std::fs::read_to_string(&file).map_err(|error| format!("cannot read {}: {error}", file.display()))?;
    let credentials = Credentials::read(&text).ok_or("the kubeconfig cannot be used")?;
    Ok(Api::new(PathBuf::from("/proc/self/ns/net"), server.api(), credentials).within(Duration::from_secs(60)))
}

/// Deployments with so many pods together; when each was applied, by its name, and how often there was no leader to take one.
fn apply(api: &mut Api, pods: usize) -> Result<(BTreeMap<String, Instant>, usize), String> {
    let (mut applied, mut refused) = (BTreeMap::new(), 0);
    let mut left = pods;
    while left > 0 {
        let replicas = left.min(REPLICAS);
        left -= replicas;
        let name = format!("app{}", applied.len());
        let container = json!({
            "name": "app", "image": "example.com/app:1", "ports": [{"containerPort": 8080}],
            "resources": {"requests": {"cpu": "50m", "memory": "64Mi"}}});
        let deployment = json!({
            "apiVersion": "apps/v1", "kind": "Deployment", "metadata": {"name": name},
            "spec": {
                "replicas": replicas, "selector": {"matchLabels": {"app": name}},
                "template": {"metadata": {"labels": {"app": name}}, "spec": {"containers": [container]}}}});
        let asked = Instant::now();
        applied.insert(name, asked);
        // Without a leader it did not happen, or nobody can tell: whoever waits asks again, and may then find it there.
        let before = refused;
        loop {
            match api.request("POST", "/apis/apps/v1/namespaces/default/deployments", Some(&deployment)) {
                Answered::Acknowledged(_) => break,
                Answered::Refused { code: 409, .. } if refused > before => break,
                Answered::Unknown(reason) if reason.starts_with("503") && asked.elapsed() < LEADERLESS => refused += 1,
                answered => return Err(format!("a Deployment was not taken: {answered:?}")),
            }
        }
    }
    Ok((applied, refused))
}

fn metrics(servers: &mut [Server]) -> Result<Vec<Value>, String> {
    servers.iter_mut().map(Server::metrics).collect()
}

/// CPU seconds of all servers.
fn cpu(servers: &mut [Server]) -> Result<f64, String> {
    Ok(metrics(servers)?.iter().filter_map(|one| one["cpu"].as_f64()).sum())
}

/// Frames in the logs of all servers.
fn frames(servers: &mut [Server]) -> Result<f64, String> {
    Ok(metrics(servers)?.iter().filter_map(|one| one["frames_total"].as_f64()).sum())
}

/// Waits until a whole second passes without a frame, but not for long: a cluster that never rests is a figure too.
fn settle(servers: &mut [Server], tally: &Tally) -> Result<(), String> {
    let began = Instant::now();
    let (mut last, mut since) = (frames(servers)?, Instant::now());
    wait("the servers to settle", tally, || {
        if let Ok(now) = frames(servers)
            && now > last
        {
            (last, since) = (now, Instant::now());
        }
        since.elapsed() > Duration::from_secs(1) || began.elapsed() > Duration::from_secs(20)
    })
}
