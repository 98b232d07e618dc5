//! Several virtual machines on one bridge, and us beside them: a namespace of its own, with an address every machine reaches.
//! Nothing there leads anywhere else.

use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use super::image::Disks;
use super::{Hardware, Vm, accelerator};
use crate::machine::{Said, enter, hold_namespace, program};

/// Our own address on the bridge, and the machines' way out.
pub const WITNESS: Ipv4Addr = Ipv4Addr::new(10, 77, 0, 254);
/// What is waited for: without hardware support, several machines on a busy one are slow.
const PATIENCE: Duration = Duration::from_secs(240);

/// The address of a machine. They count from 1.
#[must_use]
pub fn address(number: usize) -> Ipv4Addr {
    Ipv4Addr::new(10, 77, 0, u8::try_from(number).expect("few machines"))
}

/// The address of its card.
pub(super) fn mac(number: usize) -> String {
    format!("52:54:00:77:00:{number:02x}")
}

/// Machines `vm1`, `vm2`, ...
pub struct Vms {
    // They go before the network they stand on and the files they read.
    machines: Vec<Vm>,
    bridge: Child,
    disks: Disks,
    folder: tempfile::TempDir,
}

impl Vms {
    /// So many machines, booted at the same time.
    ///
    /// # Panics
    /// One does not come up.
    #[must_use]
    pub fn boot(count: usize, disks: Disks) -> Self {
        let folder = tempfile::Builder::new().prefix("coracle-vms-").tempdir().expect("a temporary folder");
        let mut site = Self { machines: Vec::new(), bridge: hold_namespace(), disks, folder };
        let mut script =
            format!("ip link add br0 type bridge && ip addr add {WITNESS}/24 dev br0 && ip link set br0 up");
        for number in 1..=count {
            script += &format!(" && ip tuntap add t{number} mode tap && ip link set t{number} master br0 up");
        }
        site.inside("sh", &["-ec", &script]);
        let accelerator = accelerator(&site.disks);
        for number in 1..=count {
            let layer = site.folder.path().join(format!("vm{number}.qcow2"));
            site.disks.layer(&layer);
            let hardware = Hardware {
                memory_mb: 640,
                processors: 1,
                own: Some((format!("vm{number}"), layer)),
                card: Some((site.namespace(), format!("t{number}"), mac(number))),
            };
            site.machines.push(Vm::start(&site.disks, hardware, accelerator));
        }
        site.machines.iter_mut().for_each(Vm::greeted);
        site
    }

    /// A machine.
    pub fn at(&mut self, number: usize) -> &mut Vm {
        &mut self.machines[number - 1]
    }

    /// Starts a machine again that was ended, and waits for its systemd.
    ///
    /// # Panics
    /// It does not come up.
    pub fn power_on(&mut self, number: usize) {
        let vm = &mut self.machines[number - 1];
        vm.restart(&self.disks);
        vm.greeted();
    }

