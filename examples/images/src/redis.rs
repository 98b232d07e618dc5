//! redis-server on Debian, under its own user, without persistence unless told otherwise.

use std::path::Path;

use coracle_images::builder::{Attributes, Compress, LayerBuilder, Layout, RunConfig};

use crate::{Failure, debian};

const NAME: &str = "coracle.local/redis:1";
const USER: u32 = 999;

pub fn build(out: &Path, cache: &Path) -> Result<String, Failure> {
    let packages = debian::fetch(cache, &["redis-server"])?;
    let base = debian::base(&packages)?;
    let mut application = LayerBuilder::new();
    debian::unpack(&mut application, &packages.application)?;
    debian::user(&base, &mut application, "redis", USER, "/data");
    application.directory("data", Attributes::mode(0o750).owner(USER, USER));
    let layout = Layout::create(out)?;
    let layers = [&base, &application, &debian::slim()].map(|layer| layout.layer(layer, Compress::Gzip));
    let layers = layers.into_iter().collect::<Result<Vec<_>, _>>()?;
    let run = RunConfig {
        entrypoint: vec!["/usr/bin/redis-server".into()],
        cmd: ["--bind", "0.0.0.0", "--protected-mode", "no", "--save", ""].map(Into::into).into(),
        env: vec!["PATH=/usr/sbin:/usr/bin".into()],
        user: "redis".into(),
        working_dir: "/data".into(),
        exposed_ports: vec!["6379/tcp".into()],
        volumes: vec!["/data".into()],
        ..RunConfig::default()
    };
    let digest = layout.image(NAME, &run, &layers)?;
    let size: u64 = layers.iter().map(|layer| layer.size).sum();
    Ok(format!("{NAME} {digest} ({} layers, {} KB) in {}", layers.len(), size / 1000, out.display()))
}
