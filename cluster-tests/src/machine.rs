//! A machine for tests: a network namespace of its own, folders of its own, names of its own, and the real program in it.
//! Several can stand beside each other; each takes everything of its own down when it goes.

use std::io::{BufRead as _, BufReader, Read as _, Write as _};
use std::os::fd::AsFd as _;
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Output, Stdio};
use std::sync::atomic::{AtomicU32, Ordering};
use std::time::{Duration, Instant};

use serde_json::Value;

static NEXT: AtomicU32 = AtomicU32::new(1);

/// One machine.
pub struct Machine {
    dir: tempfile::TempDir,
    holder: Child,
    up: Option<Child>,
    name: String,
    number: u32,
    options: Vec<String>,
    data: Option<PathBuf>,
    wrapper: Vec<String>,
    /// The node's name.
    node: String,
    /// `up`, or how it joins.
    verb: Vec<String>,
    /// The program; `None`: that of this workspace.
    program: Option<PathBuf>,
}

/// What a command said.
#[derive(Debug)]
pub struct Said {
    /// Exit code.
    pub code: i32,
    /// Standard output.
    pub out: String,
    /// Standard error.
    pub err: String,
}

impl Said {
    /// The words of a program that has ended.
    pub(crate) fn of(output: &Output) -> Self {
        Self {
            code: output.status.code().unwrap_or(-1),
            out: String::from_utf8_lossy(&output.stdout).into_owned(),
            err: String::from_utf8_lossy(&output.stderr).into_owned(),
        }
    }
}

/// The folder cargo puts programs in.
#[must_use]
pub fn programs() -> PathBuf {
    let here = std::env::current_exe().expect("a test has a path");
    let folder = here.parent().expect("a test is in a folder");
    // Tests are in `deps`, benches and programs beside it.
    let folder = if folder.ends_with("deps") { folder.parent().unwrap_or(folder) } else { folder };
    folder.to_path_buf()
}

/// A program of this workspace; `cargo xtask test` builds them all first.
///
/// # Panics
/// It has not been built.
#[must_use]
pub fn program(name: &str) -> PathBuf {
    let path = programs().join(name);
    assert!(
        path.exists(),
        "{} is missing: run `cargo build --workspace --bins` first, or `cargo xtask test`",
        path.display()
    );
    path
}

/// The folder of the workspace.
#[must_use]
pub fn workspace() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().map(Path::to_path_buf).unwrap_or_default()
}

/// Whether a foreign program is on the PATH; if not, says that the test is skipped.
#[must_use]
pub fn have(program: &str) -> bool {
    let found = std::env::var_os("PATH")
        .is_some_and(|path| std::env::split_paths(&path).any(|dir| dir.join(program).is_file()));
    if !found {
        println!("SKIP: {program} is not installed");
    }
    found
}

/// Takes the calling thread into a network namespace.
///
/// # Errors
/// The file is gone, or nobody but root may.
pub fn enter(namespace: &Path) -> std::io::Result<()> {
    let namespace = std::fs::File::open(namespace)?;
    let kind = Some(rustix::thread::LinkNameSpaceType::Network);
    Ok(rustix::thread::move_into_link_name_space(namespace.as_fd(), kind)?)
}

/// A process that keeps a new network namespace with a loopback. It reads from us: should the test be killed, it ends too.
pub(crate) fn hold_namespace() -> Child {
    let mut holder = Command::new("unshare")
        .args(["--net", "sh", "-c", "ip link set lo up && echo ready && exec cat"])
        .stdin(Stdio::piped())
        .stdout(Stdio::piped())
        .spawn()
        .expect("unshare (util-linux) and root");
    let mut line = String::new();
    let mut out = BufReader::new(holder.stdout.take().expect("piped"));
    out.read_line(&mut line).expect("the namespace answers");
    assert_eq!(line, "ready\n", "a network namespace cannot be made: root and iproute2 are needed");
    holder
}

impl Machine {
    /// A machine that is not started yet.
    ///
    /// # Panics
    /// Namespaces cannot be made: not root.
    #[must_use]
    pub fn new() -> Self {
        let number = NEXT.fetch_add(1, Ordering::Relaxed);
        let name = format!("ct{}-{number}", std::process::id());
        let dir = tempfile::Builder::new().prefix("coracle-").tempdir().expect("a temporary folder");
        Self {
            dir,
            holder: hold_namespace(),
            up: None,
            name,
            number,
            options: Vec::new(),
            data: None,
            wrapper: Vec::new(),
            node: "node1".to_owned(),
            verb: vec!["up".to_owned()],
            program: None,
        }
    }

