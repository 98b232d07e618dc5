//! Services and EndpointSlices.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::Value;

use super::{Found, is_label, names::shown};
use crate::problem::Reason;
use crate::view::{list, text};

impl Found {
    pub(super) fn service(&mut self, spec: &Value) {
        let address = text(&spec["clusterIP"]);
        let headless = address == "None";
        if !headless {
            self.required("spec.ports", &spec["ports"]);
        }
        self.labels(&spec["selector"], "spec.selector");
        self.service_ports(list(&spec["ports"]));
        if !address.is_empty() && !headless && address.parse::<Ipv4Addr>().is_err() {
            let message = format!("`{}` is neither an IPv4 address nor `None`", shown(address));
            self.add("spec.clusterIP", Reason::Invalid, message, None);
        }
        let all = list(&spec["clusterIPs"]);
        if all.len() > 1 {
            self.add("spec.clusterIPs", Reason::Unsupported, "one address is supported", None);
        } else if let [first] = all
            && text(first) != address
        {
            self.add("spec.clusterIPs[0]", Reason::Invalid, "must be the same as `clusterIP`", None);
        }
        let families = list(&spec["ipFamilies"]);
        if families.len() > 1 || families.iter().any(|family| family != "IPv4") {
            self.add("spec.ipFamilies", Reason::Unsupported, "only [IPv4] is supported yet", None);
        }
    }

    fn service_ports(&mut self, ports: &[Value]) {
        let (mut names, mut numbers) = (BTreeSet::new(), BTreeSet::new());
        for (index, port) in ports.iter().enumerate() {
            let at = format!("spec.ports[{index}]");
            if self.required(&format!("{at}.port"), &port["port"]) {
                self.range(&format!("{at}.port"), &port["port"], 1, 65535);
            }
            self.port(&format!("{at}.targetPort"), &port["targetPort"]);
            let (name, path) = (text(&port["name"]), format!("{at}.name"));
            if name.is_empty() {
                if ports.len() > 1 {
                    self.add(&path, Reason::Required, "with several ports each has a name", None);
                }
            } else {
                self.label(&path, name, "a port name");
                if !names.insert(name) {
                    self.add(&path, Reason::Duplicate, format!("two ports are called `{}`", shown(name)), None);
                }
            }
            if !text(&port["appProtocol"]).is_empty() {
                self.label_key(&format!("{at}.appProtocol"), text(&port["appProtocol"]), "a protocol's name");
            }
            if !numbers.insert((port["port"].as_i64(), text(&port["protocol"]))) {
                let message = format!("port {} is given twice for this protocol", port["port"]);
                self.add(&at, Reason::Duplicate, message, None);
            }
        }
    }

    pub(super) fn endpoint_slice(&mut self, slice: &Value) {
        self.required("addressType", &slice["addressType"]);
        let endpoints = list(&slice["endpoints"]);
        if endpoints.len() > 1000 {
            self.add("endpoints", Reason::TooLong, format!("{} endpoints; at most 1000", endpoints.len()), None);
        }
        for (index, endpoint) in endpoints.iter().take(1000).enumerate() {
            let at = format!("endpoints[{index}]");
            self.required(&format!("{at}.addresses"), &endpoint["addresses"]);
            for (position, address) in list(&endpoint["addresses"]).iter().map(text).enumerate() {
                if address.parse::<Ipv4Addr>().is_err() {
                    let message = format!("`{}` is not an IPv4 address", shown(address));
                    self.add(&format!("{at}.addresses[{position}]"), Reason::Invalid, message, None);
                }
            }
            let host = text(&endpoint["hostname"]);
            if !host.is_empty() && !is_label(host) {
                self.label(&format!("{at}.hostname"), host, "a host name");
            }
        }
        let mut names = BTreeSet::new();
        for (index, port) in list(&slice["ports"]).iter().enumerate() {
            let (at, name) = (format!("ports[{index}]"), text(&port["name"]));
            self.range(&format!("{at}.port"), &port["port"], 1, 65535);
            if !name.is_empty() {
                self.label(&format!("{at}.name"), name, "a port name");
            }
            if !names.insert(name) {
                self.add(
                    &format!("{at}.name"),
                    Reason::Duplicate,
                    format!("two ports are called `{}`", shown(name)),
                    None,
                );
            }
        }
    }
}
