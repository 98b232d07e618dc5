//! Layers from Debian packages: apt works out and fetches what is needed, and the packages' own tars become layer entries.
//! Nothing is installed and nothing runs as root; what maintainer scripts would do is done here by hand.

use std::collections::BTreeSet;
use std::fs::File;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};

use coracle_images::builder::{Attributes, LayerBuilder};

use crate::Failure;

/// A shell, the C library with its resolver, the usual small tools.
const BASE: &[&str] = &[
    "base-files",
    "base-passwd",
    "netbase",
    "libc6",
    "libc-bin",
    "dash",
    "coreutils",
    "grep",
    "sed",
    "ca-certificates",
];

/// In a merged system these are links, and files that packages put under the left end up under the right.
const MERGED: &[(&str, &str)] = &[("bin", "usr/bin"), ("sbin", "usr/sbin"), ("lib", "usr/lib"), ("lib64", "usr/lib64")];

/// What the base layer and the application's layer are made of.
pub struct Packages {
    pub base: Vec<PathBuf>,
    pub application: Vec<PathBuf>,
}

/// Fetches the packages and everything they depend on into `cache`, unless they are there.
pub fn fetch(cache: &Path, application: &[&str]) -> Result<Packages, Failure> {
    // To apt a relative path is one below its own folders.
    let cache = std::path::absolute(cache).map_err(|error| Failure::Step("find the cache".to_owned(), error))?;
    let base = resolve(&cache, BASE)?;
    let known: BTreeSet<&PathBuf> = base.iter().collect();
    let all = resolve(&cache, &[BASE, application].concat())?;
    let application = all.into_iter().filter(|package| !known.contains(package)).collect();
    Ok(Packages { base, application })
}

/// The package files for a set of names, sorted. A list from an earlier run is used while its files are there.
fn resolve(cache: &Path, names: &[&str]) -> Result<Vec<PathBuf>, Failure> {
    let step = |what: &str| {
        let what = what.to_owned();
        move |error| Failure::Step(what, error)
    };
    let archives = cache.join("archives");
    let list = cache.join(format!("{}.list", names.join("+")));
    if let Ok(text) = std::fs::read_to_string(&list) {
        let packages: Vec<PathBuf> = text.lines().map(|name| archives.join(name)).collect();
        if !packages.is_empty() && packages.iter().all(|package| package.exists()) {
            return Ok(packages);
        }
    }
    for dir in ["archives/partial", "lists/partial"] {
        std::fs::create_dir_all(cache.join(dir)).map_err(step("make the cache"))?;
    }
    // As if nothing were installed, so that every dependency is named.
    let status = cache.join("status");
    File::create(&status).map_err(step("make the cache"))?;
    let option = |name: &str, path: &Path| format!("{name}={}", path.display());
    let apt = |arguments: &[&str]| {
        let mut command = Command::new("apt-get");
        command.arg("-o").arg(option("Dir::State::Lists", &cache.join("lists")));
        command.arg("-o").arg(option("Dir::State::status", &status));
        command.arg("-o").arg(option("Dir::Cache::archives", &archives));
        command.args([
            "-o",
            "Dir::Cache::pkgcache=",
            "-o",
            "Dir::Cache::srcpkgcache=",
            "-o",
            "APT::Sandbox::User=root",
        ]);
        command.args(["-o", "Debug::NoLocking=1", "-o", "APT::Get::List-Cleanup=0", "-qq"]);
        command.args(arguments);
        run(&mut command, &format!("run apt-get {}", arguments.join(" ")))
    };
    let fresh = std::fs::read_dir(cache.join("lists")).is_ok_and(|entries| entries.count() > 2);
    if !fresh {
        apt(&["update"])?;
    }
    let install = [&["install", "--no-install-recommends", "-y"], names].concat();
    apt(&[&install[..], &["--download-only"]].concat())?;
    let wanted = simulated(&apt, &install)?;
    let mut files = Vec::new();
    for entry in std::fs::read_dir(&archives).map_err(step("read the cache"))? {
        let name = entry.map_err(step("read the cache"))?.file_name().to_string_lossy().into_owned();
        if name.ends_with(".deb") && wanted.iter().any(|(package, version)| is_file_of(&name, package, version)) {
            files.push(name);
        }
    }
    files.sort();
    std::fs::write(&list, files.join("\n")).map_err(step("write the cache"))?;
    Ok(files.into_iter().map(|name| archives.join(name)).collect())
}

