//! One try of a probe, or one run of a hook: HTTP, gRPC and TCP from the node to the pod's address, commands in the container.

mod tls;

use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use coracle_lifecycle::pod::{Container, Handler, PortRef};
use coracle_protocol::health::HealthCheckRequest;
use coracle_protocol::health::health_check_response::ServingStatus;
use coracle_protocol::health::health_client::HealthClient;
use http_body_util::{BodyExt as _, Empty, Limited};
use hyper_util::rt::TokioIo;
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::TcpStream;

use crate::facilities::Containers;
use crate::pods::node::Paths;

/// Of an answer that says why.
const MAX_BODY: usize = 10 << 10;

/// Whom to ask.
#[derive(Clone)]
pub struct Target {
    /// The pod's uid.
    pub pod: String,
    /// Its address.
    pub ip: Ipv4Addr,
    /// Runs commands.
    pub containers: Arc<dyn Containers>,
    /// Knows how.
    pub paths: Paths,
}

/// Runs a handler, at most `within`. `Err` says why it counts as a failure.
///
/// # Errors
/// In words, as in an `Unhealthy` event.
pub async fn run(target: &Target, container: &Container, handler: &Handler, within: Duration) -> Result<(), String> {
    match handler {
        Handler::Exec(command) => exec(target, container, command, within).await,
        Handler::Sleep(wait_ms) => {
            tokio::time::sleep(Duration::from_millis(*wait_ms).min(within)).await;
            Ok(())
        }
        Handler::Tcp { host, port } => {
            let address = address(target, container, host, port)?;
            timely(within, async {
                TcpStream::connect(address).await.map(drop).map_err(|error| format!("dial tcp {address}: {error}"))
            })
            .await
        }
        Handler::Http { tls, host, port, path, headers } => {
            let address = address(target, container, host, port)?;
            let get = Get { tls: *tls, address, host, path, headers };
            timely(within, get.send()).await
        }
        Handler::Grpc { port, service } => {
            timely(within, health(SocketAddr::new(target.ip.into(), *port), service)).await
        }
    }
}

async fn timely<T>(within: Duration, work: impl Future<Output = Result<T, String>>) -> Result<T, String> {
    tokio::time::timeout(within, work)
        .await
        .unwrap_or_else(|_| Err(format!("no answer within {} s", within.as_secs_f64())))
}

/// Names other than addresses are not looked up: a probe must not depend on a name server.
fn address(target: &Target, container: &Container, host: &str, port: &PortRef) -> Result<SocketAddr, String> {
    let ip: IpAddr = match host {
        "" => target.ip.into(),
        "localhost" => Ipv4Addr::LOCALHOST.into(),
        other => other.parse().map_err(|_| format!("host `{other}` is not an address"))?,
    };
    let port = container.port(port).ok_or_else(|| match port {
        PortRef::Name(name) => format!("the container has no port named `{name}`"),
        PortRef::Number(number) => format!("{number} is not a port"),
    })?;
    Ok(SocketAddr::new(ip, port))
}

/// A question by HTTP.
struct Get<'a> {
    tls: bool,
    address: SocketAddr,
    host: &'a str,
    path: &'a str,
    headers: &'a [(String, String)],
}

impl Get<'_> {
    fn failed(&self, error: &(dyn std::error::Error + 'static)) -> String {
        let scheme = if self.tls { "https" } else { "http" };
        format!("Get \"{scheme}://{}{}\": {}", self.address, self.path, coracle_base::one_line(error))
    }

    async fn send(self) -> Result<(), String> {
        let stream = TcpStream::connect(self.address).await.map_err(|error| self.failed(&error))?;
        let _ = stream.set_nodelay(true);
        if self.tls {
            let stream = tls::connect(stream, self.address.ip()).await.map_err(|error| self.failed(&error))?;
            return self.over(stream).await;
        }
        self.over(stream).await
    }

    async fn over(self, stream: impl AsyncRead + AsyncWrite + Unpin) -> Result<(), String> {
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(TokioIo::new(stream)).await.map_err(|error| self.failed(&error))?;
        let name = if self.host.is_empty() { self.address.to_string() } else { self.host.to_owned() };
        let headers = self.headers;
        let named =
            |header: &str| headers.iter().find(|(name, _)| name.eq_ignore_ascii_case(header)).map(|(_, value)| value);
        let mut request = http::Request::get(self.path)
            .header(http::header::HOST, named("host").unwrap_or(&name))
            .header(http::header::CONNECTION, "close");
        if named("user-agent").is_none() {
            // Servers know this word and leave such requests out of their logs.
            request = request.header(http::header::USER_AGENT, "kube-probe/1.31 (coracle)");
        }
        if named("accept").is_none() {
            request = request.header(http::header::ACCEPT, "*/*");
        }
        for (name, value) in headers.iter().filter(|(name, _)| !name.eq_ignore_ascii_case("host")) {
            request = request.header(name, value);
        }
        let request = request.body(Empty::<Bytes>::new()).map_err(|error| self.failed(&error))?;
        let answer = async {
            let response = sender.send_request(request).await.map_err(|error| self.failed(&error))?;
            let status = response.status();
            if status.is_success() || status.is_redirection() {
                return Ok(());
            }
            let body =
                Limited::new(response.into_body(), MAX_BODY).collect().await.map(http_body_util::Collected::to_bytes);
            let text = body.map(|bytes| String::from_utf8_lossy(&bytes).trim().chars().take(200).collect::<String>());
            let text = text.ok().filter(|text| !text.is_empty()).map(|text| format!(": {text}")).unwrap_or_default();
            Err(format!("HTTP probe failed with statuscode: {}{text}", status.as_u16()))
        };
        let connection = async {
            let _ = connection.await;
            std::future::pending::<()>().await;
        };
        tokio::select! {
            // The answer drops the connection: nothing of a probe stays open.
            answer = answer => answer,
            () = connection => Err(self.failed(&std::io::Error::other("the connection was closed"))),
        }
    }
}

