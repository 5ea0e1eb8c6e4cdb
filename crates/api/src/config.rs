//! What the process is told from outside: one table of settings, from which everything follows.
//!
//! The table below gives each setting its path, kind, default and meaning. The reader of the TOML
//! file, the names of the environment variables, the checks, `sluice config check` and
//! `docs/configuration.md` are all derived from it, so that none of them can be forgotten.
//!
//! Later layers win: default, file, environment, flag. This is the only module that looks at the
//! environment of the process.
//!
//! To add a setting, add a line to the table and run `sluice config reference`.

mod environment;
mod kind;
mod layer;
mod problem;
mod secret;
mod text;

#[cfg(test)]
mod tests;

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::path::PathBuf;
use std::time::Duration;

use ipnet::IpNet;
use secrecy::SecretString;

pub use environment::Environment;
use kind::{
    Address, DatabaseUrl, FSYNC_POLICIES, Filter, Folder, Integer, Key, Kind, LIMIT_MODES,
    LOG_FORMATS, Millis, Networks, OptionalAddress, Origins, REDIS_LOSSES, RedisPrefix, RedisUrl,
};
pub use kind::{AllowedOrigins, LimitMode, LogFormat};
use layer::Layers;
pub(crate) use layer::is_open_to_others;
pub use problem::{InvalidConfig, Place, Problem};
pub use secret::{InvalidSecret, Secret32};
use sluice_accounting::Fsync;
use sluice_storage::windows::RedisLoss;
use text::Setting;
pub use text::reference;

/// Name of the database file inside the data folder.
const DATABASE_FILE: &str = "sluice.db";

const MIB: usize = 1 << 20;

/// The highest limit that every counter counts exactly.
const MOST: u64 = 1 << 53;

