//! Where Redis is, as one setting.

use redis::{ConnectionAddr, ConnectionInfo, IntoConnectionInfo as _};

/// Where Redis is and what shape it has.
#[derive(Clone)]
pub struct RedisTarget {
    pub(super) shape: Shape,
    /// Credentials, database and TLS, with a host that is replaced.
    template: ConnectionInfo,
}

/// How servers are found.
#[derive(Debug, Clone, PartialEq, Eq)]
pub(super) enum Shape {
    /// It is one.
    Single(Host),
    /// Sentinels name the one that is the master of a service now.
    Sentinel {
        sentinels: Vec<Host>,
        service: String,
    },
    /// Each has a part of the keys; these are asked which.
    Cluster(Vec<Host>),
}

/// A host name or address, and a port.
#[derive(Debug, Clone, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub(super) struct Host {
    pub(super) name: String,
    pub(super) port: u16,
}

impl std::fmt::Display for Host {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        if self.name.contains(':') {
            write!(f, "[{}]:{}", self.name, self.port)
        } else {
            write!(f, "{}:{}", self.name, self.port)
        }
    }
}

/// The URL cannot be used. It is not repeated, because it may hold a password.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
pub enum InvalidRedisUrl {
    /// Another scheme.
    #[error(
        "a Redis URL begins with redis://, redis-sentinel:// or redis-cluster://, or rediss… for TLS"
    )]
    Scheme,
    /// No usable host, or an odd port, user or database.
    #[error("a Redis URL is like redis://user:password@host:6379/0")]
    Host,
    /// Sentinels without the name of what they watch.
    #[error("a sentinel URL is like redis-sentinel://host:26379,host:26379/service")]
    Service,
    /// A cluster has one database.
    #[error("a cluster URL has no database")]
    Database,
}

impl RedisTarget {
    /// Reads a URL: `redis://[user:password@]host[:port][/database]`,
    /// `redis-sentinel://[user:password@]host[:port],…/service[/database]` (the credentials are
    /// those of the server), `redis-cluster://[user:password@]host[:port],…`; each begins with
    /// `rediss` for TLS.
    ///
    /// # Errors
    /// [`InvalidRedisUrl`], which says what was expected.
    pub fn parse(url: &str) -> Result<Self, InvalidRedisUrl> {
        let (scheme, rest) = url.split_once("://").ok_or(InvalidRedisUrl::Scheme)?;
        let (tls, kind) = match scheme.strip_prefix("rediss") {
            Some(kind) => ("rediss", kind),
            None => (
                "redis",
                scheme
                    .strip_prefix("redis")
                    .ok_or(InvalidRedisUrl::Scheme)?,
            ),
        };
        let (authority, path) = rest.split_once('/').unwrap_or((rest, ""));
        let (user, hosts) = authority
            .rsplit_once('@')
            .map_or((None, authority), |(user, hosts)| (Some(user), hosts));
        let default_port = if kind == "-sentinel" { 26_379 } else { 6_379 };
        let hosts: Vec<Host> = hosts
            .split(',')
            .map(|host| read_host(host, default_port))
            .collect::<Option<_>>()
            .ok_or(InvalidRedisUrl::Host)?;
        let (shape, database) = match kind {
            "" => {
                let [host] =
                    <[Host; 1]>::try_from(hosts).map_err(|_several| InvalidRedisUrl::Host)?;
                (Shape::Single(host), path)
            }
            "-sentinel" => {
                let (service, database) = path.split_once('/').unwrap_or((path, ""));
                if service.is_empty() {
                    return Err(InvalidRedisUrl::Service);
                }
                let service = service.to_owned();
                (
                    Shape::Sentinel {
                        sentinels: hosts,
                        service,
                    },
                    database,
                )
            }
            "-cluster" if path.is_empty() => (Shape::Cluster(hosts), ""),
            "-cluster" => return Err(InvalidRedisUrl::Database),
            _ => return Err(InvalidRedisUrl::Scheme),
        };
        let user = user.map(|user| format!("{user}@")).unwrap_or_default();
        let template = format!("{tls}://{user}replaced:1/{database}")
            .into_connection_info()
            .map_err(|_bad| InvalidRedisUrl::Host)?;
        Ok(Self { shape, template })
    }