    /// The file of the namespace we stand in.
    #[must_use]
    pub fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.bridge.id()).into()
    }

    /// Runs a program beside the machines; its output.
    ///
    /// # Panics
    /// It fails.
    pub fn inside(&self, program: &str, words: &[&str]) -> String {
        let said = self.try_inside(program, words);
        assert_eq!(said.code, 0, "{program} {words:?}:\n{}{}", said.out, said.err);
        said.out
    }

    fn try_inside(&self, program: &str, words: &[&str]) -> Said {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.namespace().display())).arg("--").arg(program).args(words);
        Said::of(&command.stdin(Stdio::null()).output().expect("nsenter (util-linux)"))
    }

    /// Runs something on this thread's side of the bridge.
    pub fn beside<T: Send + 'static>(&self, work: impl FnOnce() -> T + Send + 'static) -> std::thread::JoinHandle<T> {
        let namespace = self.namespace();
        std::thread::spawn(move || {
            enter(&namespace).expect("root");
            work()
        })
    }

    /// Makes one cluster of all machines, three servers of them, each by its unit.
    ///
    /// # Panics
    /// It does not come to be.
    pub fn form(&mut self) {
        let count = self.machines.len();
        let unit = "/etc/systemd/system/coracle.service.d";
        let small = "[Service]\nEnvironment=CORACLE_LOG_SEGMENT_MB=16\n";
        let first = self.at(1);
        first.must(&format!(
            "mkdir -p {unit} && printf '{small}' >{unit}/machine.conf && systemctl enable --now coracle"
        ));
        first.wait("the first server's kubeconfig", |vm| vm.sh("coracle get nodes").out.contains(" Ready"));
        let mut token = String::new();
        first.wait("a token", |vm| {
            token = vm.sh("coracle token create --server").out;
            !token.is_empty()
        });
        for number in 2..=count {
            let server = if number <= 3 { " --server" } else { "" };
            let join = format!("coracle join https://{}:6443 --token {}{server}", address(1), token.trim());
            let dropin = format!("{small}ExecStart=\nExecStart=/usr/local/bin/{join}\n");
            self.at(number).must(&format!(
                "mkdir -p {unit} && printf '{dropin}' >{unit}/machine.conf && systemctl enable --now coracle"
            ));
        }
        for number in 1..=count.min(3) {
            self.know(number);
        }
        self.wait(&format!("{count} nodes to be ready"), |site| site.ready_nodes(1).len() == count);
        self.wait("three servers to vote", |site| {
            let status = site.at(1).sh("coracle status --servers -o json");
            let servers: Value = serde_json::from_str(&status.out).unwrap_or_default();
            let voters = servers.as_array().into_iter().flatten().filter(|server| server["voter"] == true).count();
            voters >= 3.min(count)
        });
    }

    /// Takes a server's kubeconfig, so that our own program can ask it: one inside takes a second to say anything.
    fn know(&mut self, number: usize) {
        let mut text = String::new();
        self.at(number).wait("a server's kubeconfig", |vm| {
            text = vm.sh("coracle kubeconfig --raw").out;
            text.contains("server:")
        });
        let text: Vec<String> = text
            .lines()
            .map(|line| match line.split_once("server:") {
                Some((indent, _)) => format!("{indent}server: https://{}:6443", address(number)),
                None => line.to_owned(),
            })
            .collect();
        std::fs::write(self.kubeconfig(number), text.join("\n")).expect("a file");
    }

    fn kubeconfig(&self, number: usize) -> PathBuf {
        self.folder.path().join(format!("vm{number}.kubeconfig"))
    }

    /// Asks the server of a machine from outside.
    #[must_use]
    pub fn try_coracle(&self, number: usize, words: &[&str]) -> Said {
        let (coracle, kubeconfig) = (program("coracle"), self.kubeconfig(number));
        let text = |path: &Path| path.to_str().expect("a path").to_owned();
        let (coracle, kubeconfig) = (text(&coracle), text(&kubeconfig));
        let begin = ["60", &coracle, "--kubeconfig", &kubeconfig];
        self.try_inside("timeout", &[&begin[..], words].concat())
    }

    /// The same; it must work.
    ///
    /// # Panics
    /// It fails.
    pub fn coracle(&self, number: usize, words: &[&str]) -> String {
        let said = self.try_coracle(number, words);
        assert_eq!(said.code, 0, "coracle {words:?} at vm{number}:\n{}{}", said.out, said.err);
        said.out
    }

    /// Applies a manifest, again when there was no leader for a moment: on a slow machine every election is one.
    ///
    /// # Panics
    /// It is not taken.
    pub fn apply(&mut self, number: usize, yaml: &str) {
        self.wait("a manifest to be taken", |site| site.try_apply(number, yaml));
    }

    /// Applies a manifest; whether it was taken.
    #[must_use]
    pub fn try_apply(&self, number: usize, yaml: &str) -> bool {
        self.try_coracle(number, &["apply", "-f", self.manifest(yaml).to_str().expect("a path")]).code == 0
    }

    fn manifest(&self, yaml: &str) -> PathBuf {
        let file = self.folder.path().join("manifest.yaml");
        std::fs::write(&file, yaml).expect("a file");
        file
    }

    /// `coracle get ... -o json`; null when it fails.
    #[must_use]
    pub fn get(&self, number: usize, what: &str) -> Value {
        let said = self.try_coracle(number, &["get", what, "-o", "json"]);
        serde_json::from_str(&said.out).unwrap_or(Value::Null)
    }

    /// The nodes that are ready, as one server sees it.
    #[must_use]
    pub fn ready_nodes(&self, seen_by: usize) -> Vec<String> {
        let nodes = self.get(seen_by, "nodes");
        let ready = |node: &&Value| {
            let conditions = node["status"]["conditions"].as_array();
            conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True")
        };
        let items = nodes["items"].as_array().into_iter().flatten();
        items.filter(ready).map(|node| node["metadata"]["name"].as_str().unwrap_or_default().to_owned()).collect()
    }

    /// Polls until `done`; how long that took.
    ///
    /// # Panics
    /// It takes too long.
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) -> Duration {
        let started = Instant::now();
        while !done(self) {
            assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
            std::thread::sleep(Duration::from_millis(50)); // poll
        }
        started.elapsed()
    }
}

impl Drop for Vms {
    fn drop(&mut self) {
        if std::thread::panicking() && self.kubeconfig(1).exists() {
            for number in 1..=self.machines.len().min(3) {
                let said = self.try_coracle(number, &["get", "nodes,pods,services", "-o", "wide"]);
                println!("--- vm{number} sees ---\n{}{}", said.out, said.err);
            }
        }
        self.machines.clear();
        let _ = self.bridge.kill();
        let _ = self.bridge.wait();
    }
}