    /// Another name than `node1`.
    #[must_use]
    pub fn named(mut self, node: &str) -> Self {
        node.clone_into(&mut self.node);
        self
    }

    /// The node's name.
    #[must_use]
    pub fn node(&self) -> &str {
        &self.node
    }

    /// Runs another program in place of this workspace's from its next start and its next verb on: that of another release.
    pub fn runs(&mut self, program: Option<&Path>) -> &mut Self {
        self.program = program.map(Path::to_path_buf);
        self
    }

    fn coracle_program(&self) -> PathBuf {
        self.program.clone().unwrap_or_else(|| program("coracle"))
    }

    /// Starts with these words from now on: `up`, or `join` and what it needs.
    pub fn starts_with(&mut self, words: &[&str]) -> &mut Self {
        self.verb = words.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// More flags, for the next start.
    pub fn set_options(&mut self, options: &[&str]) -> &mut Self {
        self.options = options.iter().map(|option| (*option).to_owned()).collect();
        self
    }

    /// One flag with its value, for the next start, in place of the one there is.
    pub fn set_flag(&mut self, flag: &str, value: &str) -> &mut Self {
        match self.options.iter().position(|option| option == flag) {
            Some(place) => value.clone_into(&mut self.options[place + 1]),
            None => self.options.extend([flag.to_owned(), value.to_owned()]),
        }
        self
    }

    /// The process that holds the namespace.
    #[must_use]
    pub fn holder(&self) -> u32 {
        self.holder.id()
    }

    /// More flags for `coracle up`.
    #[must_use]
    pub fn with(mut self, options: &[&str]) -> Self {
        self.options = options.iter().map(|option| (*option).to_owned()).collect();
        self
    }

    /// The data folder somewhere else: on a disk of its own.
    #[must_use]
    pub fn data_at(mut self, folder: &Path) -> Self {
        self.data = Some(folder.to_path_buf());
        self
    }

    /// The same for a machine that has no data yet.
    pub(crate) fn set_data(&mut self, folder: &Path) {
        self.data = Some(folder.to_path_buf());
    }

    /// A new network namespace in place of the old one: no links, addresses, routes, tables. Nothing may run.
    pub(crate) fn renew_namespace(&mut self) {
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        self.holder = hold_namespace();
    }

    /// Nothing runs any more, and nothing has to be taken down when this goes.
    pub(crate) fn forget(&mut self) {
        let _ = std::fs::remove_file(self.data().join("up.json"));
    }

    /// From now on `coracle up` is started by this program, given with its arguments: one that takes something away first.
    pub fn under(&mut self, wrapper: &[&str]) -> &mut Self {
        self.wrapper = wrapper.iter().map(|word| (*word).to_owned()).collect();
        self
    }

    /// The folder of everything of this machine.
    #[must_use]
    pub fn folder(&self) -> &Path {
        self.dir.path()
    }

    /// Runs some of the test in this machine's network.
    ///
    /// # Panics
    /// The network cannot be entered, or `work` panics.
    pub fn inside<T: Send>(&self, work: impl FnOnce() -> T + Send) -> T {
        let namespace = self.namespace();
        std::thread::scope(|scope| {
            let inside = scope.spawn(|| {
                enter(&namespace).expect("root");
                work()
            });
            inside.join().expect("the work is done")
        })
    }

    /// The data folder.
    #[must_use]
    pub fn data(&self) -> PathBuf {
        self.data.clone().unwrap_or_else(|| self.dir.path().join("data"))
    }

    /// The run folder.
    #[must_use]
    pub fn run(&self) -> PathBuf {
        self.dir.path().join("run")
    }

    /// The file of its network namespace.
    #[must_use]
    pub fn namespace(&self) -> PathBuf {
        format!("/proc/{}/ns/net", self.holder.id()).into()
    }

    /// What `coracle up` said so far.
    #[must_use]
    pub fn log(&self) -> String {
        std::fs::read_to_string(self.dir.path().join("up.log")).unwrap_or_default()
    }

    /// The name of its cgroup.
    #[must_use]
    pub fn cgroup(&self) -> String {
        format!("coracle-{}", self.name)
    }

    /// A command that runs on this machine.
    #[must_use]
    pub fn command(&self, program: impl AsRef<Path>) -> Command {
        self.commands()(program.as_ref())
    }

    /// Makes commands that run on this machine; for threads that run beside the test.
    pub fn commands(&self) -> impl Fn(&Path) -> Command + Send + use<> {
        let namespace = format!("--net={}", self.namespace().display());
        let (home, data) = (self.dir.path().to_owned(), self.data());
        move |program| {
            let mut command = Command::new("nsenter");
            command.args([namespace.as_str(), "--"]).arg(program);
            command.env("CORACLE_DATA_DIR", &data).env("KUBECONFIG", data.join("admin.kubeconfig"));
            command.env("HOME", &home).stdin(Stdio::null());
            command
        }
    }

    /// Starts `coracle up` without waiting for it.
    pub fn start(&mut self) -> &mut Self {
        let log =
            std::fs::OpenOptions::new().create(true).append(true).open(self.dir.path().join("up.log")).expect("a log");
        let coracle = self.coracle_program();
        let mut command = match self.wrapper.split_first() {
            Some((first, others)) => {
                let mut command = self.command(first);
                command.args(others).arg(coracle);
                command
            }
            None => self.command(coracle),
        };
        command.args(&self.verb).arg("--run-dir").arg(self.run());
        command.args(["--node-name", &self.node, "--bridge", &format!("ct{}", self.number), "--table", "coracle"]);
        command.args(["--cgroup", &self.cgroup()]).args(&self.options);
        command.stdout(log.try_clone().expect("a log")).stderr(log);
        self.up = Some(command.spawn().expect("coracle up"));
        self
    }

    /// Starts and waits until it says that it is ready.
    ///
    /// # Panics
    /// It ends, or takes too long.
    pub fn up(&mut self) -> &mut Self {
        let before = self.log().matches("\nready\n").count();
        self.start();
        self.wait("`coracle up` to be ready", |machine| {
            let ended = machine.up.as_mut().and_then(|up| up.try_wait().ok().flatten());
            assert!(ended.is_none(), "`coracle up` ended ({ended:?}):\n{}", machine.log());
            machine.log().matches("\nready\n").count() > before
        });
        self
    }

    /// The process of `coracle up`.
    ///
    /// # Panics
    /// It does not run.
    #[must_use]
    pub fn pid(&self) -> u32 {
        self.up.as_ref().expect("`coracle up` runs").id()
    }

    /// Waits until it says that it is ready, after `start`.
    ///
    /// # Panics
    /// It ends, or takes too long.
    pub fn await_ready(&mut self, before: usize) {
        self.wait("the program to be ready", |machine| {
            let ended = machine.up.as_mut().and_then(|up| up.try_wait().ok().flatten());
            assert!(ended.is_none(), "it ended ({ended:?}):\n{}", machine.log());
            machine.readies() > before
        });
    }

    /// How often it has said that it is ready.
    #[must_use]
    pub fn readies(&self) -> usize {
        self.log().matches("ready\n").count()
    }

    /// Stops the program's process where it is, or lets it go on.
    ///
    /// # Panics
    /// It does not run.
    pub fn freeze(&self, frozen: bool) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).expect("a pid")).expect("a pid");
        let signal = if frozen { rustix::process::Signal::STOP } else { rustix::process::Signal::CONT };
        rustix::process::kill_process(pid, signal).expect("a signal");
    }

    /// Asks `coracle up` to stop, as a service manager does, and waits until it has. The pods run on.
    ///
    /// # Panics
    /// It does not run, or does not end.
    pub fn stop(&mut self) {
        let pid = rustix::process::Pid::from_raw(i32::try_from(self.pid()).expect("a pid")).expect("a pid");
        rustix::process::kill_process(pid, rustix::process::Signal::TERM).expect("a signal");
        let code = self.ended();
        assert_eq!(code, 0, "it stopped with {code}:\n{}", tail(&self.log()));
    }

    /// `kill -9` of `coracle up`.
    pub fn kill(&mut self) {
        if let Some(mut up) = self.up.take() {
            let _ = up.kill();
            let _ = up.wait();
        }
    }

    /// Waits for `coracle up` to end by itself; its exit code.
    ///
    /// # Panics
    /// It does not end.
    pub fn ended(&mut self) -> i32 {
        let mut up = self.up.take().expect("`coracle up` runs");
        let until = Instant::now() + Duration::from_secs(30);
        loop {
            if let Ok(Some(status)) = up.try_wait() {
                return status.code().unwrap_or(-1);
            }
            assert!(Instant::now() < until, "`coracle up` does not end:\n{}", self.log());
            std::thread::sleep(Duration::from_millis(10));
        }
    }

    /// Runs a verb of the program; its words.
    pub fn try_coracle(&self, words: &[&str]) -> Said {
        let mut command = self.command(self.coracle_program());
        command.args(words).current_dir(workspace());
        Said::of(&command.output().expect("coracle"))
    }

    /// Runs a verb that must work; its standard output.
    ///
    /// # Panics
    /// It fails.
    #[must_use]
    pub fn coracle(&self, words: &[&str]) -> String {
        let said = self.try_coracle(words);
        assert_eq!(said.code, 0, "coracle {words:?}:\n{}{}\n--- up ---\n{}", said.out, said.err, tail(&self.log()));
        said.out
    }

    /// Applies a document from standard input.
    ///
    /// # Panics
    /// It fails.
    pub fn apply(&self, yaml: &str) -> String {
        let said = self.try_apply(yaml);
        assert_eq!(said.code, 0, "apply:\n{}{}", said.out, said.err);
        said.out
    }

    /// Applies a document from standard input.
    ///
    /// # Panics
    /// The program cannot be run.
    pub fn try_apply(&self, yaml: &str) -> Said {
        let mut command = self.command(self.coracle_program());
        command.args(["apply", "-f", "-"]).stdin(Stdio::piped()).stdout(Stdio::piped()).stderr(Stdio::piped());
        let mut child = command.spawn().expect("coracle apply");
        child.stdin.take().expect("piped").write_all(yaml.as_bytes()).expect("a pipe");
        Said::of(&child.wait_with_output().expect("coracle apply"))
    }

    /// `coracle get ... -o json`; null when it fails.
    #[must_use]
    pub fn get(&self, what: &[&str]) -> Value {
        let said = self.try_coracle(&[&["get", "-o", "json"], what].concat());
        serde_json::from_str(&said.out).unwrap_or(Value::Null)
    }

    /// Runs a program on the machine; its words.
    ///
    /// # Panics
    /// It cannot be run.
    pub fn sh(&self, script: &str) -> Said {
        Said::of(&self.command("sh").args(["-c", script]).output().expect("sh"))
    }

    /// One HTTP GET from the machine: the body, when the answer is a 200.
    #[must_use]
    pub fn http(&self, address: &str, path: &str) -> Option<String> {
        let (host, port) = address.split_once(':')?;
        // Bash can open sockets by itself, so that no client has to be installed.
        let script = format!(
            "exec 3<>/dev/tcp/{host}/{port}; printf 'GET {path} HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n' >&3; cat <&3"
        );
        let output = self.command("bash").args(["-c", &script]).output().ok()?;
        let text = String::from_utf8_lossy(&output.stdout).into_owned();
        let (head, body) = text.split_once("\r\n\r\n")?;
        (head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.0 200")).then(|| body.to_owned())
    }

    /// Builds the demo image as a layout.
    ///
    /// # Panics
    /// It cannot be built.
    pub fn build_hello(&self, layout: &Path) {
        let built = Command::new(program("example-images")).arg("hello").arg(layout).output().expect("example-images");
        assert!(built.status.success(), "{}", String::from_utf8_lossy(&built.stderr));
    }

    /// Imports the demo image; builds it once a test process.
    ///
    /// # Panics
    /// It cannot be built or imported.
    pub fn import_hello(&self) {
        let layout = self.dir.path().join("hello.image");
        self.build_hello(&layout);
        let _ = self.coracle(&["image", "import", &layout.display().to_string()]);
    }

    /// Polls until `done`.
    ///
    /// # Panics
    /// Half a minute passes; the message holds the machine's log and its pods.
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) {
        let until = Instant::now() + Duration::from_secs(60);
        while !done(self) {
            if Instant::now() > until {
                let pods = self.try_coracle(&["describe", "pods"]);
                panic!(
                    "waited in vain for {what}\n--- pods ---\n{}{}\n--- up ---\n{}",
                    pods.out,
                    pods.err,
                    tail(&self.log())
                );
            }
            std::thread::sleep(Duration::from_millis(20));
        }
    }

    /// Waits until a Deployment has so many ready replicas of its present template, and no others.
    ///
    /// # Panics
    /// As `wait`.
    pub fn wait_ready(&mut self, deployment: &str, replicas: u64) {
        let name = format!("deploy/{deployment}");
        self.wait(&format!("{name} to have {replicas} ready replicas"), |machine| {
            let object = machine.get(&[&name]);
            let status = &object["status"];
            let is = |field: &str| status[field].as_u64().unwrap_or(0) == replicas;
            status["observedGeneration"] == object["metadata"]["generation"]
                && is("readyReplicas")
                && is("updatedReplicas")
                && is("replicas")
        });
    }

    /// Name -> (pid, restarts) of every running container of the default namespace, from the kernel's view of the pods' status.
    #[must_use]
    pub fn container_ids(&self) -> std::collections::BTreeMap<String, (String, u64)> {
        let mut found = std::collections::BTreeMap::new();
        for pod in self.get(&["pods"])["items"].as_array().into_iter().flatten() {
            for container in pod["status"]["containerStatuses"].as_array().into_iter().flatten() {
                let name = format!(
                    "{}/{}",
                    pod["metadata"]["name"].as_str().unwrap_or_default(),
                    container["name"].as_str().unwrap_or_default()
                );
                let id = container["containerID"].as_str().unwrap_or_default().to_owned();
                found.insert(name, (id, container["restartCount"].as_u64().unwrap_or(0)));
            }
        }
        found
    }

    /// `coracle down`; then nothing of the machine may be left.
    ///
    /// # Panics
    /// Something is left.
    pub fn down(&mut self) {
        let said = self.try_coracle(&["down", "--timeout", "10"]);
        assert_eq!(said.code, 0, "{}{}\n--- up ---\n{}", said.out, said.err, tail(&self.log()));
        if let Some(mut up) = self.up.take() {
            let _ = up.wait();
        }
        assert_eq!(self.left_over(), Vec::<String>::new());
    }

    /// Links, tables, mounts, cgroups and processes of this machine that are still there.
    #[must_use]
    pub fn left_over(&self) -> Vec<String> {
        let mut left = Vec::new();
        let links = self.sh("ip -o link show").out;
        left.extend(links.lines().filter(|line| !line.contains(": lo:")).map(|line| format!("link: {line}")));
        let routes = self.sh("ip -4 route show").out;
        left.extend(routes.lines().map(|line| format!("route: {line}")));
        if have("nft") {
            left.extend(self.sh("nft list tables").out.lines().map(|line| format!("table: {line}")));
        }
        let here = self.dir.path().display().to_string();
        let mounts = std::fs::read_to_string("/proc/self/mounts").unwrap_or_default();
        left.extend(mounts.lines().filter(|line| line.contains(&here)).map(|line| format!("mount: {line}")));
        let mut folders = vec![PathBuf::from("/sys/fs/cgroup")];
        folders.extend(std::fs::read_dir("/sys/fs/cgroup").into_iter().flatten().flatten().map(|entry| entry.path()));
        left.extend(
            folders
                .iter()
                .map(|folder| folder.join(self.cgroup()))
                .filter(|path| path.exists())
                .map(|path| format!("cgroup: {}", path.display())),
        );
        for entry in std::fs::read_dir("/proc").into_iter().flatten().flatten() {
            let command = std::fs::read(entry.path().join("cmdline")).unwrap_or_default();
            let command = String::from_utf8_lossy(&command).replace('\0', " ");
            if command.contains(&here) {
                left.push(format!("process: {command}"));
            }
        }
        left
    }
}

impl Default for Machine {
    fn default() -> Self {
        Self::new()
    }
}

impl Drop for Machine {
    fn drop(&mut self) {
        self.kill();
        // A test that failed in the middle cleans up all the same.
        if self.data().join("up.json").exists() {
            let _ = self.command(self.coracle_program()).args(["down", "--timeout", "1"]).output();
        }
        let _ = self.holder.kill();
        let _ = self.holder.wait();
        if std::thread::panicking() {
            let mut text = String::new();
            if let Ok(mut file) = std::fs::File::open(self.dir.path().join("up.log")) {
                let _ = file.read_to_string(&mut text);
            }
            println!("--- log of {} ---\n{}", self.name, tail(&text));
        }
    }
}

fn tail(text: &str) -> String {
    let lines: Vec<&str> = text.lines().collect();
    lines[lines.len().saturating_sub(80)..].join("\n")
}