    /// Returns how to reach one server.
    pub(super) fn connection_info(&self, host: &Host) -> ConnectionInfo {
        let mut address = self.template.addr().clone();
        match &mut address {
            ConnectionAddr::Tcp(name, port)
            | ConnectionAddr::TcpTls {
                host: name, port, ..
            } => {
                name.clone_from(&host.name);
                *port = host.port;
            }
            _ => {}
        }
        self.template
            .clone()
            .set_addr(address)
            .set_tcp_settings(redis::io::tcp::TcpSettings::default().set_nodelay(true))
    }

    /// Returns how to reach one sentinel, which has no credentials and no database of the server.
    pub(super) fn sentinel_info(&self, host: &Host) -> ConnectionInfo {
        self.connection_info(host)
            .set_redis_settings(redis::RedisConnectionInfo::default())
    }
}

impl std::fmt::Debug for RedisTarget {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "RedisTarget({:?})", self.shape)
    }
}

fn read_host(text: &str, default_port: u16) -> Option<Host> {
    let (name, port) = match text.strip_prefix('[') {
        Some(v6) => {
            let (name, rest) = v6.split_once(']')?;
            (name, rest.strip_prefix(':'))
        }
        None => text
            .split_once(':')
            .map_or((text, None), |(name, port)| (name, Some(port))),
    };
    let port = port.map_or(Some(default_port), |port| port.parse().ok())?;
    (!name.is_empty()).then(|| Host {
        name: name.to_owned(),
        port,
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn host(name: &str, port: u16) -> Host {
        Host {
            name: name.to_owned(),
            port,
        }
    }

    #[test]
    fn each_shape_has_a_url() {
        let shape = |url: &str| RedisTarget::parse(url).unwrap().shape;
        assert_eq!(
            shape("redis://localhost"),
            Shape::Single(host("localhost", 6379))
        );
        assert_eq!(
            shape("rediss://u:p%40@[::1]:7000/2"),
            Shape::Single(host("::1", 7000))
        );
        assert_eq!(
            shape("redis-cluster://a:1,b:2,c"),
            Shape::Cluster(vec![host("a", 1), host("b", 2), host("c", 6379)])
        );
        assert_eq!(
            shape("redis-sentinel://:pw@a,b:5/main/3"),
            Shape::Sentinel {
                sentinels: vec![host("a", 26_379), host("b", 5)],
                service: "main".to_owned(),
            }
        );
    }

    #[test]
    fn a_server_is_reached_with_the_credentials_of_the_url() {
        let target = RedisTarget::parse("rediss://u:p%40@first:7000/2").unwrap();
        let info = target.connection_info(&host("second", 7001));
        assert_eq!(info.addr().to_string(), "second:7001");
        assert!(matches!(
            info.addr(),
            ConnectionAddr::TcpTls {
                insecure: false,
                ..
            }
        ));
        assert_eq!(info.redis_settings().username(), Some("u"));
        assert_eq!(info.redis_settings().password(), Some("p@"));
        assert_eq!(info.redis_settings().db(), 2);
    }

    #[test]
    fn other_urls_are_refused_without_being_repeated() {
        for (url, error) in [
            ("localhost:6379", InvalidRedisUrl::Scheme),
            ("http://localhost", InvalidRedisUrl::Scheme),
            ("redis-other://localhost", InvalidRedisUrl::Scheme),
            ("redis://", InvalidRedisUrl::Host),
            ("redis://a,b", InvalidRedisUrl::Host),
            ("redis://a:port", InvalidRedisUrl::Host),
            ("redis-sentinel://a,b", InvalidRedisUrl::Service),
            ("redis-cluster://a,b/1", InvalidRedisUrl::Database),
        ] {
            assert_eq!(RedisTarget::parse(url).unwrap_err(), error, "{url}");
        }
        let shown = format!("{:?}", RedisTarget::parse("redis://u:secret@h").unwrap());
        assert!(!shown.contains("secret"), "{shown}");
    }
}
