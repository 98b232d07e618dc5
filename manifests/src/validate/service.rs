//! Services and EndpointSlices.

use std::collections::BTreeSet;
use std::net::Ipv4Addr;

use serde_json::Value;

use super::{Found, is_label, names::shown};
use crate::problem::Reason;
use crate::service::{
    block_of, has_cluster_ip, is_external, is_headless, may_have_node_ports, own_port, protocol, type_of,
};
use crate::view::{list, text};

impl Found {
    pub(super) fn service(&mut self, spec: &Value) {
        let address = text(&spec["clusterIP"]);
        let headless = address == "None";
        let alias = !has_cluster_ip(spec);
        if !headless && !alias {
            self.required("spec.ports", &spec["ports"]);
        }
        self.labels(&spec["selector"], "spec.selector");
        self.service_ports(list(&spec["ports"]));
        self.service_type(spec);
        self.ways_in(spec);
        self.affinity(spec);
        if alias {
            return self.alias(spec);
        }
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

    /// What goes with one type only (upstream: `ValidateService`, whose words these are).
    fn service_type(&mut self, spec: &Value) {
        let kind = type_of(spec);
        if may_have_node_ports(spec) && is_headless(spec) {
            let message = format!("may not be set to 'None' for {kind} services");
            self.add("spec.clusterIPs[0]", Reason::Invalid, message, None);
        }
        let mut numbers = BTreeSet::new();
        for (index, port) in list(&spec["ports"]).iter().enumerate() {
            let Some(number) = port["nodePort"].as_i64().filter(|number| *number != 0) else { continue };
            let at = format!("spec.ports[{index}].nodePort");
            if !may_have_node_ports(spec) {
                let message = format!("may not be used when `type` is '{kind}'");
                self.add(&at, Reason::Forbidden, message, Some("with `type: NodePort` it may"));
            } else if !numbers.insert((number, protocol(port))) {
                self.add(&at, Reason::Duplicate, format!("{number} is given twice for this protocol"), None);
            }
        }
        let balancer = ["allocateLoadBalancerNodePorts", "loadBalancerClass"];
        for field in balancer.into_iter().filter(|field| kind != "LoadBalancer" && !spec[*field].is_null()) {
            let message = "may only be used when `type` is 'LoadBalancer'";
            self.add(&format!("spec.{field}"), Reason::Forbidden, message, None);
        }
        let blocks = list(&spec["loadBalancerSourceRanges"]);
        if kind != "LoadBalancer" && !blocks.is_empty() {
            let message = "may only be used when `type` is 'LoadBalancer'";
            self.add("spec.loadBalancerSourceRanges", Reason::Forbidden, message, None);
        }
        for (index, block) in blocks.iter().map(text).enumerate().filter(|(_, text)| block_of(text).is_none()) {
            let message = format!("`{}` is not a block of IPv4 addresses such as 192.0.2.0/24", shown(block));
            self.add(&format!("spec.loadBalancerSourceRanges[{index}]"), Reason::Invalid, message, None);
        }
        let class = text(&spec["loadBalancerClass"]);
        if !class.is_empty() {
            self.label_key("spec.loadBalancerClass", class, "a class of load balancers");
        }
        if kind != "ExternalName" && !text(&spec["externalName"]).is_empty() {
            let message = "may only be used when `type` is 'ExternalName'";
            self.add("spec.externalName", Reason::Forbidden, message, None);
        }
    }

    /// How the Service is reached from outside of the cluster.
    fn ways_in(&mut self, spec: &Value) {
        if !is_external(spec) && !text(&spec["externalTrafficPolicy"]).is_empty() {
            let message = "may only be set for externally-accessible services";
            let hint = "types NodePort and LoadBalancer are, and Services with `externalIPs`";
            self.add("spec.externalTrafficPolicy", Reason::Invalid, message, Some(hint));
        }
        let outer = list(&spec["externalIPs"]);
        for (index, address) in outer.iter().map(text).enumerate() {
            self.plain_address(&format!("spec.externalIPs[{index}]"), address);
        }
        if outer.is_empty() {
            return;
        }
        for (index, port) in list(&spec["ports"]).iter().enumerate() {
            if let Some(own) = port["port"].as_i64().and_then(|number| own_port(protocol(port), number)) {
                let message = format!("{} cannot be used with `externalIPs`: it is the port of {own}", port["port"]);
                self.add(&format!("spec.ports[{index}].port"), Reason::Unsupported, message, None);
            }
        }
    }

    /// An address that packets can be sent to from elsewhere.
    fn plain_address(&mut self, path: &str, address: &str) {
        let Ok(parsed) = address.parse::<Ipv4Addr>() else {
            let message = format!("`{}` is not an IPv4 address", shown(address));
            return self.add(path, Reason::Invalid, message, None);
        };
        let special = if parsed.is_unspecified() {
            "0.0.0.0"
        } else if parsed.is_loopback() {
            "in the loopback range (127.0.0.0/8)"
        } else if parsed.is_link_local() {
            "in the link-local range (169.254.0.0/16)"
        } else if parsed.is_multicast() {
            "in the multicast range (224.0.0.0/4)"
        } else {
            return;
        };
        self.add(path, Reason::Invalid, format!("{parsed} may not be {special}"), None);
    }

    fn affinity(&mut self, spec: &Value) {
        let config = &spec["sessionAffinityConfig"];
        if spec["sessionAffinity"] != "ClientIP" {
            if !config.is_null() {
                let message = "must not be set when session affinity is None";
                self.add("spec.sessionAffinityConfig", Reason::Forbidden, message, None);
            }
        } else {
            let path = "spec.sessionAffinityConfig.clientIP.timeoutSeconds";
            self.range(path, &config["clientIP"]["timeoutSeconds"], 1, 86_400);
        }
        // Upstream takes these and does nothing.
        let nothing_to_choose = if is_headless(spec) {
            "a headless Service"
        } else if !has_cluster_ip(spec) {
            "an ExternalName Service"
        } else {
            return;
        };
        let said = [
            ("sessionAffinity", spec["sessionAffinity"] == "ClientIP"),
            ("internalTrafficPolicy", spec["internalTrafficPolicy"] == "Local"),
            ("externalIPs", !list(&spec["externalIPs"]).is_empty()),
        ];
        for (field, _) in said.into_iter().filter(|(_, said)| *said) {
            let message =
                format!("has no effect on {nothing_to_choose}: its clients ask DNS and connect by themselves");
            self.add(&format!("spec.{field}"), Reason::Unsupported, message, Some("leave the field out"));
        }
    }

    /// A Service that is another name for something else.
    fn alias(&mut self, spec: &Value) {
        for field in ["clusterIP", "clusterIPs"] {
            let value = &spec[field];
            if !text(value).is_empty() || !list(value).is_empty() {
                self.add(&format!("spec.{field}"), Reason::Forbidden, "may not be set for ExternalName services", None);
            }
        }
        if self.required("spec.externalName", &spec["externalName"]) {
            let name = text(&spec["externalName"]);
            self.subdomain("spec.externalName", name.strip_suffix('.').unwrap_or(name), "a DNS name");
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
                self.plain_address(&format!("{at}.addresses[{position}]"), address);
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
