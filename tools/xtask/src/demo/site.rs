//! Machines as network namespaces on one switch, for the demo of a cluster. Nothing of the host's network is touched.
//!
//! Each namespace is held by a shell that reads from us. When the pipe ends the shell takes its machine down: that is how we
//! take it down ourselves, and what happens too when we are killed.

use std::io::{BufRead as _, BufReader, Write as _};
use std::net::Ipv4Addr;
use std::os::fd::AsFd as _;
use std::os::unix::process::CommandExt as _;
use std::path::{Path, PathBuf};
use std::process::{Child, ChildStdin, Command, Stdio};
use std::time::{Duration, Instant};

/// So many machines at most: each is a whole system, and their addresses end in one digit.
pub const MOST: u8 = 9;

/// The switch's own address, which leads nowhere: an address of its own is what a default route needs.
const ROUTER: Ipv4Addr = Ipv4Addr::new(10, 99, 0, 254);

/// Keeps a namespace until its standard input ends.
const SWITCH: &str = "ip link set lo up && echo ready && exec cat";

/// The same for a machine: $1 is the program, $2 the machine's folder, $3 its run folder. What could not be taken down keeps
/// its folders: there may be mounts in them. The last machine removes the folders of the site.
const MACHINE: &str = r#"ip link set lo up && echo ready && cat
if test -e "$2/data/up.json"; then
  "$1" down --data-dir "$2/data" --timeout 10 >"$2/down.log" 2>&1 </dev/null || exit 1
fi
rm -rf "$2" "$3" || exit 1
rmdir "${2%/*}" "${3%/*}" 2>/dev/null || true"#;

/// How long a machine gets to go down: its program 15 s, its pods 10 s, and some.
const DOWN: Duration = Duration::from_secs(60);

/// Takes the calling thread into a network namespace.
///
/// # Errors
/// The file is gone, or nobody but root may.
pub fn enter(namespace: &Path) -> std::io::Result<()> {
    let namespace = std::fs::File::open(namespace)?;
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?)
}

/// A network namespace, by the shell that keeps it.
struct Namespace {
    holder: Child,
    input: Option<ChildStdin>,
}

impl Namespace {
    fn new(script: &str, arguments: &[&Path]) -> Result<Self, String> {
        let bad = |error: std::io::Error| format!("cannot make a network namespace: {error}\nhint: install util-linux");
        let mut command = Command::new("unshare");
        command.args(["--net", "sh", "-c", script, "sh"]).args(arguments);
        // Ctrl-C goes to us alone.
        command.process_group(0).stdin(Stdio::piped()).stdout(Stdio::piped());
        let mut holder = without_settings(&mut command).spawn().map_err(bad)?;
        let input = holder.stdin.take();
        let mut line = String::new();
        if let Some(output) = holder.stdout.take() {
            BufReader::new(output).read_line(&mut line).map_err(bad)?;
        }
        let namespace = Self { holder, input };
        if line != "ready\n" {
            return Err("a network namespace cannot be made\nhint: root and iproute2 are needed".to_owned());
        }
        Ok(namespace)
    }