/// Declares the settings: the typed structs, their defaults, the reader and the printed table.
macro_rules! settings {
    (
        $(#[doc = $root_doc:literal])*
        $Root:ident {
            $(
                $(#[doc = $doc:literal])+
                $field:ident [$key:literal]: $Type:ty = $kind:expr, $default:expr;
            )*
        }
        $(
            $(#[doc = $section_doc:literal])*
            $section:ident: $Section:ident {
                $(
                    $(#[doc = $inner_doc:literal])+
                    $inner:ident [$inner_key:literal]: $InnerType:ty =
                        $inner_kind:expr, $inner_default:expr;
                )*
            }
        )*
    ) => {
        $(#[doc = $root_doc])*
        #[derive(Debug, Clone)]
        pub struct $Root {
            $( $(#[doc = $doc])+ pub $field: $Type, )*
            $( $(#[doc = $section_doc])* pub $section: $Section, )*
        }

        $(
            $(#[doc = $section_doc])*
            #[derive(Debug, Clone)]
            pub struct $Section {
                $( $(#[doc = $inner_doc])+ pub $inner: $InnerType, )*
            }
        )*

        $(
            impl Default for $Section {
                fn default() -> Self {
                    $Root::default().$section
                }
            }
        )*

        impl $Root {
            /// Takes each setting from the layers, or its default where it is absent or invalid.
            fn read(from: &mut Reader) -> Self {
                Self {
                    $( $field: from.read($key, &$kind, $default), )*
                    $( $section: $Section {
                        $( $inner: from.read(
                            concat!(stringify!($section), ".", $inner_key),
                            &$inner_kind,
                            $inner_default,
                        ), )*
                    }, )*
                }
            }

            /// Returns each setting with its value as it may be printed, in the order of the table.
            fn table(&self) -> Vec<Setting> {
                vec![
                    $( Setting::new(
                        "",
                        $key,
                        concat!($($doc, "\n"),+),
                        &$kind,
                        &self.$field,
                    ), )*
                    $( $( Setting::new(
                        stringify!($section),
                        concat!(stringify!($section), ".", $inner_key),
                        concat!($($inner_doc, "\n"),+),
                        &$inner_kind,
                        &self.$section.$inner,
                    ), )* )*
                ]
            }
        }
    };
}

settings! {
    /// Every setting of the process, validated.
    Config {
        /// Address and port that the server listens on.
        listen ["listen"]: SocketAddr = Address, SocketAddr::from((Ipv4Addr::LOCALHOST, 8000));
        /// Folder of this instance: its identity, and by default its secrets and its database.
        /// Each instance needs its own.
        data_dir ["data_dir"]: PathBuf = Folder, PathBuf::from("sluice-data");
        /// Where accounts and ledger are: `sqlite:PATH` or `postgres://USER:PASSWORD@HOST/NAME`.
        database_url ["database_url"]: Option<SecretString> = DatabaseUrl, None;
        /// Most connections that this process opens to the database.
        database_max_connections ["database_max_connections"]: u32 =
            Integer::new(1, 1_000, "connections"), 10;
        /// Key that seals the upstream keys in the database: 32 bytes in base64 or hexadecimal.
        /// Instances that share a database share it.
        master_key ["master_key"]: Option<Secret32> = Key { file: "master.key" }, None;
        /// Secret that keys the hash of the proxy keys: 32 bytes in base64 or hexadecimal.
        /// Instances that share a database share it.
        pepper ["pepper"]: Option<Secret32> = Key { file: "pepper.key" }, None;
    }

    /// The HTTP server.
    server: ServerConfig {
        /// Worker threads; 0 is one per available core.
        workers ["workers"]: usize = Integer::new(0, 1_024, "threads"), 0;
        /// Connections that are open at the same time; further ones wait to be accepted.
        max_connections ["max_connections"]: usize =
            Integer::new(1, 1_000_000, "connections"), 8_192;
        /// How long a client may take to send the head of a request.
        header_timeout ["header_timeout_ms"]: Duration =
            Millis { min: 100, max: 600_000 }, Duration::from_secs(10);
        /// How long a connection may rest between two requests; longer than a proxy in front keeps
        /// it open.
        idle_timeout ["idle_timeout_ms"]: Duration =
            Millis { min: 1_000, max: 86_400_000 }, Duration::from_mins(2);
        /// How long a client may take none of the bytes of an answer that wait for it; then its
        /// connection is closed.
        write_stall ["write_stall_ms"]: Duration =
            Millis { min: 100, max: 3_600_000 }, Duration::from_secs(30);
        /// How long a client may take to send the body of a request.
        body_timeout ["body_timeout_ms"]: Duration =
            Millis { min: 100, max: 3_600_000 }, Duration::from_secs(30);
        /// Largest body of a request.
        max_body_bytes ["max_body_bytes"]: usize = Integer::new(1_024, 1 << 30, "bytes"), 32 * MIB;
        /// How long open requests may take to end when the process is asked to stop.
        drain ["drain_ms"]: Duration = Millis { min: 0, max: 3_600_000 }, Duration::from_secs(30);
        /// Networks whose `X-Forwarded-For` header is believed; a single address is allowed.
        trusted_proxies ["trusted_proxies"]: Vec<IpNet> = Networks, Vec::new();
    }

    /// The admin API.
    admin: AdminConfig {
        /// Address and port of the admin API, apart from those of the relay. Without it there is no
        /// admin API. It is for the host itself, or for a network that only admins reach.
        listen ["listen"]: Option<SocketAddr> = OptionalAddress, None;
    }
    /// The relay between client and upstream.
    relay: RelayConfig {
        /// How long the head of a streamed answer waits for the first event of the upstream, so
        /// that an early failure can still be answered with its status.
        head_wait ["head_wait_ms"]: Duration =
            Millis { min: 0, max: 600_000 }, Duration::from_secs(10);
        /// Silence of a stream after which the client is sent a comment that keeps it open; a
        /// client of the Anthropic API is sent a ping, after 10 seconds at the latest.
        keep_alive ["keep_alive_ms"]: Duration =
            Millis { min: 1_000, max: 600_000 }, Duration::from_secs(12);
        /// Largest answer that is not streamed.
        max_answer_bytes ["max_answer_bytes"]: usize =
            Integer::new(1_024, 1 << 30, "bytes"), 64 * MIB;
        /// Largest single event of a stream.
        max_event_bytes ["max_event_bytes"]: usize =
            Integer::new(1_024, 1 << 28, "bytes"), 8 * MIB;
        /// How long a stream is read on after its client has left, where its upstream wants that.
        drain_time ["drain_time_ms"]: Duration =
            Millis { min: 0, max: 3_600_000 }, Duration::from_mins(2);
        /// How much of such a stream is read.
        drain_bytes ["drain_bytes"]: usize = Integer::new(0, 1 << 30, "bytes"), 16 * MIB;
        /// How many such streams are read at a time; further ones are closed.
        max_drains ["max_drains"]: usize = Integer::new(0, 1_000_000, "streams"), 256;
        /// Idle connections that are kept per worker and upstream host.
        max_idle_upstream_connections ["max_idle_upstream_connections"]: usize =
            Integer::new(0, 100_000, "connections"), 1_024;
    }

    /// Proxy keys.
    keys: KeysConfig {
        /// Proxy keys that are kept in memory after their first look-up.
        cache_size ["cache_size"]: usize = Integer::new(1, 100_000_000, "keys"), 100_000;
    }

    /// Window limits: how often, how much and how many at a time. Those of tenants, users and keys
    /// are set with `sluice limit set`; those below are for everybody. 0 is no limit.
    limits: LimitsConfig {
        /// Requests per second from one source address, counted before the key is looked at.
        source_ip_rps ["source_ip_rps"]: u64 = Integer::new(0, MOST, "requests"), 0;
        /// Requests per minute from one source address; those with an unknown key count too.
        source_ip_rpm ["source_ip_rpm"]: u64 = Integer::new(0, MOST, "requests"), 0;
        /// Requests from one source address at the same time.
        source_ip_concurrency ["source_ip_concurrency"]: u64 =
            Integer::new(0, MOST, "requests"), 0;
        /// Whether these are enforced, or only counted and reported.
        source_ip_mode ["source_ip_mode"]: LimitMode = LIMIT_MODES, LimitMode::Enforce;
        /// How many leading bits of an IPv6 address make one source: a line is usually given a
        /// whole network of 64 bits or fewer.
        ipv6_prefix ["ipv6_prefix"]: u8 = Integer::new(16, 128, "bits"), 64;
        /// Requests per second to this instance.
        instance_rps ["instance_rps"]: u64 = Integer::new(0, MOST, "requests"), 0;
        /// Requests per minute to this instance.
        instance_rpm ["instance_rpm"]: u64 = Integer::new(0, MOST, "requests"), 0;
        /// Tokens per minute through this instance.
        instance_tpm ["instance_tpm"]: u64 = Integer::new(0, MOST, "tokens"), 0;
        /// Requests to this instance at the same time.
        instance_concurrency ["instance_concurrency"]: u64 = Integer::new(0, MOST, "requests"), 0;
        /// Whether these are enforced, or only counted and reported.
        instance_mode ["instance_mode"]: LimitMode = LIMIT_MODES, LimitMode::Enforce;
        /// The Redis in which all instances count together: `redis://`, `redis-sentinel://` or
        /// `redis-cluster://`, with `rediss` for TLS. Without it, each instance counts for itself.
        redis_url ["redis_url"]: Option<SecretString> = RedisUrl, None;
        /// What the names of the counters in Redis begin with; instances that count together have
        /// the same.
        redis_prefix ["redis_prefix"]: String = RedisPrefix, "sluice".to_owned();
        /// How long a decision waits for Redis before the instance decides by itself.
        redis_deadline ["redis_deadline_ms"]: Duration =
            Millis { min: 1, max: 10_000 }, Duration::from_millis(20);
        /// What happens while Redis does not answer: with `share` each instance admits its share of
        /// every limit, with `deny` what has a limit is refused.
        on_redis_loss ["on_redis_loss"]: RedisLoss = REDIS_LOSSES, RedisLoss::Share;
        /// How many instances are reckoned with then at least; where the database knows of more, those.
        min_instances ["min_instances"]: u32 = Integer::new(1, 100_000, "instances"), 1;
        /// Counters that are kept in memory for source addresses, and as many for all else; of those
        /// that have counted nothing for the longest time, the others go first.
        max_counters ["max_counters"]: usize = Integer::new(1_000, 100_000_000, "counters"), 100_000;
        /// How long a request waits for the limits of its key, user and tenant before it is
        /// refused; the requests of one key go first come, first served.
        queue ["queue_ms"]: Duration = Millis { min: 0, max: 60_000 }, Duration::ZERO;
        /// How many requests wait at the same time; further ones are refused at once.
        max_queued ["max_queued"]: usize = Integer::new(0, 1_000_000, "requests"), 1_000;
    }

    /// The usage records.
    ledger: LedgerConfig {
        /// Records that wait for the database in memory; while it is away, further ones wait in the
        /// journal alone.
        max_in_memory ["max_in_memory"]: usize = Integer::new(1, 100_000_000, "records"), 20_000;
        /// How long a request waits for what is left of a quota while other requests hold it.
        quota_wait ["quota_wait_ms"]: Duration =
            Millis { min: 0, max: 60_000 }, Duration::from_secs(1);
        /// For how much recent traffic quotas are leased ahead, so that an outage of the database is
        /// bridged; what is not used for as long is given back.
        outage_reserve ["outage_reserve_ms"]: Duration =
            Millis { min: 1_000, max: 86_400_000 }, Duration::from_mins(10);
    }

    /// The journal in the data folder: the redo log of this instance.
    journal: JournalConfig {
        /// When lines reach the disk itself, beyond what every batch of records demands: `interval`
        /// is a loss of power away from losing 50 ms, `always` loses nothing and is slow, `never`
        /// leaves it to the system.
        fsync ["fsync"]: Fsync = FSYNC_POLICIES, Fsync::Interval;
        /// Size of one file.
        segment_bytes ["segment_bytes"]: u64 = Integer::new(1 << 20, 1 << 30, "bytes"), 16 << 20;
        /// How long files are kept after their records are in the database, in case that it goes
        /// back to an older state.
        keep ["keep_ms"]: Duration =
            Millis { min: 0, max: 31_536_000_000 }, Duration::from_hours(24);
        /// Most that all files take, at least four of them. Before it is passed, files go that would
        /// be kept for longer. While the database is away so long that what it has not taken in
        /// would pass it, nothing new is admitted, and what is open ends.
        max_bytes ["max_bytes"]: u64 = Integer::new(1 << 22, 1 << 40, "bytes"), 4 << 30;
    }

    /// The config snapshot in the data folder, with which an instance goes on while its database
    /// server is away.
    snapshot: SnapshotConfig {
        /// How long known keys are served after the database was last heard of, also by an instance
        /// that starts meanwhile. A key that is revoked during that time is served until then. With
        /// 0 there is no snapshot, and nothing is served without the database.
        max_age ["max_age_ms"]: Duration =
            Millis { min: 0, max: 86_400_000 }, Duration::from_hours(1);
        /// Most proxy keys in the snapshot: those that were used lately.
        max_keys ["max_keys"]: usize = Integer::new(1, 10_000_000, "keys"), 100_000;
    }

    /// Calls from browsers.
    cors: CorsConfig {
        /// Origins whose pages may call the relay, such as `https://chat.example.com`; `*` is every
        /// origin, an empty list is none.
        allowed_origins ["allowed_origins"]: AllowedOrigins = Origins, AllowedOrigins::Off;
    }

    /// The log.
    log: LogConfig {
        /// Form of the log; `auto` is `text` on a terminal and `json` elsewhere.
        format ["format"]: LogFormat = LOG_FORMATS, LogFormat::Auto;
        /// What is logged: a level, or directives such as `info,sluice_api=debug`.
        level ["level"]: String = Filter, "info".to_owned();
    }
}

impl Config {
    /// Returns where the database is: the setting, or the file in the data folder.
    pub fn effective_database_url(&self) -> SecretString {
        self.database_url.clone().unwrap_or_else(|| {
            let path = self.data_dir.join(DATABASE_FILE);
            SecretString::from(format!("sqlite:{}", path.display()))
        })
    }
}

impl ServerConfig {
    /// Returns the number of worker threads, at least 1.
    pub fn worker_count(&self) -> usize {
        match self.workers {
            0 => std::thread::available_parallelism().map_or(1, usize::from),
            count => count,
        }
    }
}

impl Default for Config {
    fn default() -> Self {
        Self::read(&mut Reader::default())
    }
}

/// Where the settings come from.
#[derive(Debug, Clone, Default)]
pub struct Sources {
    /// The file of the flag `--config`.
    pub file: Option<PathBuf>,
    /// The flag `--listen`.
    pub listen: Option<String>,
    /// The flag `--data`.
    pub data_dir: Option<PathBuf>,
    /// The environment.
    pub environment: Environment,
}

/// A valid configuration and where each setting came from.
#[derive(Debug)]
pub struct Loaded {
    /// The settings.
    pub config: Config,
    /// What is valid but unwise.
    pub warnings: Vec<Problem>,
    places: BTreeMap<&'static str, Place>,
}

impl Loaded {
    /// Returns the effective settings as TOML, each with its source; secrets are hidden.
    pub fn effective(&self) -> String {
        text::effective(&self.config.table(), &self.places)
    }
}

/// Reads, merges and checks every layer.
///
/// # Errors
/// [`InvalidConfig`] with every problem that was found.
pub fn load(sources: &Sources) -> Result<Loaded, InvalidConfig> {
    let table = Config::default().table();
    let mut layers = Layers::new(&table);
    layers.add_file(sources);
    layers.add_environment(&sources.environment);
    layers.add_flags(sources);
    let mut reader = layers.into_reader();
    let config = Config::read(&mut reader);
    // People read a file from its top.
    reader.problems.sort_by_key(|problem| match &problem.place {
        Place::File { line, .. } => (0, line.unwrap_or(0)),
        Place::Environment { .. } => (1, 0),
        Place::Flag { .. } => (2, 0),
    });
    if reader.problems.is_empty() {
        Ok(Loaded {
            config,
            warnings: reader.warnings,
            places: reader.places,
        })
    } else {
        Err(InvalidConfig {
            problems: reader.problems,
        })
    }
}

/// Hands out the merged values one by one and gathers what is wrong with them.
#[derive(Default)]
struct Reader {
    values: BTreeMap<&'static str, layer::Sourced>,
    places: BTreeMap<&'static str, Place>,
    problems: Vec<Problem>,
    warnings: Vec<Problem>,
}

impl Reader {
    fn read<K: Kind>(&mut self, path: &'static str, kind: &K, default: K::Value) -> K::Value {
        let Some(sourced) = self.values.remove(path) else {
            return default;
        };
        match kind.read(&sourced.raw) {
            Ok(value) => {
                self.places.insert(path, sourced.place);
                value
            }
            Err(what) => {
                self.problems
                    .push(Problem::new(sourced.place, format!("`{path}` {what}")));
                default
            }
        }
    }
}
