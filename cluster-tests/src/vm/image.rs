//! What a virtual machine boots: Debian's kernel, a small initrd, a root with systemd, and a second disk with what is tested.
//! Kernel and root are made once and kept in `target/vm-cache`; the second disk is made anew for every machine.

use std::hash::{DefaultHasher, Hash as _, Hasher as _};
use std::os::unix::fs::{PermissionsExt as _, symlink};
use std::path::{Path, PathBuf};
use std::process::Command;

use super::site;
use crate::machine::{program, programs, workspace};

/// Files to boot from.
pub struct Disks {
    /// Debian's kernel.
    pub kernel: PathBuf,
    /// Loads the disk's modules and goes on to it.
    pub initrd: PathBuf,
    /// Debian with systemd.
    pub root: PathBuf,
    /// `/usr/local`: our program, its unit, images and manifests.
    pub local: PathBuf,
    _folder: tempfile::TempDir,
}

/// Beyond what Debian calls essential. `coracle` itself needs none of them: systemd needs a machine it can run, and firewalld and
/// Docker are what others may have on theirs; nobody starts these unasked.
const PACKAGES: &str = "systemd,systemd-sysv,udev,dbus,kmod,iproute2,nftables,firewalld,docker.io";

/// What stands between the kernel and the disk.
const INITRD_MODULES: &[&str] = &["virtio_pci", "virtio_blk", "ext4"];

const INIT: &str = "#!/bin/sh
mount -t proc proc /proc; mount -t devtmpfs dev /dev
echo 'initrd reached' >/dev/console
grep -qw probe /proc/cmdline && poweroff -f
for module in $(cat /modules); do insmod $module; done
until [ -b /dev/vda ] && [ -b /dev/vdb ]; do sleep 0.1; done
mount -t ext4 /dev/vda /root && mount -t ext4 /dev/vdb /root/usr/local
umount /proc; mount --move /dev /root/dev
exec switch_root /root /sbin/init
";

/// Files of the root. A card as a server has one, and our end of the channel.
const FILES: &[(&str, u32, &str)] = &[
    ("etc/hostname", 0o644, "debian\n"),
    ("etc/fstab", 0o644, ""),
    ("etc/machine-id", 0o644, "c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0c0\n"),
    ("etc/modules-load.d/channel.conf", 0o644, "virtio_console\n"),
    (
        "etc/systemd/network/card.network",
        0o644,
        "[Match]\nName=en* eth*\n\n[Network]\nDHCP=ipv4\nLinkLocalAddressing=no\nGateway=10.0.2.2\n",
    ),
    (
        "etc/systemd/system/channel.service",
        0o644,
        "[Unit]\nAfter=network-online.target\nWants=network-online.target\n\n[Service]\nExecStart=/usr/sbin/channel\n\n[Install]\nWantedBy=multi-user.target\n",
    ),
    ("etc/docker/daemon.json", 0o644, "{\"storage-driver\": \"overlay2\"}\n"),
    (
        "usr/sbin/channel",
        0o755,
        "#!/bin/bash
export HOME=/root PATH=/usr/local/bin:/usr/sbin:/usr/bin
until [ -c /dev/vport*p1 ]; do sleep 0.1; done
exec 9<>/dev/vport*p1
echo hello >&9
while IFS= read -r -d '' script <&9; do
  timeout -k 1 240 bash -c \"$script\" >/run/out 2>/run/err </dev/null 9>&-
  code=$?
  echo $code $(stat -c %s /run/out) $(stat -c %s /run/err) >&9
  cat /run/out /run/err >&9
done
",
    ),
];

/// Services that have nothing to do here and cost a slow machine seconds.
const MASKED: &[&str] = &[
    "systemd-firstboot.service",
    "serial-getty@ttyS0.service",
    "getty@tty1.service",
    "apt-daily.timer",
    "apt-daily-upgrade.timer",
    "dpkg-db-backup.timer",
    "e2scrub_all.timer",
    "e2scrub_reap.service",
    "fstrim.timer",
];
/// What their packages enable and no test has asked for.
const DISABLED: &[&str] = &[
    "multi-user.target.wants/docker.service",
    "multi-user.target.wants/containerd.service",
    "multi-user.target.wants/firewalld.service",
    "sockets.target.wants/docker.socket",
    "dbus-org.fedoraproject.FirewallD1.service",
];
const ENABLED: &[(&str, &str)] = &[
    ("/etc/systemd/system/channel.service", "multi-user.target.wants/channel.service"),
    ("/lib/systemd/system/systemd-networkd.service", "multi-user.target.wants/systemd-networkd.service"),
    (
        "/lib/systemd/system/systemd-networkd-wait-online.service",
        "network-online.target.wants/systemd-networkd-wait-online.service",
    ),
];

