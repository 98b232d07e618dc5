//! The power of the whole site goes. The machines come back with each other's addresses and no registry: the cluster forms again, and
//! the pods run.

use coracle_cluster_tests::machine::workspace;
use coracle_cluster_tests::site::Site;

fn ready(site: &Site, seen_by: usize) -> usize {
    let pods = site.at(seen_by).get(&["pods"]);
    let ready = |pod: &&serde_json::Value| {
        let conditions = pod["status"]["conditions"].as_array();
        let ready = conditions.into_iter().flatten().any(|one| one["type"] == "Ready" && one["status"] == "True");
        ready && pod["metadata"]["deletionTimestamp"].is_null()
    };
    pods["items"].as_array().into_iter().flatten().filter(ready).count()
}

#[test]
fn all_servers_come_back_with_exchanged_addresses() {
    let mut site = Site::new(3);
    site.form(3, 0);
    site.at(2).import_hello();
    let app = std::fs::read_to_string(workspace().join("examples/hello.yaml")).expect("the example");
    site.at(1).apply(&app);
    site.wait("three copies", |site| ready(site, 1) == 3);
    let addresses: Vec<std::net::Ipv4Addr> = (1..=3).map(|number| site.address(number)).collect();
    for number in 1..=3 {
        // The pods and everything else of the machine end; what is on its disk stays.
        let said = site.at(number).try_coracle(&["down", "--timeout", "5"]);
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
        site.at_mut(number).kill();
    }
    // Out of each other's way first: no two machines have one address for a moment.
    for number in 1..=3 {
        let spare = std::net::Ipv4Addr::new(10, 99, 0, 100 + u8::try_from(number).expect("small"));
        site.readdress(number, spare);
    }
    for number in 1..=3 {
        site.readdress(number, addresses[number % 3]);
    }
    // A machine that was off remembers nobody's hardware address.
    for number in 1..=3 {
        assert_eq!(site.at(number).sh("ip neigh flush all").code, 0);
    }
    let before: Vec<usize> = (1..=3).map(|number| site.at(number).readies()).collect();
    for number in 1..=3 {
        site.at_mut(number).starts_with(&["up"]).start();
    }
    for number in 1..=3 {
        site.at_mut(number).await_ready(before[number - 1]);
    }
    site.await_ready_nodes(1, 3);
    site.wait("three copies again", |site| ready(site, 2) == 3);
    let service = site.at(1).get(&["service", "hello"]);
    let item = if service["items"].is_array() { &service["items"][0] } else { &service };
    let address = item["spec"]["clusterIP"].as_str().expect("an address").to_owned();
    for number in 1..=3 {
        site.wait(&format!("the app to answer on m{number}"), |site| {
            let said = site.at(number).http(&format!("{address}:80"), "/ask?host=hello");
            said.is_some_and(|said| said.contains("hello from hello-"))
        });
    }
    let status = site.at(3).coracle(&["status", "--servers", "-o", "json"]);
    let servers: serde_json::Value = serde_json::from_str(&status).expect("JSON");
    for server in servers.as_array().into_iter().flatten() {
        let number: usize = server["name"].as_str().and_then(|name| name[1..].parse().ok()).expect("a name");
        assert_eq!(server["address"], format!("{}:6444", addresses[number % 3]), "the log knows where they are");
    }
}