    fn path(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// A command in it.
    fn command(&self, program: &Path) -> Command {
        let mut command = Command::new("nsenter");
        command.arg(format!("--net={}", self.path().display())).arg("--").arg(program).stdin(Stdio::null());
        command
    }

    /// Lines for `ip`; all must work.
    fn ip(&self, lines: &str) -> Result<(), String> {
        let bad = |error: std::io::Error| format!("cannot run ip: {error}\nhint: install iproute2");
        let mut command = self.command(Path::new("ip"));
        command.args(["-batch", "-"]).stdin(Stdio::piped()).stdout(Stdio::null()).stderr(Stdio::piped());
        let mut child = command.spawn().map_err(bad)?;
        if let Some(mut input) = child.stdin.take() {
            input.write_all(lines.as_bytes()).map_err(bad)?;
        }
        let output = child.wait_with_output().map_err(bad)?;
        if output.status.success() {
            return Ok(());
        }
        Err(format!("ip refuses\n{lines}{}", String::from_utf8_lossy(&output.stderr)))
    }

    /// Waits for the shell, which has been told to end; whether it did all it had to.
    fn ended(&mut self) -> bool {
        let until = Instant::now() + DOWN;
        while Instant::now() < until {
            if let Ok(Some(status)) = self.holder.try_wait() {
                return status.success();
            }
            std::thread::sleep(Duration::from_millis(10));
        }
        false
    }
}

impl Drop for Namespace {
    fn drop(&mut self) {
        // A machine's shell has ended by now, unless it hangs; the switch's has nothing to do at its end.
        let _ = self.holder.kill();
        let _ = self.holder.wait();
    }
}

/// What the user has set for a cluster of their own is not meant for these machines.
fn without_settings(command: &mut Command) -> &mut Command {
    for (name, _) in std::env::vars_os().filter(|(name, _)| name.to_string_lossy().starts_with("CORACLE_")) {
        command.env_remove(name);
    }
    command
}

/// One machine: a namespace with an address, folders, and the program once it is started.
pub struct Machine {
    /// `m1`, `m2`, ...
    pub name: String,
    /// Where the others reach it.
    pub address: Ipv4Addr,
    namespace: Namespace,
    coracle: PathBuf,
    folder: PathBuf,
    run: PathBuf,
    cgroup: String,
    program: Option<Child>,
}

impl Machine {
    /// The file of its network namespace.
    pub fn namespace(&self) -> PathBuf {
        self.namespace.path()
    }

    /// The folder of everything it keeps; goes with it.
    pub fn folder(&self) -> &Path {
        &self.folder
    }

    /// The data folder.
    pub fn data(&self) -> PathBuf {
        self.folder.join("data")
    }

    /// A verb of the program, run on this machine.
    pub fn coracle(&self, words: &[&str]) -> Command {
        let mut command = self.namespace.command(&self.coracle);
        command.args(words).arg("--data-dir").arg(self.data());
        without_settings(&mut command);
        command
    }

    /// Starts the program without waiting for it: `up`, or `join` and what it needs.
    ///
    /// # Errors
    /// In words.
    pub fn start(&mut self, words: &[&str]) -> Result<(), String> {
        let path = self.folder.join("log");
        let bad = |error: std::io::Error| format!("cannot start {}: {error}", self.name);
        let log = std::fs::File::create(&path).map_err(bad)?;
        let mut command = self.coracle(words);
        command.arg("--run-dir").arg(&self.run);
        command.args(["--node-name", &self.name, "--node-ip", &self.address.to_string(), "--cgroup", &self.cgroup]);
        // The smallest log: three segments are set aside on the disk of each server.
        command.args(["--log-segment-mb", "16"]);
        command.process_group(0).stdout(log.try_clone().map_err(bad)?).stderr(log);
        self.program = Some(command.spawn().map_err(bad)?);
        Ok(())
    }

    /// What the program said so far.
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.folder.join("log")).unwrap_or_default()
    }

    /// Whether the program said that it is ready.
    pub fn is_ready(&self) -> bool {
        self.log().lines().any(|line| line == "ready")
    }

    /// How the program ended, if it did.
    pub fn ended(&mut self) -> Option<String> {
        let status = self.program.as_mut()?.try_wait().ok()??;
        Some(status.to_string())
    }

    /// Tells it to go down, without waiting.
    fn release(&mut self) {
        // Too young to be found by `down`, and nothing is made yet.
        let unknown = !self.data().join("up.json").exists();
        if let Some(program) = self.program.as_mut().filter(|_| unknown) {
            let _ = program.kill();
            let _ = program.wait();
        }
        self.namespace.input = None;
    }

    /// Waits until it is down.
    fn gone(mut self) -> Result<(), String> {
        let down = self.namespace.ended();
        if let Some(program) = &mut self.program {
            let _ = program.kill();
            let _ = program.wait();
        }
        if down {
            return Ok(());
        }
        let said = std::fs::read_to_string(self.folder.join("down.log")).unwrap_or_default();
        Err(format!("{} could not be taken down:\n{said}its log:\n{}", self.name, tail(&self.log(), 20)))
    }
}

