//! Who gets in: certificates, tokens, other people's names, nobody.

mod support;

use serde_json::json;
use support::{Authority, Client, World};

const PODS: &str = "/api/v1/namespaces/default/pods";

#[tokio::test]
async fn strangers_see_the_version_and_the_health_and_nothing_else() {
    let world = World::open().await;
    let stranger = world.stranger();
    for path in ["/version", "/version/", "/healthz", "/livez", "/readyz"] {
        assert_eq!(stranger.get(path).await.code, 200, "{path}");
    }
    assert!(stranger.get("/version").await.json()["gitVersion"].as_str().unwrap().starts_with("v1.31."));
    for path in ["/api", "/apis", "/openapi/v3", PODS, "/metrics", "/api/v1/namespaces/default/secrets", "/nothing"] {
        assert_eq!(stranger.get(path).await.status().1, "Unauthorized", "{path}");
    }
    assert_eq!(stranger.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({})).await.code, 401);
}

#[tokio::test]
async fn those_who_are_known_but_no_administrators_may_only_ask_about_themselves() {
    let world = World::open().await;
    let user = Client::new(&world, Some(&world.authority.client("eve", &["team"])));
    let (code, reason, message) = user.get(PODS).await.status();
    assert_eq!((code, reason.as_str()), (403, "Forbidden"));
    assert!(message.contains("User \"eve\" cannot list it"), "{message}");
    assert_eq!(user.post(PODS, &json!({})).await.code, 403);
    let who = user.post("/apis/authentication.k8s.io/v1/selfsubjectreviews", &json!({})).await.json();
    assert_eq!(who["status"]["userInfo"], json!({"username": "eve", "groups": ["team", "system:authenticated"]}));
    let may = "/apis/authorization.k8s.io/v1/selfsubjectaccessreviews";
    let question = json!({"spec": {"resourceAttributes": {"verb": "get", "resource": "pods"}}});
    assert_eq!(user.post(may, &question).await.json()["status"]["allowed"], false);
    assert_eq!(world.admin().post(may, &question).await.json()["status"]["allowed"], true);
    let rules = "/apis/authorization.k8s.io/v1/selfsubjectrulesreviews";
    assert_eq!(world.admin().post(rules, &json!({})).await.json()["status"]["resourceRules"][0]["verbs"], json!(["*"]));
    assert_eq!(user.post(rules, &json!({})).await.json()["status"]["resourceRules"], json!([]));
    assert_eq!(world.admin().post(may, &json!([1])).await.code, 400);
    assert_eq!(world.admin().get(may).await.code, 405);
}

#[tokio::test]
async fn a_certificate_of_another_authority_opens_nothing() {
    let world = World::open().await;
    let forged = Authority::new().client("kubernetes-admin", &["system:masters"]);
    let forger = Client::new(&world, Some(&forged));
    // TLS 1.3 lets the client believe it is in until the first answer.
    let entered = async {
        let stream = forger.connect(b"http/1.1").await.ok()?;
        let (mut sender, connection) =
            hyper::client::conn::http1::handshake(hyper_util::rt::TokioIo::new(stream)).await.ok()?;
        tokio::spawn(connection);
        let request = http::Request::get(PODS).header("host", "localhost").body(String::new()).unwrap();
        sender.send_request(request).await.ok()
    };
    assert!(entered.await.is_none());
    // A server's certificate is not a client's.
    let server = world.authority.server();
    let odd = Client::new(&world, Some(&server));
    assert!(
        odd.connect(b"h2").await.is_err() || {
            let stream = odd.connect(b"h2").await.unwrap();
            let (mut sender, connection) = hyper::client::conn::http2::handshake(
                hyper_util::rt::TokioExecutor::new(),
                hyper_util::rt::TokioIo::new(stream),
            )
            .await
            .unwrap();
            tokio::spawn(connection);
            sender
                .send_request(http::Request::get("https://localhost/version").body(String::new()).unwrap())
                .await
                .is_err()
        }
    );
}

#[tokio::test]
async fn tokens_are_asked_about() {
    let world = World::open().await;
    let bearer = |value: &str| world.stranger().with("authorization", value);
    assert_eq!(bearer("Bearer good").get(PODS).await.code, 200);
    assert_eq!(bearer("bearer good").get(PODS).await.code, 200);
    assert_eq!(bearer("Bearer user").get(PODS).await.code, 403);
    for bad in ["Bearer bad", "Bearer ", "Bearer", "Basic YTpi", "good"] {
        assert_eq!(bearer(bad).get(PODS).await.status().1, "Unauthorized", "{bad}");
    }
    // Who holds a certificate is who it says, whatever token goes with it.
    assert_eq!(world.admin().with("authorization", "Bearer bad").get(PODS).await.code, 200);
}

#[tokio::test]
async fn another_name_is_honoured_or_refused_never_ignored() {
    let world = World::open().await;
    let as_user = world.admin().with("impersonate-user", "eve");
    assert_eq!(as_user.get(PODS).await.code, 403);
    let as_admin = world.admin().with("impersonate-user", "eve").with("impersonate-group", "system:masters");
    assert_eq!(as_admin.get(PODS).await.code, 200);
    assert_eq!(world.admin().with("impersonate-group", "x").get(PODS).await.code, 400);
    let eve =
        Client::new(&world, Some(&world.authority.client("eve", &[]))).with("impersonate-user", "kubernetes-admin");
    let (code, _, message) = eve.get(PODS).await.status();
    assert!(code == 403 && message.contains("cannot impersonate"), "{message}");
}
