//! nginx on Debian, serving on port 80, logging to its standard output.

use std::path::Path;

use coracle_images::builder::{Attributes, Compress, LayerBuilder, Layout, RunConfig};

use crate::{Failure, debian};

const NAME: &str = "coracle.local/nginx:1";

const CONFIG: &str = "\
user www-data;
worker_processes auto;
pid /run/nginx.pid;
error_log /dev/stderr notice;
events { worker_connections 1024; }
http {
    include /etc/nginx/mime.types;
    default_type application/octet-stream;
    access_log /dev/stdout;
    sendfile on;
    keepalive_timeout 65;
    include /etc/nginx/conf.d/*.conf;
}
";

const SITE: &str = "\
server {
    listen 80 default_server;
    root /usr/share/nginx/html;
    location = /healthz { access_log off; return 200 \"ok\\n\"; }
}
";

pub fn build(out: &Path, cache: &Path) -> Result<String, Failure> {
    let packages = debian::fetch(cache, &["nginx-light"])?;
    let base = debian::base(&packages)?;
    let mut application = LayerBuilder::new();
    debian::unpack(&mut application, &packages.application)?;
    application
        .file("etc/nginx/nginx.conf", CONFIG, Attributes::mode(0o644))
        .file("etc/nginx/conf.d/default.conf", SITE, Attributes::mode(0o644))
        .directory("var/lib/nginx", Attributes::mode(0o755).owner(33, 33))
        .directory("var/log/nginx", Attributes::mode(0o755).owner(33, 4));
    // Debian's page goes, ours comes: an opaque directory.
    let mut slim = debian::slim();
    slim.opaque("usr/share/nginx/html", Attributes::mode(0o755)).file(
        "usr/share/nginx/html/index.html",
        "<!doctype html><title>nginx on Coracle</title><p>nginx on Coracle says hello.\n",
        Attributes::mode(0o644),
    );
    let layout = Layout::create(out)?;
    let layers = [&base, &application, &slim].map(|layer| layout.layer(layer, Compress::Gzip));
    let layers = layers.into_iter().collect::<Result<Vec<_>, _>>()?;
    let run = RunConfig {
        entrypoint: vec!["/usr/sbin/nginx".into()],
        cmd: vec!["-g".into(), "daemon off;".into()],
        env: vec!["PATH=/usr/sbin:/usr/bin".into()],
        exposed_ports: vec!["80/tcp".into()],
        stop_signal: Some("SIGQUIT".into()),
        ..RunConfig::default()
    };
    let digest = layout.image(NAME, &run, &layers)?;
    let size: u64 = layers.iter().map(|layer| layer.size).sum();
    Ok(format!("{NAME} {digest} ({} layers, {} KB) in {}", layers.len(), size / 1000, out.display()))
}
