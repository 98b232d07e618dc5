//! Which nodes a pod asks for, beyond plain labels (upstream: `core/v1 NodeAffinity`, what is required of it).

use std::collections::BTreeMap;

use crate::NodeState;

/// What one line of a term compares.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum NodeWhat {
    /// One of the values, which it must have.
    In,
    /// None of the values; not to have it is fine.
    NotIn,
    /// It is there, whatever it is.
    Exists,
    /// It is not there.
    DoesNotExist,
    /// A whole number above the value.
    Gt,
    /// A whole number below the value.
    Lt,
}

/// One line of a term.
#[derive(Debug, Clone, PartialEq, Eq, Hash)]
pub struct NodeTest {
    /// A label's key; `None` is the node's name.
    pub label: Option<String>,
    /// How it is compared.
    pub what: NodeWhat,
    /// With what.
    pub values: Vec<String>,
}

/// Lines that must all hold. Without any it selects no node, as upstream has it.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Term(pub Vec<NodeTest>);

/// Terms of which one must hold.
#[derive(Debug, Clone, PartialEq, Eq, Hash, Default)]
pub struct Affinity(pub Vec<Term>);

impl Affinity {
    /// The nodes of one name.
    #[must_use]
    pub fn to_node(name: &str) -> Self {
        Self(vec![Term(vec![NodeTest { label: None, what: NodeWhat::In, values: vec![name.to_owned()] }])])
    }

    /// Whether a node of this name and with these labels is among those asked for.
    #[must_use]
    pub fn selects(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        self.0.iter().any(|Term(tests)| !tests.is_empty() && tests.iter().all(|test| test.holds(name, labels)))
    }

    /// The one node that is asked for by its name, if there is no other way to read it.
    #[must_use]
    pub fn only_node(&self) -> Option<&str> {
        let [Term(tests)] = self.0.as_slice() else { return None };
        tests.iter().find_map(|test| match (&test.label, test.what, test.values.as_slice()) {
            (None, NodeWhat::In, [name]) => Some(name.as_str()),
            _ => None,
        })
    }
}

impl NodeTest {
    fn holds(&self, name: &str, labels: &BTreeMap<String, String>) -> bool {
        let held = match &self.label {
            Some(key) => labels.get(key).map(String::as_str),
            None => Some(name),
        };
        let listed = || held.is_some_and(|held| self.values.iter().any(|value| value == held));
        let number = |text: Option<&str>| text.and_then(|text| text.parse::<i64>().ok());
        let compare = |wanted: fn(&i64, &i64) -> bool| {
            let bound = number(self.values.first().map(String::as_str));
            number(held).zip(bound).is_some_and(|(held, bound)| wanted(&held, &bound))
        };
        match self.what {
            NodeWhat::In => listed(),
            NodeWhat::NotIn => !listed(),
            NodeWhat::Exists => held.is_some(),
            NodeWhat::DoesNotExist => held.is_none(),
            NodeWhat::Gt => compare(|held, bound| held > bound),
            NodeWhat::Lt => compare(|held, bound| held < bound),
        }
    }
}

/// Whether a node has the labels a pod asks for and is one of those its affinity selects.
pub(crate) fn wanted(node: &NodeState, selector: &BTreeMap<String, String>, affinity: Option<&Affinity>) -> bool {
    selector.iter().all(|(key, value)| node.labels.get(key) == Some(value))
        && affinity.is_none_or(|affinity| affinity.selects(&node.name, &node.labels))
}

#[cfg(test)]
mod tests {
    use super::*;

    fn test(label: Option<&str>, what: NodeWhat, values: &[&str]) -> NodeTest {
        NodeTest {
            label: label.map(ToOwned::to_owned),
            what,
            values: values.iter().map(|value| (*value).to_owned()).collect(),
        }
    }

    #[test]
    fn each_way_to_compare() {
        let labels = BTreeMap::from([("disk".to_owned(), "ssd".to_owned()), ("cores".to_owned(), "8".to_owned())]);
        for (test, holds) in [
            (test(Some("disk"), NodeWhat::In, &["hdd", "ssd"]), true),
            (test(Some("disk"), NodeWhat::In, &["hdd"]), false),
            (test(Some("zone"), NodeWhat::In, &["eu"]), false),
            (test(Some("disk"), NodeWhat::NotIn, &["ssd"]), false),
            (test(Some("zone"), NodeWhat::NotIn, &["eu"]), true),
            (test(Some("disk"), NodeWhat::Exists, &[]), true),
            (test(Some("zone"), NodeWhat::Exists, &[]), false),
            (test(Some("zone"), NodeWhat::DoesNotExist, &[]), true),
            (test(Some("disk"), NodeWhat::DoesNotExist, &[]), false),
            (test(Some("cores"), NodeWhat::Gt, &["7"]), true),
            (test(Some("cores"), NodeWhat::Gt, &["8"]), false),
            (test(Some("cores"), NodeWhat::Lt, &["10"]), true),
            (test(Some("disk"), NodeWhat::Lt, &["10"]), false),
            (test(None, NodeWhat::In, &["a"]), true),
            (test(None, NodeWhat::NotIn, &["a"]), false),
        ] {
            assert_eq!(Affinity(vec![Term(vec![test.clone()])]).selects("a", &labels), holds, "{test:?}");
        }
    }

    #[test]
    fn lines_all_hold_and_one_term_is_enough() {
        let labels = BTreeMap::new();
        let (yes, no) = (test(None, NodeWhat::In, &["a"]), test(None, NodeWhat::In, &["b"]));
        assert!(!Affinity(vec![Term(vec![yes.clone(), no.clone()])]).selects("a", &labels));
        assert!(Affinity(vec![Term(vec![no]), Term(vec![yes])]).selects("a", &labels));
        assert!(!Affinity(vec![Term::default()]).selects("a", &labels), "an empty term selects nothing");
        assert!(!Affinity::default().selects("a", &labels));
        assert_eq!(Affinity::to_node("a").only_node(), Some("a"));
        assert!(Affinity::to_node("a").selects("a", &labels) && !Affinity::to_node("a").selects("b", &labels));
    }
}
