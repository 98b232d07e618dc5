//! The file that lets kubectl and our own verbs in: address, authority, client certificate.

use base64::Engine as _;

use crate::pki::Credential;

/// A kubeconfig with one cluster, one user and one context, all called `coracle`.
#[must_use]
pub fn render(server: &str, ca_pem: &str, user: &Credential) -> String {
    let base64 = |text: &str| base64::engine::general_purpose::STANDARD.encode(text);
    format!(
        "apiVersion: v1\nkind: Config\ncurrent-context: coracle\nclusters:\n- name: coracle\n  cluster:\n    server: {server}\n    \
         certificate-authority-data: {}\ncontexts:\n- name: coracle\n  context:\n    cluster: coracle\n    user: coracle\nusers:\n\
         - name: coracle\n  user:\n    client-certificate-data: {}\n    client-key-data: {}\n",
        base64(ca_pem),
        base64(&user.cert_pem),
        base64(&user.key_pem),
    )
}