impl Disks {
    /// Makes what is not there yet.
    ///
    /// # Panics
    /// A tool fails.
    #[must_use]
    pub fn make() -> Self {
        let suite = suite();
        let mut recipe = DefaultHasher::new();
        (PACKAGES, INITRD_MODULES, INIT, FILES, MASKED, DISABLED, ENABLED).hash(&mut recipe);
        let cache = workspace().join(format!("target/vm-cache/{suite}-{:016x}", recipe.finish()));
        if !cache.exists() {
            // Another run, or one that was ended in the middle, must not be seen half done.
            let parent = cache.parent().expect("a parent");
            std::fs::create_dir_all(parent).expect("a cache");
            let making = tempfile::Builder::new().prefix("making-").tempdir_in(parent).expect("a folder");
            build(&suite, making.path());
            for used in ["kernel-package", "root"] {
                std::fs::remove_dir_all(making.path().join(used)).expect("it is ours");
            }
            let _ = std::fs::rename(making.path(), &cache);
        }
        let folder = tempfile::Builder::new().prefix("coracle-vm-local-").tempdir().expect("a temporary folder");
        let local = folder.path().join("local.ext4");
        local_disk(&folder.path().join("local"), &local);
        Self {
            kernel: cache.join("vmlinuz"),
            initrd: cache.join("initrd"),
            root: cache.join("root.ext4"),
            local,
            _folder: folder,
        }
    }
}

impl Disks {
    /// A file that keeps what one machine changes on its root, and which may outlive a start of it.
    ///
    /// # Panics
    /// `qemu-img` fails.
    pub(super) fn layer(&self, file: &Path) {
        let mut image = Command::new("qemu-img");
        image.args(["create", "-q", "-f", "qcow2", "-F", "raw", "-b"]).arg(&self.root).arg(file);
        run(&mut image);
    }
}

/// The release of Debian this machine runs: its package sources have it.
fn suite() -> String {
    let text = std::fs::read_to_string("/etc/os-release").unwrap_or_default();
    let name = text.lines().find_map(|line| line.strip_prefix("VERSION_CODENAME="));
    name.unwrap_or("bookworm").to_owned()
}

fn run(command: &mut Command) -> String {
    let output = command.output().unwrap_or_else(|error| panic!("{command:?}: {error}"));
    let err = String::from_utf8_lossy(&output.stderr);
    assert!(output.status.success(), "{command:?}: {}\n{err}", output.status);
    String::from_utf8_lossy(&output.stdout).into_owned()
}

fn build(suite: &str, cache: &Path) {
    let kernel = cache.join("kernel-package");
    let version = fetch_kernel(&kernel);
    std::fs::copy(kernel.join(format!("boot/vmlinuz-{version}")), cache.join("vmlinuz")).expect("a kernel");
    let root = cache.join("root");
    let exclude = ["doc", "man", "locale", "info"].map(|dir| format!("--dpkgopt=path-exclude=/usr/share/{dir}/*"));
    run(Command::new("mmdebstrap")
        .args(["--mode=root", "--variant=essential", "--quiet"])
        .args(exclude)
        .arg(format!("--include={PACKAGES}"))
        .arg(suite)
        .arg(&root));
    run(Command::new("cp").arg("-a").arg(kernel.join("lib/modules")).arg(root.join("lib/modules")));
    run(Command::new("depmod").arg("-b").arg(&root).arg(&version));
    furnish(&root);
    initrd(&root, &version, &cache.join("initrd"));
    disk(&root, &cache.join("root.ext4"), 2048);
}

/// Downloads and unpacks the newest cloud kernel; its version.
fn fetch_kernel(folder: &Path) -> String {
    std::fs::create_dir_all(folder).expect("a folder");
    let version = download_kernel(folder).unwrap_or_else(|| {
        // The lists of packages are missing, or name one that has been replaced since.
        run(Command::new("apt-get").args(["update", "-qq"]));
        download_kernel(folder).expect("linux-image-cloud-amd64 is in the package sources")
    });
    let archive = std::fs::read_dir(folder).expect("a folder").flatten().next().expect("a package").path();
    run(Command::new("dpkg").arg("-x").arg(&archive).arg(folder));
    version
}

fn download_kernel(folder: &Path) -> Option<String> {
    let depends = Command::new("apt-cache").args(["depends", "linux-image-cloud-amd64"]).output().expect("apt-cache");
    let text = String::from_utf8_lossy(&depends.stdout).into_owned();
    let package = text.lines().find_map(|line| line.trim().strip_prefix("Depends: "))?;
    let mut download = Command::new("apt-get");
    download.args(["download", "-qq", "-o", "APT::Sandbox::User=root", package]).current_dir(folder);
    let done = download.output().expect("apt-get").status.success();
    done.then(|| package.trim_start_matches("linux-image-").to_owned())
}

