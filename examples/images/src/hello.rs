//! The image of examples/hello: nothing but the static program and two files that make `ps` and names readable.

use std::path::{Path, PathBuf};

use coracle_images::Platform;
use coracle_images::builder::{Attributes, Compress, LayerBuilder, Layout, RunConfig};

use crate::Failure;

pub const NAME: &str = "coracle.local/hello:1";

/// `OS/ARCHITECTURE`.
pub fn platform(text: &str) -> Result<Platform, String> {
    match text.split_once('/') {
        Some((os, architecture)) if !os.is_empty() && !architecture.is_empty() => {
            Ok(Platform { os: os.into(), architecture: architecture.into(), variant: String::new() })
        }
        _ => Err("it is written OS/ARCHITECTURE, such as linux/arm64".to_owned()),
    }
}

pub fn build(out: &Path, binary: Option<PathBuf>, name: &str, platform: Option<Platform>) -> Result<String, Failure> {
    let binary = binary.map_or_else(beside_us, Ok)?;
    let mut layer = LayerBuilder::new();
    layer
        .directory("tmp", Attributes::mode(0o1777))
        .file(
            "etc/passwd",
            "root:x:0:0:root:/:/sbin/nologin\nhello:x:65532:65532:hello:/:/sbin/nologin\n",
            Attributes::mode(0o644),
        )
        .file("etc/group", "root:x:0:\nhello:x:65532:\n", Attributes::mode(0o644))
        .file_from("hello", &binary, Attributes::mode(0o755));
    std::fs::metadata(&binary).map_err(|error| Failure::Binary(binary.clone(), error))?;
    let layout = Layout::create(out)?;
    let layers = [layout.layer(&layer, Compress::Gzip)?];
    let run = RunConfig {
        entrypoint: vec!["/hello".into()],
        env: vec!["PORT=8080".into()],
        user: "65532:65532".into(),
        exposed_ports: vec!["8080/tcp".into()],
        ..RunConfig::default()
    };
    let digest = layout.image_for(name, &platform.unwrap_or_else(Platform::current), &run, &layers)?;
    Ok(format!("{name} {digest} ({} KB) in {}", layers[0].size / 1000, out.display()))
}

/// Cargo puts both programs into one folder.
fn beside_us() -> Result<PathBuf, Failure> {
    let us = std::env::current_exe().map_err(|error| Failure::Step("find this program".into(), error))?;
    Ok(us.with_file_name("hello"))
}