/// The machines and the switch between them.
pub struct Site {
    /// In the order of their addresses: 10.99.0.1, 10.99.0.2, ...
    pub machines: Vec<Machine>,
    /// Goes after the machines.
    switch: Namespace,
    folders: [PathBuf; 2],
}

impl Site {
    /// So many machines, joined and with nothing running on them, with their data in a new folder below `parent`.
    ///
    /// # Errors
    /// In words; nothing is left behind.
    pub fn new(count: u8, coracle: &Path, parent: &Path) -> Result<Self, String> {
        let name = format!("coracle-demo-{}", std::process::id());
        let bad = |error: std::io::Error| format!("cannot create {name} in {}: {error}", parent.display());
        std::fs::create_dir_all(parent).map_err(bad)?;
        // `down` must find the same folder from wherever it is run.
        let parent = parent.canonicalize().map_err(bad)?;
        // Sockets are in the run folder, whose path must be short.
        let folders = [parent.join(&name), Path::new("/run").join(&name)];
        let switch = Namespace::new(SWITCH, &[])?;
        switch.ip(&format!("link add br0 type bridge\nlink set br0 up\naddr add {ROUTER}/24 dev br0\n"))?;
        std::fs::create_dir(&folders[0]).map_err(bad)?;
        let mut site = Self { machines: Vec::new(), switch, folders };
        for number in 1..=count {
            site.add(number, coracle)?;
        }
        Ok(site)
    }

    fn add(&mut self, number: u8, coracle: &Path) -> Result<(), String> {
        let name = format!("m{number}");
        let [folder, run] = self.folders.each_ref().map(|parent| parent.join(&name));
        let namespace = Namespace::new(MACHINE, &[coracle, &folder, &run])?;
        std::fs::create_dir(&folder).map_err(|error| format!("cannot create {}: {error}", folder.display()))?;
        let address = Ipv4Addr::new(10, 99, 0, number);
        let inside =
            format!("addr add {address}/24 brd + dev eth0\nlink set eth0 up\nroute add default via {ROUTER}\n");
        let cable = format!(
            "link add p{number} type veth peer name eth0 netns {}\nlink set p{number} master br0 up\n",
            namespace.holder.id()
        );
        let cgroup = format!("coracle-demo-{}-{number}", std::process::id());
        let coracle = coracle.to_path_buf();
        let machine = Machine { name, address, namespace, coracle, folder, run, cgroup, program: None };
        // From here on it is taken down with the others.
        self.machines.push(machine);
        self.switch.ip(&cable)?;
        self.machines.last().map_or(Ok(()), |machine| machine.namespace.ip(&inside))
    }

    /// Takes all machines down, at the same time, and removes what they had.
    ///
    /// # Errors
    /// What could not be taken down, in words.
    pub fn take_down(&mut self) -> Result<(), String> {
        self.machines.iter_mut().for_each(Machine::release);
        let problems: Vec<String> = self.machines.drain(..).filter_map(|machine| machine.gone().err()).collect();
        if !problems.is_empty() {
            return Err(problems.join("\n"));
        }
        for folder in &self.folders {
            // Empty by now: the machines have removed their own.
            match std::fs::remove_dir(folder) {
                Err(error) if error.kind() != std::io::ErrorKind::NotFound => {
                    return Err(format!("cannot remove {}: {error}", folder.display()));
                }
                _ => {}
            }
        }
        Ok(())
    }
}

impl Drop for Site {
    fn drop(&mut self) {
        if let Err(error) = self.take_down() {
            eprintln!("{error}");
        }
    }
}

/// The last lines of a text.
pub fn tail(text: &str, lines: usize) -> String {
    let all: Vec<&str> = text.lines().collect();
    all[all.len().saturating_sub(lines)..].join("\n")
}