/// What gRPC's health service says of a service; in upstream's words when it does not serve.
async fn health(address: SocketAddr, service: &str) -> Result<(), String> {
    let lost = |error: &(dyn std::error::Error + 'static)| {
        format!("failed to connect service {address:?}: {}", coracle_base::one_line(error))
    };
    let endpoint =
        tonic::transport::Endpoint::from_shared(format!("http://{address}")).map_err(|error| lost(&error))?;
    let channel = endpoint.connect().await.map_err(|error| lost(&error))?;
    let asked = HealthCheckRequest { service: service.to_owned() };
    let answer = HealthClient::new(channel).check(asked).await.map_err(|status| match status.code() {
        tonic::Code::Unimplemented => {
            "this server does not implement the grpc health protocol (grpc.health.v1.Health)".to_owned()
        }
        code => format!("health rpc probe failed ({code:?}): {}", status.message()),
    })?;
    match answer.get_ref().status() {
        ServingStatus::Serving => Ok(()),
        status => Err(format!("service unhealthy (responded with {:?})", status.as_str_name())),
    }
}

async fn exec(target: &Target, container: &Container, command: &[String], within: Duration) -> Result<(), String> {
    let noted = std::fs::read(target.paths.process(&target.pod, &container.name)).ok();
    let process = noted.and_then(|bytes| serde_json::from_slice::<oci_spec::runtime::Process>(&bytes).ok());
    let mut process = process.ok_or_else(|| "the container's process is not known to the node".to_owned())?;
    process.set_args(Some(command.to_vec()));
    let outcome = target.containers.exec(&target.pod, &container.name, process, within).await;
    let outcome = outcome.map_err(|failure| failure.message)?;
    if outcome.timed_out {
        return Err(format!("command {command:?} timed out after {} s", within.as_secs_f64()));
    }
    if outcome.code == 0 {
        return Ok(());
    }
    let output: String = outcome.output.trim().chars().take(300).collect();
    Err(if output.is_empty() { format!("command exited with {}", outcome.code) } else { output })
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::fakes::FakeContainers;
    use coracle_lifecycle::pod::Pod;
    use serde_json::{Value, json};
    use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
    use tokio::net::TcpListener;

    async fn attempt(handler: Value, ports: Value, within_ms: u64) -> Result<(), String> {
        let pod = Pod::parse(&json!({
            "metadata": {"name": "p", "namespace": "n", "uid": "u"},
            "spec": {"containers": [{"name": "c", "ports": ports, "livenessProbe": handler}]},
        }))
        .unwrap();
        let paths = Paths { data: "/nonexistent".into(), run: "/nonexistent".into() };
        let target =
            Target { pod: "u".into(), ip: Ipv4Addr::LOCALHOST, containers: Arc::new(FakeContainers::default()), paths };
        let probe = pod.containers[0].liveness.as_ref().unwrap();
        run(&target, &pod.containers[0], &probe.handler, Duration::from_millis(within_ms)).await
    }

    /// Answers every request with this; empty = never.
    async fn server(answer: &'static str) -> u16 {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            let mut held = Vec::new();
            while let Ok((mut stream, _)) = listener.accept().await {
                let mut request = [0; 4096];
                let _ = stream.read(&mut request).await;
                if answer.is_empty() {
                    held.push(stream);
                } else {
                    let _ = stream.write_all(answer.as_bytes()).await;
                }
            }
        });
        port
    }

    #[tokio::test]
    async fn http() {
        let ok = server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        assert_eq!(attempt(json!({"httpGet": {"port": ok, "path": "/z"}}), json!([]), 5000).await, Ok(()));
        assert_eq!(
            attempt(json!({"httpGet": {"port": "web"}}), json!([{"name": "web", "containerPort": ok}]), 5000).await,
            Ok(())
        );
        let moved = server("HTTP/1.1 302 Found\r\nLocation: /x\r\nContent-Length: 0\r\n\r\n").await;
        assert_eq!(attempt(json!({"httpGet": {"port": moved}}), json!([]), 5000).await, Ok(()));
        let bad = server("HTTP/1.1 503 No\r\nContent-Length: 5\r\n\r\nbusy\n").await;
        assert_eq!(
            attempt(json!({"httpGet": {"port": bad}}), json!([]), 5000).await,
            Err("HTTP probe failed with statuscode: 503: busy".into())
        );
        let silent = server("").await;
        let words = attempt(json!({"httpGet": {"port": silent}}), json!([]), 50).await.unwrap_err();
        assert_eq!(words, "no answer within 0.05 s");
        let words = attempt(json!({"httpGet": {"port": "nope"}}), json!([]), 50).await.unwrap_err();
        assert_eq!(words, "the container has no port named `nope`");
    }

    #[tokio::test]
    async fn https_with_any_certificate() {
        let made = rcgen::generate_simple_self_signed(["elsewhere.example".to_owned()]).unwrap();
        let key = tokio_rustls::rustls::pki_types::PrivateKeyDer::Pkcs8(made.signing_key.serialize_der().into());
        let provider = Arc::new(tokio_rustls::rustls::crypto::ring::default_provider());
        let config = tokio_rustls::rustls::ServerConfig::builder_with_provider(provider)
            .with_safe_default_protocol_versions()
            .unwrap()
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .unwrap();
        let acceptor = tokio_rustls::TlsAcceptor::from(Arc::new(config));
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        tokio::spawn(async move {
            while let Ok((stream, _)) = listener.accept().await {
                let Ok(mut stream) = acceptor.accept(stream).await else { continue };
                let _ = stream.read(&mut [0; 4096]).await;
                let _ = stream.write_all(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
            }
        });
        let get = |scheme: &str| json!({"httpGet": {"port": port, "scheme": scheme}});
        assert_eq!(attempt(get("HTTPS"), json!([]), 5000).await, Ok(()));
        attempt(get("HTTP"), json!([]), 5000).await.unwrap_err();
        let plain = server("HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok").await;
        let words = attempt(json!({"httpGet": {"port": plain, "scheme": "HTTPS"}}), json!([]), 5000).await.unwrap_err();
        assert!(words.starts_with("Get \"https://127.0.0.1:"), "{words}");
    }

    /// A server that knows two services.
    struct Healths;

    #[tonic::async_trait]
    impl coracle_protocol::health::health_server::Health for Healths {
        async fn check(
            &self,
            request: tonic::Request<HealthCheckRequest>,
        ) -> Result<tonic::Response<coracle_protocol::health::HealthCheckResponse>, tonic::Status> {
            let status = match request.get_ref().service.as_str() {
                "" => ServingStatus::Serving,
                "ill" => ServingStatus::NotServing,
                other => return Err(tonic::Status::not_found(format!("no service {other}"))),
            };
            Ok(tonic::Response::new(coracle_protocol::health::HealthCheckResponse { status: status.into() }))
        }
    }

    #[tokio::test]
    async fn grpc() {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let port = listener.local_addr().unwrap().port();
        let service = coracle_protocol::health::health_server::HealthServer::new(Healths);
        let incoming = tokio_stream::wrappers::TcpListenerStream::new(listener);
        tokio::spawn(tonic::transport::Server::builder().add_service(service).serve_with_incoming(incoming));
        let ask = |port: u16, service: &str| json!({"grpc": {"port": port, "service": service}});
        assert_eq!(attempt(ask(port, ""), json!([]), 5000).await, Ok(()));
        assert_eq!(
            attempt(ask(port, "ill"), json!([]), 5000).await,
            Err("service unhealthy (responded with \"NOT_SERVING\")".into())
        );
        let unknown = attempt(ask(port, "x"), json!([]), 5000).await.unwrap_err();
        assert_eq!(unknown, "health rpc probe failed (NotFound): no service x");
        let other = server("HTTP/1.1 200 OK\r\n\r\n").await;
        attempt(ask(other, ""), json!([]), 5000).await.unwrap_err();
    }

    #[tokio::test]
    async fn tcp() {
        let open = server("").await;
        assert_eq!(attempt(json!({"tcpSocket": {"port": open}}), json!([]), 5000).await, Ok(()));
        let closed = {
            let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
            listener.local_addr().unwrap().port()
        };
        assert!(
            attempt(json!({"tcpSocket": {"port": closed}}), json!([]), 5000).await.unwrap_err().contains("refused")
        );
    }
}
