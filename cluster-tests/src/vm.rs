//! A machine for tests with a kernel and a systemd of its own: Debian in qemu, driven over a virtio port.
//! Nothing in it reaches outside: its network card ends in qemu's own restricted network.

pub mod image;
pub mod site;
pub mod witness;

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine::{Said, have};
use image::Disks;

/// What a virtual machine needs on this one.
pub const PROGRAMS: &[&str] = &[
    "qemu-system-x86_64",
    "qemu-img",
    "mmdebstrap",
    "mkfs.ext4",
    "modprobe",
    "depmod",
    "cpio",
    "busybox",
    "strip",
    "setpriv",
];

/// Without hardware support a boot takes some twenty seconds, and several times that on a busy machine.
const BOOT: Duration = Duration::from_secs(300);
/// One command; the guest ends it a little earlier by itself.
const COMMAND: Duration = Duration::from_secs(260);
/// What is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// What a machine is made of.
struct Hardware {
    memory_mb: u32,
    processors: u32,
    /// Its hostname, and the file that keeps what it changes; without them it is `debian`, and forgets.
    own: Option<(String, PathBuf)>,
    /// The network namespace, the link there, and the address of the card.
    card: Option<(PathBuf, String, String)>,
}

/// A running virtual machine.
pub struct Vm {
    qemu: Child,
    hardware: Hardware,
    channel: UnixStream,
    folder: tempfile::TempDir,
    accelerator: &'static str,
    begun: Instant,
    booted: Duration,
    /// What was asked, and how long the answer took.
    asked: Vec<String>,
}

/// Whether all that is needed is installed; says what is not.
#[must_use]
pub fn possible() -> bool {
    PROGRAMS.iter().all(|program| have(program))
}

impl Vm {
    /// Boots the disks; changes to them are forgotten.
    ///
    /// # Panics
    /// It does not come up.
    #[must_use]
    pub fn boot(disks: &Disks) -> Self {
        let alone = Hardware { memory_mb: 1024, processors: 2, own: None, card: None };
        let mut vm = Self::start(disks, alone, accelerator(disks));
        vm.greeted();
        vm
    }

    /// Starts qemu; the machine is not up yet.
    fn start(disks: &Disks, hardware: Hardware, accelerator: &'static str) -> Self {
        let folder = tempfile::Builder::new().prefix("coracle-vm-").tempdir().expect("a temporary folder");
        let (qemu, channel) = power_on(disks, &hardware, accelerator, folder.path());
        let (begun, booted) = (Instant::now(), Duration::ZERO);
        Self { qemu, hardware, channel, folder, accelerator, begun, booted, asked: Vec::new() }
    }

    /// Ends qemu as a power cut ends a machine: now.
    ///
    /// # Panics
    /// It is not running.
    pub fn kill(&mut self) {
        self.qemu.kill().expect("qemu runs");
        let _ = self.qemu.wait();
        self.asked.push("(the machine was ended)".to_owned());
    }

    /// Starts a machine again that was ended. It is up when it has greeted.
    fn restart(&mut self, disks: &Disks) {
        (self.qemu, self.channel) = power_on(disks, &self.hardware, self.accelerator, self.folder.path());
        self.begun = Instant::now();
        self.asked.push("(the machine was started again)".to_owned());
    }

    /// Stops its processors; its clocks stop with them.
    pub fn pause(&mut self) {
        self.monitor("stop");
    }

    /// Lets its processors go on.
    pub fn resume(&mut self) {
        self.monitor("cont");
    }

    /// A command for qemu itself; done when this returns.
    fn monitor(&mut self, command: &str) {
        let mut monitor = UnixStream::connect(self.folder.path().join("monitor")).expect("qemu's monitor");
        monitor.set_read_timeout(Some(COMMAND)).expect("a timeout");
        monitor.write_all(format!("{command}\n").as_bytes()).expect("qemu's monitor");
        // A prompt before the command and one after it.
        let (mut said, mut byte) = (Vec::new(), [0]);
        while said.windows(6).filter(|word| word == b"(qemu)").count() < 2 {
            monitor.read_exact(&mut byte).expect("qemu's monitor answers");
            said.push(byte[0]);
        }
        self.asked.push(format!("(qemu: {command})"));
    }

    /// Takes the power away and gives it back: what was not written to a disk is gone. Comes back when systemd has all up.
    ///
    /// # Panics
    /// The machine does not come up again.
    pub fn cut_power(&mut self) {
        self.begun = Instant::now();
        self.monitor("system_reset");
        self.greeted();
    }

    /// Waits for the word of the guest's end of the channel.
    fn greeted(&mut self) {
        self.channel.set_read_timeout(Some(BOOT)).expect("a timeout");
        let mut greeting = [0; 6];
        let read = self.channel.read_exact(&mut greeting);
        assert!(read.is_ok() && &greeting == b"hello\n", "no machine came up ({read:?}):\n{}", self.console());
        self.channel.set_read_timeout(Some(COMMAND)).expect("a timeout");
        self.booted = self.begun.elapsed();
    }

