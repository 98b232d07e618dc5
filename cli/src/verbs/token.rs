//! `coracle token`: what lets other machines in.

use base64::Engine as _;
use clap::{Args, Subcommand};
use coracle_control_plane::join::{self, NAMESPACE, SECRET_TYPE};
use http::Method;
use serde_json::{Value, json};

use crate::Access;
use crate::client::{Client, JSON};
use crate::failure::Failure;
use crate::output;

/// Tokens that let other machines into the cluster
#[derive(Debug, Args)]
#[command(
    after_help = "Examples:\n  coracle token create\n  coracle token create --server --valid 1h\n  coracle token list\n  coracle token revoke k3wq7x2m\n\nExit codes: 0 done, 1 failed, 2 wrong usage, 3 not found"
)]
pub struct Token {
    #[command(subcommand)]
    what: What,
}

#[derive(Debug, Subcommand)]
enum What {
    /// Make one and print it: it is shown only now
    #[command(
        after_help = "Example:\n  coracle token create --server --valid 1h\n\nExit codes: 0 made, 1 failed, 2 wrong usage"
    )]
    Create {
        /// For a machine that becomes a server
        #[arg(long)]
        server: bool,
        /// How long it is good: 30m, 24h, 7d, or `forever`
        #[arg(long, default_value = "24h", value_name = "TIME")]
        valid: String,
        /// `json`: as an object
        #[arg(short, long, value_enum, default_value = "table")]
        output: output::Format,
    },
    /// Show those there are, without their secret
    #[command(after_help = "Example:\n  coracle token list\n\nExit codes: 0 shown, 1 failed")]
    List {
        /// `json`: as a list
        #[arg(short, long, value_enum, default_value = "table")]
        output: output::Format,
    },
    /// Take one back: machines that joined with it stay
    #[command(after_help = "Example:\n  coracle token revoke k3wq7x2m\n\nExit codes: 0 revoked, 1 failed, 3 not found")]
    Revoke {
        /// The letters after the role
        id: String,
        /// `json`: as an object
        #[arg(short, long, value_enum, default_value = "table")]
        output: output::Format,
    },
}

/// Runs the verb.
///
/// # Errors
/// As documented in its help.
pub async fn run(access: &Access, token: &Token) -> Result<(), Failure> {
    let client = access.client()?;
    match &token.what {
        What::Create { server, valid, output } => {
            let made = join::Token::new(*server, &access.authority()?);
            let kept = made.kept(milliseconds(valid)?);
            let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets");
            client.json(Method::POST, &path, JSON, Some((JSON, &kept))).await?;
            if *output == output::Format::Json {
                output::line(&output::json(&json!({"token": made.text(), "id": made.id, "server": made.server})));
            } else {
                output::line(&made.text());
            }
        }
        What::List { output } => list(&client, *output).await?,
        What::Revoke { id, output } => {
            let path = format!("/api/v1/namespaces/{NAMESPACE}/secrets/join-token-{id}");
            client.json(Method::DELETE, &path, JSON, None).await?;
            if *output == output::Format::Json {
                output::line(&output::json(&json!({"revoked": id})));
            } else {
                output::line(&format!("token {id} revoked"));
            }
        }
    }
    Ok(())
}

async fn list(client: &Client, format: output::Format) -> Result<(), Failure> {
    let all = client.get(&format!("/api/v1/namespaces/{NAMESPACE}/secrets")).await?;
    let field = |secret: &Value, name: &str| {
        let bytes = base64::engine::general_purpose::STANDARD.decode(secret["data"][name].as_str().unwrap_or_default());
        bytes.ok().and_then(|bytes| String::from_utf8(bytes).ok()).unwrap_or_default()
    };
    let now = crate::now_ms();
    let tokens: Vec<[String; 3]> = all["items"]
        .as_array()
        .into_iter()
        .flatten()
        .filter(|secret| secret["type"] == SECRET_TYPE)
        .map(|secret| {
            let until = field(secret, "expiresAtMs");
            let left = match until.parse::<u64>() {
                Ok(until) if until <= now => "expired".to_owned(),
                Ok(until) => format!("{} min", (until - now) / 60_000),
                Err(_) => "forever".to_owned(),
            };
            [field(secret, "id"), field(secret, "role"), left]
        })
        .collect();
    if format == output::Format::Json {
        let rows: Vec<Value> =
            tokens.iter().map(|[id, role, left]| json!({"id": id, "role": role, "valid": left})).collect();
        output::line(&output::json(&json!(rows)));
        return Ok(());
    }
    output::line(&format!("{:<10}{:<9}VALID", "ID", "ROLE"));
    for [id, role, left] in tokens {
        output::line(&format!("{id:<10}{role:<9}{left}"));
    }
    Ok(())
}

fn milliseconds(text: &str) -> Result<Option<u64>, Failure> {
    if text == "forever" {
        return Ok(None);
    }
    let bad = || Failure::usage(format!("`{text}` is no time\nhint: 30m, 24h, 7d or `forever`"));
    let unit = text.chars().last().ok_or_else(bad)?;
    let count: u64 = text[..text.len() - unit.len_utf8()].parse().map_err(|_| bad())?;
    let each: u64 = match unit {
        's' => 1000,
        'm' => 60_000,
        'h' => 3_600_000,
        'd' => 86_400_000,
        _ => return Err(bad()),
    };
    count.checked_mul(each).map(Some).ok_or_else(bad)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn times_are_read() {
        assert_eq!(milliseconds("90s").unwrap(), Some(90_000));
        assert_eq!(milliseconds("7d").unwrap(), Some(604_800_000));
        assert_eq!(milliseconds("forever").unwrap(), None);
        for bad in ["", "h", "1", "1w", "é"] {
            assert!(milliseconds(bad).is_err(), "{bad}");
        }
    }
}
