//! The power of the whole site goes. The machines come back with each other's addresses and no registry: the cluster forms again, and
//! the pods run.

use std::net::Ipv4Addr;
use std::time::Instant;

use coracle_cluster_tests::site::{Site, Where, hello};
use serde_json::Value;

/// Where each server is, by the number of its machine, as one machine sees it.
fn addresses(site: &Site, seen_by: usize) -> Vec<(usize, String)> {
    let status = site.at(seen_by).try_coracle(&["status", "--servers", "-o", "json"]);
    let servers: Value = serde_json::from_str(&status.out).unwrap_or_default();
    let place = |server: &Value| {
        let number = server["name"].as_str()?.strip_prefix('m')?.parse().ok()?;
        Some((number, server["address"].as_str()?.to_owned()))
    };
    let mut places: Vec<_> = servers.as_array().into_iter().flatten().filter_map(place).collect();
    places.sort();
    places
}

/// Off they all go, at one moment or nearly so, and nothing that was not synced survives.
fn exchange_addresses(site: &mut Site) -> Vec<Ipv4Addr> {
    for number in 1..=3 {
        site.power_off(number);
    }
    let old: Vec<Ipv4Addr> = (1..=3).map(|number| site.address(number)).collect();
    let new: Vec<Ipv4Addr> = (1..=3).map(|number| old[number % 3]).collect();
    for (number, address) in (1..).zip(&new) {
        site.readdress(number, *address);
    }
    for number in 1..=3 {
        site.power_on(number);
    }
    new
}

#[test]
fn all_servers_come_back_with_exchanged_addresses() {
    let mut site = Site::new(3);
    for number in 1..=3 {
        site.on_disk(number, 512);
    }
    site.form(3, 0);
    site.at(2).import_hello();
    site.at(1).apply(&hello(3));
    site.wait("three copies", |site| site.ready_pods(1).len() == 3);
    let pods = site.ready_pods(1);
    let before: Vec<usize> = (1..=3).map(|number| site.at(number).readies()).collect();
    let new = exchange_addresses(&mut site);
    let began = Instant::now();
    for number in 1..=3 {
        site.at_mut(number).starts_with(&["up"]).start();
    }
    for number in 1..=3 {
        site.at_mut(number).await_ready(before[number - 1]);
    }
    let right: Vec<(usize, String)> = (1..).zip(&new).map(|(number, new)| (number, format!("{new}:6444"))).collect();
    for number in 1..=3 {
        site.wait(&format!("m{number} to know where the others are"), |site| addresses(site, number) == right);
    }
    println!("all know where all are {:?} after the power came back", began.elapsed());
    site.await_ready_nodes(1, 3);
    println!("all nodes ready {:?} after", began.elapsed());
    site.wait("three copies again", |site| site.ready_pods(2).len() == 3);
    assert_eq!(site.ready_pods(3), pods, "the same pods, each where its image and its volumes are");
    println!("the pods run {:?} after", began.elapsed());
    let address = site.service_address(1, "hello");
    for number in 1..=3 {
        site.await_hello(number, &address);
    }
    println!("the app answers everywhere {:?} after", began.elapsed());
    // Its certificate names the address where a server is now, and the API's own Service leads to all three.
    for number in 1..=3 {
        let said = site.coracle_from(Where::Outside, number, &["get", "nodes"]);
        assert_eq!(said.code, 0, "{}{}", said.out, said.err);
    }
    let mut expected: Vec<String> = new.iter().map(ToString::to_string).collect();
    expected.sort();
    site.wait("the API's Service to lead to the new addresses", |site| {
        let slice = site.at(1).get(&["endpointslices"]);
        let items = slice["items"].as_array().into_iter().flatten();
        let own = items.filter(|item| item["metadata"]["labels"]["kubernetes.io/service-name"] == "kubernetes");
        let endpoints = own.flat_map(|item| item["endpoints"].as_array().cloned().unwrap_or_default());
        let addresses = endpoints.flat_map(|one| one["addresses"].as_array().cloned().unwrap_or_default());
        let mut found: Vec<String> = addresses.filter_map(|one| one.as_str().map(str::to_owned)).collect();
        found.sort();
        found == expected
    });
    // What nodes say of themselves.
    let nodes = site.at(1).get(&["nodes"]);
    for node in nodes["items"].as_array().into_iter().flatten() {
        let number: usize = node["metadata"]["name"].as_str().and_then(|name| name[1..].parse().ok()).expect("a name");
        let internal = node["status"]["addresses"].as_array().into_iter().flatten();
        let internal: Vec<&Value> =
            internal.filter(|one| one["type"] == "InternalIP").map(|one| &one["address"]).collect();
        assert_eq!(internal, [&Value::from(new[number - 1].to_string())], "m{number}");
    }
}
