//! A machine for tests with a kernel and a systemd of its own: Debian in qemu, driven over a virtio port.
//! Nothing in it reaches outside: its network card ends in qemu's own restricted network.

pub mod image;

use std::io::{Read as _, Write as _};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::time::{Duration, Instant};

use serde_json::Value;

use crate::machine::{Said, have};
use image::Disks;

/// What a virtual machine needs on this one.
pub const PROGRAMS: &[&str] =
    &["qemu-system-x86_64", "mmdebstrap", "mkfs.ext4", "modprobe", "depmod", "cpio", "busybox", "strip", "setpriv"];

/// Without hardware support a boot takes some twenty seconds, and several times that on a busy machine.
const BOOT: Duration = Duration::from_secs(180);
/// One command; the guest ends it a little earlier by itself.
const COMMAND: Duration = Duration::from_secs(100);
/// What is waited for.
const PATIENCE: Duration = Duration::from_secs(120);

/// A running virtual machine.
pub struct Vm {
    qemu: Child,
    channel: UnixStream,
    folder: tempfile::TempDir,
    accelerator: &'static str,
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
        let accelerator = if kvm_works(disks) { "kvm" } else { "tcg,thread=multi" };
        let folder = tempfile::Builder::new().prefix("coracle-vm-").tempdir().expect("a temporary folder");
        let socket = folder.path().join("channel");
        let listener = UnixListener::bind(&socket).expect("a socket");
        let started = Instant::now();
        let mut command = qemu(disks, accelerator, &folder.path().join("console"));
        command.args(["-append", "console=ttyS0 root=/dev/vda systemd.show_status=no"]);
        command.arg("-monitor").arg(format!("unix:{},server=on,wait=off", folder.path().join("monitor").display()));
        for disk in [&disks.root, &disks.local] {
            command.arg("-drive").arg(format!("file={},format=raw,if=virtio,snapshot=on", disk.display()));
        }
        command.args(["-netdev", "user,id=net,restrict=on", "-device", "virtio-net-pci,netdev=net,romfile="]);
        command.arg("-chardev").arg(format!("socket,id=channel,path={}", socket.display()));
        command.args(["-device", "virtio-serial", "-device", "virtserialport,chardev=channel,name=channel"]);
        let qemu = command.spawn().expect("qemu");
        let (channel, _) = listener.accept().expect("qemu connects");
        let mut vm = Self { qemu, channel, folder, accelerator, booted: Duration::ZERO, asked: Vec::new() };
        vm.greeted();
        vm.booted = started.elapsed();
        vm
    }

    /// Takes the power away and gives it back: what was not written to a disk is gone. Comes back when systemd has all up.
    ///
    /// # Panics
    /// The machine does not come up again.
    pub fn cut_power(&mut self) {
        let mut monitor = UnixStream::connect(self.folder.path().join("monitor")).expect("qemu's monitor");
        monitor.write_all(b"system_reset\n").expect("qemu's monitor");
        self.asked.push("(the power was cut)".to_owned());
        self.greeted();
    }

    /// Waits for the word of the guest's end of the channel.
    fn greeted(&mut self) {
        self.channel.set_read_timeout(Some(BOOT)).expect("a timeout");
        let mut greeting = [0; 6];
        let read = self.channel.read_exact(&mut greeting);
        assert!(read.is_ok() && &greeting == b"hello\n", "no machine came up ({read:?}):\n{}", self.console());
        self.channel.set_read_timeout(Some(COMMAND)).expect("a timeout");
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

/// qemu with the kernel, without disks; it goes when the thread that starts it goes.
fn qemu(disks: &Disks, accelerator: &str, console: &Path) -> Command {
    let mut command = Command::new("setpriv");
    command.args(["--pdeathsig", "KILL", "qemu-system-x86_64", "-accel", accelerator, "-m", "1024", "-smp", "2"]);
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
    let mut command = qemu(disks, "kvm", &console);
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