fn write(path: &Path, mode: u32, text: &str) {
    std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
    std::fs::write(path, text).expect("a file");
    std::fs::set_permissions(path, std::fs::Permissions::from_mode(mode)).expect("ours");
}

fn furnish(root: &Path) {
    for (name, mode, text) in FILES {
        write(&root.join(name), *mode, text);
    }
    let units = root.join("etc/systemd/system");
    let link = |target: &str, name: &str| {
        let path = units.join(name);
        std::fs::create_dir_all(path.parent().expect("a parent")).expect("a folder");
        let _ = std::fs::remove_file(&path);
        symlink(target, path).expect("a link");
    };
    for name in MASKED {
        link("/dev/null", name);
    }
    for name in DISABLED {
        let _ = std::fs::remove_file(units.join(name));
    }
    for (unit, name) in ENABLED {
        link(unit, name);
    }
}

/// Busybox and the few modules, in the order they are to be loaded.
fn initrd(root: &Path, version: &str, file: &Path) {
    let folder = tempfile::tempdir().expect("a temporary folder");
    let inside = folder.path();
    for dir in ["bin", "proc", "dev", "root"] {
        std::fs::create_dir_all(inside.join(dir)).expect("a folder");
    }
    let busybox = run(Command::new("sh").args(["-c", "command -v busybox"]));
    std::fs::copy(busybox.trim(), inside.join("bin/busybox")).expect("busybox");
    for name in ["sh", "mount", "umount", "cat", "grep", "insmod", "sleep", "poweroff", "switch_root", "["] {
        symlink("busybox", inside.join("bin").join(name)).expect("a link");
    }
    let mut order: Vec<String> = Vec::new();
    for module in INITRD_MODULES {
        let text = run(Command::new("modprobe").arg("-d").arg(root).args(["-S", version, "--show-depends", module]));
        for path in text.lines().filter_map(|line| line.strip_prefix("insmod ")).map(|line| Path::new(line.trim())) {
            let name = path.file_name().expect("a name").to_string_lossy().into_owned();
            if !order.contains(&name) {
                std::fs::copy(path, inside.join(&name)).expect("a module");
                order.push(name);
            }
        }
    }
    write(&inside.join("modules"), 0o644, &order.join("\n"));
    write(&inside.join("init"), 0o755, INIT);
    let script = format!("find . | cpio --quiet -o -H newc | gzip -1 >'{}'", file.display());
    run(Command::new("sh").args(["-ec", &script]).current_dir(inside));
}

/// A file system out of a folder, without mounting anything.
fn disk(folder: &Path, file: &Path, megabytes: u32) {
    run(Command::new("mkfs.ext4").args(["-q", "-F", "-d"]).arg(folder).arg(file).arg(format!("{megabytes}M")));
}

/// `/usr/local` with our program as an administrator would put it there.
fn local_disk(folder: &Path, file: &Path) {
    let bin = folder.join("bin");
    std::fs::create_dir_all(&bin).expect("a folder");
    stripped(&newest("coracle"), &bin.join("coracle"));
    let hello = folder.join("hello");
    stripped(&program("hello"), &hello);
    let image = folder.join("share/hello.image");
    std::fs::create_dir_all(folder.join("share")).expect("a folder");
    run(Command::new(program("example-images")).arg("hello").arg(&image).arg("--binary").arg(&hello));
    std::fs::remove_file(&hello).expect("ours");
    let units = folder.join("lib/systemd/system");
    std::fs::create_dir_all(&units).expect("a folder");
    std::fs::copy(workspace().join("packaging/coracle.service"), units.join("coracle.service")).expect("the unit");
    std::fs::copy(workspace().join("examples/hello.yaml"), folder.join("share/hello.yaml")).expect("the example");
    // Machines that stand on one network know their addresses by their cards; one that stands alone asks qemu.
    let cards = folder.join("lib/systemd/network");
    std::fs::create_dir_all(&cards).expect("a folder");
    for number in 1..=3 {
        let text = format!(
            "[Match]\nMACAddress={}\n\n[Network]\nAddress={}/24\nLinkLocalAddressing=no\nGateway={}\n",
            site::mac(number),
            site::address(number),
            site::WITNESS
        );
        write(&cards.join(format!("10-vm{number}.network")), 0o644, &text);
    }
    disk(folder, file, 256);
}

fn stripped(from: &Path, to: &Path) {
    run(Command::new("strip").arg("-o").arg(to).arg(from));
}

/// The optimised build where there is one that is not older: it is kinder to a machine without hardware support.
fn newest(name: &str) -> PathBuf {
    let usual = program(name);
    let release = programs().with_file_name("release").join(name);
    let made = |path: &Path| std::fs::metadata(path).and_then(|about| about.modified()).ok();
    if made(&release) > made(&usual) { release } else { usual }
}