    /// From the start of qemu to a systemd that has started our end of the channel.
    #[must_use]
    pub fn booted(&self) -> Duration {
        self.booted
    }

    /// What runs the guest's code.
    #[must_use]
    pub fn accelerator(&self) -> &'static str {
        self.accelerator
    }

    /// What the kernel and systemd said.
    #[must_use]
    pub fn console(&self) -> String {
        String::from_utf8_lossy(&std::fs::read(self.folder.path().join("console")).unwrap_or_default()).into_owned()
    }

    /// Runs a bash script in the machine.
    ///
    /// # Panics
    /// The machine does not answer.
    pub fn sh(&mut self, script: &str) -> Said {
        let asked = Instant::now();
        let said = self.ask(script);
        self.asked.push(format!("{:5.1} s  {script}", asked.elapsed().as_secs_f64()));
        match said {
            Ok(said) => said,
            Err(error) => panic!("the machine does not answer to `{script}` ({error}):\n{}", self.console()),
        }
    }

    /// A script goes over with a zero behind it; back come the code, the lengths and the bytes of both outputs.
    fn ask(&mut self, script: &str) -> std::io::Result<Said> {
        self.channel.write_all(script.as_bytes())?;
        self.channel.write_all(b"\0")?;
        let mut head = Vec::new();
        loop {
            let mut byte = [0];
            self.channel.read_exact(&mut byte)?;
            if byte[0] == b'\n' {
                break;
            }
            head.push(byte[0]);
        }
        let head = String::from_utf8_lossy(&head).into_owned();
        let numbers: Vec<usize> = head.split(' ').filter_map(|word| word.parse().ok()).collect();
        let [code, out, err] = numbers[..] else { return Err(std::io::Error::other(head)) };
        let mut text = |length: usize| {
            let mut bytes = vec![0; length];
            self.channel.read_exact(&mut bytes).map(|()| String::from_utf8_lossy(&bytes).into_owned())
        };
        Ok(Said { code: i32::try_from(code).unwrap_or(-1), out: text(out)?, err: text(err)? })
    }

    /// Runs a script that must work; its standard output.
    ///
    /// # Panics
    /// It fails.
    pub fn must(&mut self, script: &str) -> String {
        let said = self.sh(script);
        assert_eq!(said.code, 0, "`{script}`:\n{}{}", said.out, said.err);
        said.out
    }

    /// `coracle get ... -o json`; null when it fails.
    pub fn get(&mut self, what: &str) -> Value {
        let said = self.sh(&format!("coracle get {what} -o json"));
        serde_json::from_str(&said.out).unwrap_or(Value::Null)
    }

    /// The body of an HTTP answer with a 200.
    pub fn http(&mut self, address: &str, path: &str) -> Option<String> {
        let (host, port) = address.split_once(':')?;
        let said = self.sh(&format!(
            "exec 3<>/dev/tcp/{host}/{port}; printf 'GET {path} HTTP/1.0\\r\\nHost: {host}\\r\\n\\r\\n' >&3; timeout 10 cat <&3"
        ));
        let (head, body) = said.out.split_once("\r\n\r\n")?;
        (head.starts_with("HTTP/1.1 200") || head.starts_with("HTTP/1.0 200")).then(|| body.to_owned())
    }

    /// One replica of the demo app is sent to ask another by its name, until it can; seconds.
    ///
    /// # Panics
    /// It cannot.
    pub fn asked(&mut self, service: &str) -> f64 {
        let took = self.wait("one replica to ask another by its name", |vm| {
            vm.http(service, "/ask?host=hello").is_some_and(|answer| answer.contains("hello from"))
        });
        took.as_secs_f64()
    }

    /// Polls until `done`; how long that took.
    ///
    /// # Panics
    /// It takes too long.
    pub fn wait(&mut self, what: &str, mut done: impl FnMut(&mut Self) -> bool) -> Duration {
        let started = Instant::now();
        while !done(self) {
            assert!(started.elapsed() < PATIENCE, "waited in vain for {what}");
            // Each look starts programs in a machine that is slow at it: more of them would make it wait for us.
            std::thread::sleep(Duration::from_millis(100));
        }
        started.elapsed()
    }
}

impl Drop for Vm {
    fn drop(&mut self) {
        // A machine that never came up has a console and nothing else.
        if std::thread::panicking() && self.booted > Duration::ZERO {
            println!("--- asked ---\n{}", self.asked.join("\n"));
            let script = "journalctl --no-pager -o short-monotonic -b | tail -n 400; coracle describe pods";
            match self.ask(script) {
                Ok(said) => println!("--- journal ---\n{}{}", said.out, said.err),
                Err(error) => println!("--- the machine does not answer ({error}) ---\n{}", self.console()),
            }
        }
        let _ = self.qemu.kill();
        let _ = self.qemu.wait();
    }
}

