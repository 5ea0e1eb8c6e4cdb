//! What a server says about itself when a connection is made.

use redis::aio::MultiplexedConnection;
use redis::{RedisResult, cmd};

/// The oldest version that the scripts are tried with.
const TRIED_VERSION: (u32, u32) = (6, 2);

/// What was asked of a server.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) struct ServerFacts {
    /// Differs when the process differs, or when it has become the master.
    pub(super) identity: String,
    pub(super) is_master: bool,
    pub(super) warnings: Vec<String>,
}

impl ServerFacts {
    pub(super) async fn ask(connection: &mut MultiplexedConnection) -> RedisResult<Self> {
        let mut text = String::new();
        for section in ["server", "replication", "memory"] {
            let part: String = cmd("INFO").arg(section).query_async(connection).await?;
            text.push_str(&part);
        }
        Ok(Self::read(&text))
    }

    fn read(info: &str) -> Self {
        let value = |name: &str| {
            info.lines()
                .find_map(|line| line.strip_prefix(name)?.strip_prefix(':'))
                .map_or("", str::trim)
        };
        let mut warnings = Vec::new();
        let policy = value("maxmemory_policy");
        if value("maxmemory") != "0" && policy != "noeviction" {
            warnings.push(format!(
                "its maxmemory-policy is `{policy}`: counters may be evicted, and more may pass than a \
                 limit allows; set it to noeviction"
            ));
        }
        let version = value("redis_version");
        if parse_version(version).is_none_or(|version| version < TRIED_VERSION) {
            warnings.push(format!(
                "its version is `{version}`; 6.2 is the oldest that is supported"
            ));
        }
        Self {
            // The second replication id is that of the former master, since this one took its place.
            identity: format!("{} {}", value("run_id"), value("master_replid2")),
            is_master: value("role") == "master",
            warnings,
        }
    }
}

fn parse_version(text: &str) -> Option<(u32, u32)> {
    let mut parts = text.split('.');
    Some((parts.next()?.parse().ok()?, parts.next()?.parse().ok()?))
}

#[cfg(test)]
mod tests {
    use super::*;

    const INFO: &str = "# Server\r\nredis_version:7.0.15\r\nrun_id:abc\r\n# Replication\r\n\
        role:master\r\nmaster_replid2:000\r\nmaxmemory:0\r\nmaxmemory_policy:noeviction\r\n";

    #[test]
    fn a_server_as_it_should_be_gives_no_warning() {
        let facts = ServerFacts::read(INFO);
        assert_eq!(facts.identity, "abc 000");
        assert!(facts.is_master);
        assert_eq!(facts.warnings, [] as [String; 0]);
    }

    #[test]
    fn eviction_and_an_old_version_are_told() {
        let info = INFO
            .replace("7.0.15", "6.0.9")
            .replace("maxmemory:0", "maxmemory:1000")
            .replace("noeviction", "allkeys-lru");
        let warnings = ServerFacts::read(&info).warnings.join("\n");
        assert!(
            warnings.contains("allkeys-lru") && warnings.contains("6.0.9"),
            "{warnings}"
        );
    }

    #[test]
    fn eviction_does_not_matter_without_a_bound_of_memory() {
        let info = INFO.replace("noeviction", "allkeys-lru");
        assert!(ServerFacts::read(&info).warnings.is_empty());
    }
}
