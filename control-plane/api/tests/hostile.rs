//! What no honest client sends: garbage, slowness, size, depth. The door answers or hangs up, and serves the next one.

mod support;

use std::io::ErrorKind;
use std::time::{Duration, Instant};

use coracle_manifests::kinds::KINDS;
use http_body_util::{BodyExt as _, StreamBody};
use hyper_util::rt::{TokioExecutor, TokioIo};
use serde_json::{Value, json};
use support::World;
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::TcpStream;

const MAPS: &str = "/api/v1/namespaces/default/configmaps";

async fn is_open(world: &World) {
    assert_eq!(world.admin().get(MAPS).await.code, 200, "the next one is served");
}

/// Reads to the end; an abrupt one is an end too.
async fn rest(stream: &mut (impl tokio::io::AsyncRead + Unpin)) -> Vec<u8> {
    let mut all = Vec::new();
    let read = tokio::time::timeout(Duration::from_secs(60), async {
        let mut chunk = [0; 4096];
        loop {
            match stream.read(&mut chunk).await {
                Ok(0) => return,
                Ok(count) => all.extend_from_slice(&chunk[..count]),
                Err(error) if [ErrorKind::ConnectionReset, ErrorKind::UnexpectedEof].contains(&error.kind()) => return,
                Err(error) => panic!("{error}"),
            }
        }
    });
    assert!(read.await.is_ok(), "the connection is not closed");
    all
}

#[tokio::test]
async fn plain_http_and_garbage_before_tls_are_hung_up_on() {
    let world = World::open().await;
    for bytes in [&b"GET / HTTP/1.1\r\nHost: x\r\n\r\n"[..], &[0xff; 3000], b"\x16\x03\x01\xff\xff"] {
        let mut stream = TcpStream::connect(world.address).await.unwrap();
        stream.write_all(bytes).await.unwrap();
        stream.shutdown().await.unwrap();
        let answer = rest(&mut stream).await;
        assert!(answer.len() < 100, "{answer:?}");
    }
    is_open(&world).await;
}