/// How the guest's code runs here.
fn accelerator(disks: &Disks) -> &'static str {
    if kvm_works(disks) { "kvm" } else { "tcg,thread=multi" }
}

/// Starts qemu with everything; its end of our channel is connected.
fn power_on(disks: &Disks, hardware: &Hardware, accelerator: &str, folder: &Path) -> (Child, UnixStream) {
    let (socket, monitor) = (folder.join("channel"), folder.join("monitor"));
    for old in [&socket, &monitor] {
        let _ = std::fs::remove_file(old);
    }
    let listener = UnixListener::bind(&socket).expect("a socket");
    let mut command = qemu(disks, hardware, accelerator, &folder.join("console"));
    // An emulated timer may be late without being broken.
    let mut words = "console=ttyS0 root=/dev/vda systemd.show_status=no no_timer_check".to_owned();
    if let Some((name, _)) = &hardware.own {
        // Two machines with one id would be one to whoever asks.
        let id: String = name.bytes().map(|byte| format!("{byte:02x}")).collect();
        words += &format!(" systemd.hostname={name} systemd.machine_id={id:c<32}");
    }
    command.arg("-append").arg(words);
    command.arg("-monitor").arg(format!("unix:{},server=on,wait=off", monitor.display()));
    match &hardware.own {
        // What the host's kernel has, survives the end of qemu: syncs need not reach the host's disk.
        Some((_, layer)) => {
            command.arg("-drive").arg(format!("file={},format=qcow2,if=virtio,cache=unsafe", layer.display()))
        }
        None => command.arg("-drive").arg(format!("file={},format=raw,if=virtio,snapshot=on", disks.root.display())),
    };
    command.arg("-drive").arg(format!("file={},format=raw,if=virtio,snapshot=on", disks.local.display()));
    let (net, device) = match &hardware.card {
        Some((_, tap, mac)) => (
            format!("tap,id=net,ifname={tap},script=no,downscript=no"),
            format!("virtio-net-pci,netdev=net,romfile=,mac={mac}"),
        ),
        None => ("user,id=net,restrict=on".to_owned(), "virtio-net-pci,netdev=net,romfile=".to_owned()),
    };
    command.arg("-netdev").arg(net).arg("-device").arg(device);
    command.arg("-chardev").arg(format!("socket,id=channel,path={}", socket.display()));
    command.args(["-device", "virtio-serial", "-device", "virtserialport,chardev=channel,name=channel"]);
    let qemu = command.spawn().expect("qemu");
    let (channel, _) = listener.accept().expect("qemu connects");
    // A machine's processors are its own. Emulated ones that wait for their turn among a hundred compilers are late for every beat
    // and election, so each machine is a session, whose turn the kernel gives it as a whole, and that turn comes early.
    let _ = std::fs::write(format!("/proc/{}/autogroup", qemu.id()), "-8");
    (qemu, channel)
}

/// qemu with the kernel, without disks; it goes when the thread that starts it goes.
fn qemu(disks: &Disks, hardware: &Hardware, accelerator: &str, console: &Path) -> Command {
    let mut command = match &hardware.card {
        Some((namespace, ..)) => {
            let mut command = Command::new("nsenter");
            command.arg(format!("--net={}", namespace.display())).args(["--", "setpriv"]);
            command
        }
        None => Command::new("setpriv"),
    };
    let Hardware { memory_mb, processors, .. } = hardware;
    command.args(["--pdeathsig", "KILL", "setsid", "qemu-system-x86_64", "-accel", accelerator]);
    command.args(["-m", &memory_mb.to_string(), "-smp", &processors.to_string()]);
    command.args(["-cpu", if accelerator == "kvm" { "host" } else { "max" }]);
    command.args(["-nodefaults", "-no-user-config", "-display", "none"]);
    command.arg("-serial").arg(format!("file:{}", console.display()));
    command.arg("-kernel").arg(&disks.kernel).arg("-initrd").arg(&disks.initrd);
    command.stdin(Stdio::null());
    command
}

/// Whether a kernel boots with hardware support: the device being there says little inside a virtual machine.
fn kvm_works(disks: &Disks) -> bool {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let console: PathBuf = folder.path().join("console");
    if !Path::new("/dev/kvm").exists() {
        return false;
    }
    let probe = Hardware { memory_mb: 256, processors: 1, own: None, card: None };
    let mut command = qemu(disks, &probe, "kvm", &console);
    command.args(["-append", "console=ttyS0 quiet panic=-1 probe", "-no-reboot"]).stderr(Stdio::null());
    let Ok(mut probe) = command.spawn() else { return false };
    let until = Instant::now() + Duration::from_secs(5);
    while probe.try_wait().is_ok_and(|ended| ended.is_none()) && Instant::now() < until {
        std::thread::sleep(Duration::from_millis(50));
    }
    let _ = probe.kill();
    let _ = probe.wait();
    std::fs::read_to_string(&console).is_ok_and(|text| text.contains("initrd reached"))
}