/// Names and versions apt would install.
fn simulated(
    apt: &dyn Fn(&[&str]) -> Result<String, Failure>,
    install: &[&str],
) -> Result<Vec<(String, String)>, Failure> {
    let said = apt(&[install, &["--simulate"]].concat())?;
    Ok(said
        .lines()
        .filter_map(|line| {
            // Inst NAME (VERSION ...)
            let mut words = line.strip_prefix("Inst ")?.split_whitespace();
            Some((words.next()?.to_owned(), words.next()?.trim_start_matches('(').to_owned()))
        })
        .collect())
}

/// `NAME_VERSION_ARCH.deb`, with the colon of an epoch written as `%3a`.
fn is_file_of(file: &str, package: &str, version: &str) -> bool {
    file.starts_with(&format!("{package}_{}_", version.replace(':', "%3a")))
}

fn run(command: &mut Command, what: &str) -> Result<String, Failure> {
    let output = command.stdin(Stdio::null()).output().map_err(|error| Failure::Step(what.to_owned(), error))?;
    if output.status.success() {
        return Ok(String::from_utf8_lossy(&output.stdout).into_owned());
    }
    let said = String::from_utf8_lossy(&output.stderr);
    let said = said.lines().rev().take(10).collect::<Vec<_>>().into_iter().rev().collect::<Vec<_>>().join("\n");
    Err(Failure::Tool { what: what.to_owned(), said })
}

/// Puts the files of packages into a layer.
pub fn unpack(layer: &mut LayerBuilder, packages: &[PathBuf]) -> Result<(), Failure> {
    for package in packages {
        let what = format!("unpack {}", package.display());
        let mut child = Command::new("dpkg-deb")
            .arg("--fsys-tarfile")
            .arg(package)
            .stdin(Stdio::null())
            .stdout(Stdio::piped())
            .spawn()
            .map_err(|error| Failure::Step(what.clone(), error))?;
        if let Some(tar) = child.stdout.take() {
            layer.tar(tar, MERGED)?;
        }
        let status = child.wait().map_err(|error| Failure::Step(what.clone(), error))?;
        if !status.success() {
            return Err(Failure::Tool { what, said: status.to_string() });
        }
    }
    Ok(())
}

/// The base system: packages, the links of a merged system, and what their scripts would have set up.
pub fn base(packages: &Packages) -> Result<LayerBuilder, Failure> {
    let mut layer = LayerBuilder::new();
    for (link, target) in MERGED {
        layer.symlink(link, target);
    }
    unpack(&mut layer, &packages.base)?;
    for (from, to) in
        [("usr/share/base-passwd/passwd.master", "etc/passwd"), ("usr/share/base-passwd/group.master", "etc/group")]
    {
        let contents = layer.contents(from).ok_or(Failure::Missing("base-passwd"))?.to_vec();
        layer.file(to, contents, Attributes::mode(0o644));
    }
    layer
        .file(
            "etc/nsswitch.conf",
            "passwd: files\ngroup: files\nhosts: files dns\nservices: files\nprotocols: files\n",
            Attributes::mode(0o644),
        )
        .file("etc/hosts", "127.0.0.1 localhost\n", Attributes::mode(0o644))
        .directory("tmp", Attributes::mode(0o1777))
        .directory("var/tmp", Attributes::mode(0o1777))
        .directory("run", Attributes::mode(0o755))
        .directory("root", Attributes::mode(0o700));
    if !layer.has("usr/bin/sh") {
        layer.symlink("usr/bin/sh", "dash");
    }
    Ok(layer)
}

/// Adds a system user to the base's files, in another layer: the upper file hides the lower one.
pub fn user(base: &LayerBuilder, layer: &mut LayerBuilder, name: &str, id: u32, home: &str) {
    let line = |file: &str, line: String| {
        let mut text = base.contents(file).unwrap_or_default().to_vec();
        text.extend_from_slice(line.as_bytes());
        text
    };
    let passwd = line("etc/passwd", format!("{name}:x:{id}:{id}::{home}:/usr/sbin/nologin\n"));
    let group = line("etc/group", format!("{name}:x:{id}:\n"));
    layer.file("etc/passwd", passwd, Attributes::mode(0o644)).file("etc/group", group, Attributes::mode(0o644));
}

/// What no container reads, hidden by a layer of its own. (The bytes stay in the layers below: this is here to have a real image
/// with whiteouts, and it is how most images in the world look.)
pub fn slim() -> LayerBuilder {
    let mut layer = LayerBuilder::new();
    layer.directory("usr/share", Attributes::mode(0o755));
    layer
        .whiteout("usr/share/doc")
        .whiteout("usr/share/man")
        .whiteout("usr/share/locale")
        .whiteout("usr/share/lintian");
    layer
}