#[tokio::test]
async fn garbage_within_tls_is_refused() {
    let world = World::impatient().await;
    let long = format!("GET /{} HTTP/1.1\r\nHost: x\r\n\r\n", "a".repeat(200_000));
    let heads = format!("GET /version HTTP/1.1\r\nHost: x\r\n{}\r\n", "A: b\r\n".repeat(50_000));
    for (bytes, code) in [
        ("\0\0\0\0\0\0\0\0\r\n\r\n", "400"),
        ("GET /version HTTP/9.9\r\n\r\n", "400"),
        ("GET version HTTP/1.1\r\nHost: x\r\n\r\n", "404"),
        ("POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Length: -1\r\n\r\n", "400"),
        ("POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nContent-Length: 1\r\nContent-Length: 2\r\n\r\n", "400"),
        ("POST /api/v1/namespaces HTTP/1.1\r\nHost: x\r\nTransfer-Encoding: chunked\r\n\r\nZZ\r\n", "400"),
        (&long, "414"),
        (&heads, "431"),
    ] {
        let mut stream = world.admin().connect(b"http/1.1").await.unwrap();
        // It may hang up before it has read everything.
        let _ = stream.write_all(bytes.as_bytes()).await;
        let answer = String::from_utf8_lossy(&rest(&mut stream).await).into_owned();
        let line = answer.lines().next().unwrap_or_default();
        assert!(line.is_empty() || line.contains(code) || line.contains("431"), "{code} was expected: {line}");
    }
    let mut stream = world.admin().connect(b"h2").await.unwrap();
    stream.write_all(b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n\xff\xff\xff\xff\xff\xff\xff\xff\xff").await.unwrap();
    rest(&mut stream).await;
    is_open(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn strangers_who_say_nothing_keep_nobody_out_and_do_not_stay() {
    let world = World::impatient().await;
    let begun = Instant::now();
    let mut silent = Vec::new();
    for _ in 0..200 {
        silent.push(TcpStream::connect(world.address).await.unwrap());
    }
    // Those of one address beyond their share are hung up on at once.
    let mut closed = 0;
    for stream in &mut silent[64..] {
        let mut byte = [0];
        closed += usize::from(matches!(
            tokio::time::timeout(Duration::from_secs(5), stream.read(&mut byte)).await,
            Ok(Ok(0) | Err(_))
        ));
    }
    assert_eq!(closed, 136);
    // The rest have a second to get through TLS.
    for stream in &mut silent[..64] {
        rest(stream).await;
    }
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    is_open(&world).await;
}

#[tokio::test(flavor = "multi_thread")]
async fn a_stranger_within_tls_who_says_nothing_does_not_stay() {
    let world = World::impatient().await;
    let begun = Instant::now();
    let stranger = world.stranger();
    let (mut one, mut two, mut drip) = (
        stranger.connect(b"h2").await.unwrap(),
        stranger.connect(b"http/1.1").await.unwrap(),
        stranger.connect(b"").await.unwrap(),
    );
    drip.write_all(b"GET /version HTTP/1.1\r\nX: ").await.unwrap();
    tokio::join!(rest(&mut one), rest(&mut two), rest(&mut drip));
    assert!(begun.elapsed() < Duration::from_secs(20), "{:?}", begun.elapsed());
    is_open(&world).await;
}

#[tokio::test]
async fn slow_bodies_are_not_waited_for() {
    let world = World::impatient().await;
    let admin = world.admin();
    let mut stream = admin.connect(b"http/1.1").await.unwrap();
    let head =
        format!("POST {MAPS} HTTP/1.1\r\nHost: x\r\nContent-Type: application/json\r\nContent-Length: 100\r\n\r\n{{");
    stream.write_all(head.as_bytes()).await.unwrap();
    let answer = String::from_utf8_lossy(&rest(&mut stream).await).into_owned();
    assert!(answer.starts_with("HTTP/1.1 408 ") && answer.contains("\"reason\":\"Timeout\""), "{answer}");
    is_open(&world).await;
}

#[tokio::test]
async fn a_watch_of_a_member_outlives_the_patience_with_strangers() {
    let world = World::impatient().await;
    let mut lines = world
        .stranger()
        .with("authorization", "Bearer good")
        .watch(&format!("{MAPS}?watch=true&timeoutSeconds=3"))
        .await;
    let begun = Instant::now();
    assert!(lines.next().await.is_none());
    assert!(begun.elapsed() > Duration::from_millis(2500), "the watch had its time: {:?}", begun.elapsed());
}

#[tokio::test]
async fn bodies_that_are_too_large_or_break_off() {
    let world = World::open().await;
    let admin = world.admin();
    let huge = json!({"metadata": {"name": "a"}, "data": {"k": "x".repeat(4 << 20)}});
    assert_eq!(admin.post(MAPS, &huge).await.status().1, "RequestEntityTooLarge");
    let large = json!({"metadata": {"name": "a"}, "data": {"k": "x".repeat(2 << 20)}});
    let reply = admin.post(MAPS, &large).await;
    assert!([413, 422].contains(&reply.code.as_u16()), "{}", reply.code);
    let mut many = serde_json::Map::new();
    for index in 0..1000 {
        many.insert(format!("k{index}"), json!("x".repeat(900)));
    }
    assert_eq!(admin.post(MAPS, &json!({"metadata": {"name": "many"}, "data": many})).await.code, 201);

    let stream = admin.connect(b"h2").await.unwrap();
    let (mut sender, connection) =
        hyper::client::conn::http2::handshake(TokioExecutor::new(), TokioIo::new(stream)).await.unwrap();
    tokio::spawn(connection);
    let (chunks, body) = tokio::sync::mpsc::channel::<Result<hyper::body::Frame<bytes::Bytes>, std::io::Error>>(1);
    let body = StreamBody::new(tokio_stream::wrappers::ReceiverStream::new(body));
    let request = http::Request::post(format!("https://localhost{MAPS}")).body(body.boxed()).unwrap();
    let asked = tokio::spawn(sender.send_request(request));
    chunks.send(Ok(hyper::body::Frame::data("{\"metadata\":".into()))).await.unwrap();
    chunks.send(Err(std::io::Error::other("gone"))).await.unwrap();
    drop(asked);
    is_open(&world).await;
}

#[tokio::test]
async fn depth_and_odd_json_are_refused_without_a_fall() {
    let world = World::open().await;
    let admin = world.admin();
    for deep in [
        format!("{}1{}", "[".repeat(100_000), "]".repeat(100_000)),
        format!("{}1{}", "{\"a\":".repeat(100_000), "}".repeat(100_000)),
    ] {
        for (method, path, form) in [
            ("POST", MAPS.to_owned(), "application/json"),
            ("POST", MAPS.to_owned(), "application/yaml"),
            ("PATCH", "/api/v1/namespaces/default".to_owned(), "application/merge-patch+json"),
            ("DELETE", format!("{MAPS}/a"), "application/json"),
            ("POST", "/apis/authentication.k8s.io/v1/selfsubjectreviews".to_owned(), "application/json"),
        ] {
            assert_eq!(admin.ask(method, &path, form, deep.clone()).await.code, 400, "{method} {path} {form}");
        }
    }
    for text in [
        "",
        " ",
        "null",
        "1",
        "\"x\"",
        "[]",
        "{}",
        "{\"metadata\":null}",
        "{\"metadata\":[]}",
        "{\"kind\":3}",
        "\u{feff}{}",
        "{\"a\":1}{",
        "\0",
        "{\"metadata\":{\"name\":\"\\ud800\"}}",
    ] {
        for kind in KINDS {
            let path = collection(kind);
            let reply = admin.ask("POST", &path, "application/json", text.to_owned()).await;
            assert!((400..500).contains(&reply.code.as_u16()), "{path} {text}: {}", reply.code);
            reply.status();
        }
    }
    let bomb = "a: &a [x,x,x,x,x,x,x,x,x,x]\nb: &b [*a,*a,*a,*a,*a,*a,*a,*a,*a,*a]\nc: &c [*b,*b,*b,*b,*b,*b,*b,*b,*b,*b]\nd: &d [*c,*c,*c,*c,*c,*c,*c,*c,*c,*c]\ne: &e [*d,*d,*d,*d,*d,*d,*d,*d,*d,*d]\nf: &f [*e,*e,*e,*e,*e,*e,*e,*e,*e,*e]\ng: [*f,*f,*f,*f,*f,*f,*f,*f,*f,*f]\n";
    assert_eq!(admin.ask("POST", MAPS, "application/yaml", bomb).await.code, 400);
    is_open(&world).await;
}

fn collection(kind: &coracle_manifests::kinds::Kind) -> String {
    let base = if kind.group.is_empty() {
        format!("/api/{}", kind.version)
    } else {
        format!("/apis/{}/{}", kind.group, kind.version)
    };
    let scope = if kind.namespaced { "/namespaces/default" } else { "" };
    format!("{base}{scope}/{}", kind.plural)
}

/// A source of odd trees that is the same in each run.
struct Odd(u64);

impl Odd {
    fn next(&mut self, below: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 >> 33).unwrap_or(0) % below
    }

    fn tree(&mut self, depth: usize) -> Value {
        const WORDS: [&str; 30] = [
            "metadata",
            "name",
            "namespace",
            "labels",
            "annotations",
            "finalizers",
            "ownerReferences",
            "spec",
            "status",
            "template",
            "containers",
            "image",
            "ports",
            "port",
            "selector",
            "matchLabels",
            "clusterIP",
            "clusterIPs",
            "replicas",
            "data",
            "type",
            "resourceVersion",
            "conditions",
            "phase",
            "nodeName",
            "op",
            "path",
            "value",
            "uid",
            "$patch",
        ];
        match self.next(if depth == 0 { 6 } else { 9 }) {
            0 => Value::Null,
            1 => json!(self.next(2) == 0),
            2 => json!(i64::try_from(self.next(70_000)).unwrap_or(0) - 2),
            3 => json!(1.5),
            4 => json!(WORDS[self.next(WORDS.len())]),
            5 => json!(["a", "None", "10.43.0.77", "replace", "/spec", ""][self.next(6)]),
            6 => Value::Array((0..self.next(3)).map(|_| self.tree(depth - 1)).collect()),
            _ => (0..self.next(6)).map(|_| (WORDS[self.next(WORDS.len())].to_owned(), self.tree(depth - 1))).collect(),
        }
    }
}

#[tokio::test(flavor = "multi_thread")]
async fn no_tree_brings_the_door_down() {
    let world = World::open().await;
    let admin = world.admin();
    let mut odd = Odd(0x9e37_79b9_7f4a_7c15);
    for kind in KINDS {
        let mut value = json!({
            "apiVersion": kind.api_version(), "kind": kind.kind, "metadata": {"name": "odd"}, "spec": {}, "status": {},
        });
        if kind.namespaced {
            value["metadata"]["namespace"] = json!("default");
        }
        world.cluster.put(value);
    }
    for round in 0..40 {
        for kind in KINDS {
            let object = format!("{}/odd", collection(kind));
            let (method, path, form) = match odd.next(9) {
                0 | 1 => ("POST", collection(kind), "application/json"),
                2 => ("PUT", object, "application/json"),
                3 => ("PATCH", object, "application/merge-patch+json"),
                4 => ("PATCH", object, "application/strategic-merge-patch+json"),
                5 => ("PATCH", object, "application/json-patch+json"),
                6 => ("PATCH", format!("{object}/status"), "application/merge-patch+json"),
                7 => ("PUT", format!("{object}/scale"), "application/json"),
                _ => ("PATCH", format!("{object}/scale"), "application/merge-patch+json"),
            };
            let mut tree = odd.tree(5);
            if odd.next(2) == 0 && form != "application/json-patch+json" {
                tree = json!({"metadata": {"name": "odd"}, "spec": tree, "status": odd.tree(4)});
            } else if form == "application/json-patch+json" {
                tree = json!([{"op": "replace", "path": "/spec", "value": tree}, odd.tree(2)]);
            }
            let loose = if odd.next(2) == 0 { "?fieldValidation=Ignore" } else { "" };
            let reply = admin.ask(method, &format!("{path}{loose}"), form, tree.to_string()).await;
            assert!(
                reply.code.as_u16() < 500,
                "round {round}: {method} {path} {tree}: {} {:?}",
                reply.code,
                reply.body
            );
        }
    }
    // Whatever was let in can be shown in every form, and deleted.
    for kind in KINDS {
        for accept in ["application/json", "application/json;as=Table;v=v1;g=meta.k8s.io"] {
            let shown = world.admin().with("accept", accept).get(&collection(kind)).await;
            assert_eq!(shown.code, 200, "{}", kind.kind);
        }
        admin.delete(&format!("{}/odd", collection(kind))).await;
    }
    is_open(&world).await;
}
