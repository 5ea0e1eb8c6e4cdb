use std::fs;
use std::path::Path;

use secrecy::ExposeSecret;

use super::*;

/// Loads a file with this text and these variables; returns the problems with the folder cut off.
#[track_caller]
fn problems(toml: &str, variables: &[(&str, &str)]) -> Vec<String> {
    let folder = tempfile::tempdir().unwrap();
    match load(&sources(folder.path(), toml, variables)) {
        Ok(_valid) => Vec::new(),
        Err(invalid) => invalid
            .problems
            .iter()
            .map(|p| {
                p.to_string()
                    .replace(&format!("{}/", folder.path().display()), "")
            })
            .collect(),
    }
}

#[track_caller]
fn config(toml: &str, variables: &[(&str, &str)]) -> Config {
    let folder = tempfile::tempdir().unwrap();
    load(&sources(folder.path(), toml, variables))
        .unwrap()
        .config
}

fn sources(folder: &Path, toml: &str, variables: &[(&str, &str)]) -> Sources {
    let file = folder.join("sluice.toml");
    fs::write(&file, toml).unwrap();
    Sources {
        file: Some(file),
        environment: variables.iter().copied().collect(),
        ..Sources::default()
    }
}

#[test]
fn without_any_layer_the_defaults_apply() {
    let config = load(&Sources::default()).unwrap().config;
    assert_eq!(config.listen.to_string(), "127.0.0.1:8000");
    assert_eq!(config.server.header_timeout, Duration::from_secs(10));
    assert_eq!(config.server.max_body_bytes, 33_554_432);
    assert_eq!(config.relay.keep_alive, Duration::from_secs(12));
    assert_eq!(config.cors.allowed_origins, AllowedOrigins::Off);
    assert_eq!(
        config.effective_database_url().expose_secret(),
        "sqlite:sluice-data/sluice.db"
    );
}

#[test]
fn every_default_passes_its_own_check() {
    // Each default, written as TOML, is read again: no default is outside of its own range.
    let loaded = load(&Sources::default()).unwrap();
    assert_eq!(problems(&loaded.effective(), &[]), Vec::<String>::new());
}

#[test]
fn later_layers_win() {
    let folder = tempfile::tempdir().unwrap();
    let mut sources = sources(
        folder.path(),
        "listen = '127.0.0.1:1'\ndata_dir = 'a'\n[server]\nworkers = 1\nmax_connections = 7",
        &[
            ("SLUICE_LISTEN", "127.0.0.1:2"),
            ("SLUICE_SERVER_WORKERS", "2"),
        ],
    );
    sources.listen = Some("127.0.0.1:3".to_owned());
    let loaded = load(&sources).unwrap();
    assert_eq!(loaded.config.listen.to_string(), "127.0.0.1:3");
    assert_eq!(loaded.config.server.workers, 2);
    assert_eq!(loaded.config.server.max_connections, 7);
    let effective = loaded.effective();
    for line in [
        "listen = \"127.0.0.1:3\" # --listen",
        "workers = 2 # SLUICE_SERVER_WORKERS",
        "drain_ms = 30000 # default",
        "sluice.toml:5",
    ] {
        assert!(effective.contains(line), "{line} in\n{effective}");
    }
}

#[test]
fn the_file_is_named_by_a_flag_or_by_one_of_two_variables() {
    let folder = tempfile::tempdir().unwrap();
    let named = |name: &str, workers: usize| {
        let path = folder.path().join(name);
        fs::write(&path, format!("server.workers = {workers}")).unwrap();
        path
    };
    let (flag, first, second) = (named("a", 1), named("b", 2), named("c", 3));
    let variables = [
        ("SLUICE_CONFIG", first.to_str().unwrap()),
        ("CONFIG_FILE", second.to_str().unwrap()),
    ];
    let workers = |file: Option<&PathBuf>, variables: &[(&str, &str)]| {
        load(&Sources {
            file: file.cloned(),
            environment: variables.iter().copied().collect(),
            ..Sources::default()
        })
        .unwrap()
        .config
        .server
        .workers
    };
    assert_eq!(workers(Some(&flag), &variables), 1);
    assert_eq!(workers(None, &variables), 2);
    assert_eq!(workers(None, &variables[1..]), 3);
    assert_eq!(workers(None, &[]), 0);
}

#[test]
fn an_unknown_setting_is_named_with_its_line_and_a_suggestion() {
    for (toml, expected) in [
        (
            "\n[server]\nmax_conections = 1",
            "sluice.toml:3: `server.max_conections` is not a setting; did you mean \
             `server.max_connections`?",
        ),
        (
            "max_connections = 1",
            "sluice.toml:1: `max_connections` is not a setting; did you mean \
             `server.max_connections`?",
        ),
        (
            "[server]\nheader_timeout = 1",
            "sluice.toml:2: `server.header_timeout` is not a setting; did you mean \
             `server.header_timeout_ms`?",
        ),
        (
            "lisen = 'x'",
            "sluice.toml:1: `lisen` is not a setting; did you mean `listen`?",
        ),
        (
            "[sever]\nworkers = 1",
            "sluice.toml:1: `[sever]` is not a section; did you mean `[server]`?",
        ),
        (
            "[quite_something_else]\nx = 1",
            "sluice.toml:1: `[quite_something_else]` is not a section; `sluice config reference` \
             lists what there is",
        ),
        (
            "quite_something_else = 1",
            "sluice.toml:1: `quite_something_else` is not a setting; `sluice config reference` \
             lists what there is",
        ),
        (
            "server = 1",
            "sluice.toml:1: `server` is a section: write `[server]` and its settings below",
        ),
    ] {
        assert_eq!(problems(toml, &[]), [expected], "{toml}");
    }
}

#[test]
fn an_unknown_variable_is_named_with_a_suggestion() {
    assert_eq!(
        problems("", &[("SLUICE_SERVER_WORKER", "1")]),
        [
            "SLUICE_SERVER_WORKER: `SLUICE_SERVER_WORKER` is not a setting; did you mean \
          `SLUICE_SERVER_WORKERS`?"
        ]
    );
    assert_eq!(
        problems("", &[("SLUICE_DATABASE", "sqlite:x")]),
        [
            "SLUICE_DATABASE: `SLUICE_DATABASE` is not a setting; did you mean \
          `SLUICE_DATABASE_URL`?"
        ]
    );
}

#[test]
fn variables_of_kubernetes_and_of_others_are_left_alone() {
    let none: Vec<String> = Vec::new();
    assert_eq!(
        problems(
            "",
            &[
                ("SLUICE_PORT", "tcp://10.0.0.1:8000"),
                ("SLUICE_PORT_8000_TCP_ADDR", "10.0.0.1"),
                ("SLUICE_SERVICE_HOST", "10.0.0.1"),
                ("SLUICE_SERVICE_PORT_HTTP", "8000"),
                ("SLUICE_POSTGRES_SERVICE_PORT", "5432"),
                ("SLUICER", "1"),
                ("PATH", "/bin"),
                ("SLUICE_LOG_LEVEL", ""),
            ]
        ),
        none
    );
    assert_eq!(problems("", &[("SLUICE_PORT", "8000")]).len(), 1);
}

#[test]
fn a_value_of_the_wrong_kind_or_range_says_what_would_be_right() {
    for (toml, expected) in [
        (
            "listen = 8000",
            "sluice.toml:1: `listen` must be an IP address and port such as 127.0.0.1:8000 or \
             [::]:8000, not 8000",
        ),
        (
            "listen = 'localhost:8000'",
            "sluice.toml:1: `listen` must be an IP address and port such as 127.0.0.1:8000 or \
             [::]:8000, not `localhost:8000`",
        ),
        (
            "[server]\nmax_connections = 0",
            "sluice.toml:2: `server.max_connections` must be a whole number of connections from 1 \
             to 1000000, not 0",
        ),
        (
            "server.drain_ms = -1",
            "sluice.toml:1: `server.drain_ms` must be a whole number of milliseconds from 0 to \
             3600000, not -1",
        ),
        (
            "server.drain_ms = '30s'",
            "sluice.toml:1: `server.drain_ms` must be a whole number of milliseconds from 0 to \
             3600000, not `30s`",
        ),
        (
            "server.workers = 1.5",
            "sluice.toml:1: `server.workers` must be a whole number of threads from 0 to 1024, not \
             a number with a fraction",
        ),
        (
            "server.workers = true",
            "sluice.toml:1: `server.workers` must be a whole number of threads from 0 to 1024, not \
             a boolean",
        ),
        (
            "server.trusted_proxies = ['10.0.0.0/8', 'lan']",
            "sluice.toml:1: `server.trusted_proxies` holds `lan`, which is not a network such as \
             10.0.0.0/8 or fd00::/8",
        ),
        (
            "server.trusted_proxies = ['10.0.0.1/8']",
            "sluice.toml:1: `server.trusted_proxies` holds `10.0.0.1/8`, which has bits outside of \
             its prefix; write `10.0.0.0/8` or `10.0.0.1`",
        ),
        (
            "server.trusted_proxies = 7",
            "sluice.toml:1: `server.trusted_proxies` must be a list of networks, not 7",
        ),
        (
            "cors.allowed_origins = ['https://a.example/path']",
            "sluice.toml:1: `cors.allowed_origins` holds `https://a.example/path`, which is not an \
             origin such as https://chat.example.com (scheme, host, port; no path)",
        ),
        (
            "cors.allowed_origins = ['*', 'https://a.example']",
            "sluice.toml:1: `cors.allowed_origins` holds `*` beside other origins; `*` alone is \
             every origin",
        ),
        (
            "log.format = 'xml'",
            "sluice.toml:1: `log.format` must be `auto`, `text` or `json`, not `xml`",
        ),
        (
            "log.level = 'inof'",
            "sluice.toml:1: `log.level` must be a level (`error`, `warn`, `info`, `debug`, \
             `trace`, `off`) or directives such as `info,sluice_api=debug`, not `inof`",
        ),
        (
            "database_url = 'mysql://user:topsecret@host/db'",
            "sluice.toml:1: `database_url` must be `sqlite:PATH` or \
             `postgres://USER:PASSWORD@HOST/NAME`, with special characters of the password \
             percent-encoded",
        ),
        (
            "pepper = 'dG9wc2VjcmV0'",
            "sluice.toml:1: `pepper` has 9 bytes, not 32; make one with `openssl rand -base64 32`",
        ),
        (
            "master_key = 'top secret!'",
            "sluice.toml:1: `master_key` is neither base64 nor hexadecimal; make one with \
             `openssl rand -base64 32`",
        ),
        (
            "master_key_file = 1",
            "sluice.toml:1: `master_key_file` must be the path of a file",
        ),
    ] {
        assert_eq!(problems(toml, &[]), [expected], "{toml}");
    }
}

#[test]
fn text_that_is_not_toml_is_named_with_its_line() {
    let problems = problems("listen = '127.0.0.1:1'\nworkers = = 2\n", &[]);
    assert!(
        problems[0].starts_with("sluice.toml:2: is not TOML: "),
        "{problems:?}"
    );
    let twice = self::problems("listen = '127.0.0.1:1'\nlisten = '127.0.0.1:2'\n", &[]);
    assert!(
        twice[0].starts_with("sluice.toml:2: is not TOML: duplicate key"),
        "{twice:?}"
    );
}

#[test]
fn a_missing_file_is_a_problem_and_not_an_empty_one() {
    let invalid = load(&Sources {
        file: Some(PathBuf::from("/nowhere/sluice.toml")),
        ..Sources::default()
    })
    .unwrap_err();
    assert_eq!(
        invalid.to_string(),
        "/nowhere/sluice.toml: cannot be read: No such file or directory (os error 2)"
    );
}

#[test]
fn every_problem_is_reported_at_once_and_in_the_order_of_the_file() {
    let problems = problems(
        "[server]\nworkers = 'many'\ntypo = 1\n[log]\nlevle = 'x'",
        &[("SLUICE_RELAY_HEAD_WAIT_MS", "x")],
    );
    let places: Vec<_> = problems
        .iter()
        .filter_map(|p| p.split_once(": "))
        .map(|p| p.0)
        .collect();
    assert_eq!(
        places,
        [
            "sluice.toml:2",
            "sluice.toml:3",
            "sluice.toml:5",
            "SLUICE_RELAY_HEAD_WAIT_MS"
        ]
    );
}

#[test]
fn a_secret_comes_from_a_file_and_is_never_shown() {
    let folder = tempfile::tempdir().unwrap();
    let file = folder.path().join("pepper");
    let secret = Secret32::new([9; 32]);
    fs::write(&file, format!("{}\n", secret.to_base64().as_str())).unwrap();
    for (toml, variables) in [
        (
            String::new(),
            vec![("SLUICE_PEPPER_FILE", file.to_str().unwrap())],
        ),
        (format!("pepper_file = {file:?}"), vec![]),
    ] {
        let loaded = load(&sources(folder.path(), &toml, &variables)).unwrap();
        assert_eq!(
            loaded.config.pepper.as_ref().unwrap().expose(),
            secret.expose()
        );
        let printed = format!("{}{:?}", loaded.effective(), loaded.config);
        assert!(loaded.effective().contains("pepper = \"(hidden)\""));
        assert!(!printed.contains(secret.to_base64().as_str()));
    }
}

#[test]
fn a_secret_that_is_given_twice_in_one_layer_is_refused_but_a_later_layer_wins() {
    let secret = Secret32::new([1; 32]).to_base64();
    let both = [
        ("SLUICE_PEPPER", secret.as_str()),
        ("SLUICE_PEPPER_FILE", "/nowhere"),
    ];
    assert_eq!(
        problems("", &both),
        ["SLUICE_PEPPER_FILE: `pepper` is already given by SLUICE_PEPPER; keep one"]
    );
    // The file of the lower layer does not count and is not opened.
    assert!(
        config("pepper_file = '/nowhere'", &both[..1])
            .pepper
            .is_some()
    );
}

#[test]
fn a_missing_secret_file_names_the_setting_and_the_file() {
    assert_eq!(
        problems("", &[("SLUICE_DATABASE_URL_FILE", "/nowhere")]),
        [
            "SLUICE_DATABASE_URL_FILE: /nowhere cannot be read: No such file or directory \
             (os error 2)"
        ]
    );
}

#[test]
fn the_password_of_the_database_is_hidden() {
    let folder = tempfile::tempdir().unwrap();
    let url = "postgres://ann:topsecret@db.example:5432/sluice?sslpassword=topsecret";
    let loaded = load(&sources(folder.path(), "", &[("SLUICE_DATABASE_URL", url)])).unwrap();
    assert_eq!(loaded.config.effective_database_url().expose_secret(), url);
    let effective = loaded.effective();
    assert!(
        effective.contains("database_url = \"postgres://ann:***@db.example:5432/sluice?***\""),
        "{effective}"
    );
    assert!(!format!("{effective}{loaded:?}").contains("topsecret"));
}

#[cfg(unix)]
#[test]
fn a_file_with_a_secret_that_others_can_read_is_warned_about() {
    use std::os::unix::fs::PermissionsExt as _;

    let folder = tempfile::tempdir().unwrap();
    let toml = format!("pepper = '{}'", "ab".repeat(32));
    let sources = sources(folder.path(), &toml, &[]);
    let file = sources.file.clone().unwrap();
    for (mode, count) in [(0o644, 1), (0o600, 0)] {
        fs::set_permissions(&file, fs::Permissions::from_mode(mode)).unwrap();
        let warnings = load(&sources).unwrap().warnings;
        assert_eq!(warnings.len(), count, "{warnings:?}");
    }
}

#[test]
fn lists_are_read_from_toml_and_from_text() {
    let text = [
        ("SLUICE_SERVER_TRUSTED_PROXIES", "10.0.0.0/8, 127.0.0.1"),
        (
            "SLUICE_CORS_ALLOWED_ORIGINS",
            "https://Chat.example.com/,app://obsidian.md",
        ),
    ];
    let toml = "server.trusted_proxies = ['10.0.0.0/8', '127.0.0.1']\n\
                cors.allowed_origins = ['https://Chat.example.com/', 'app://obsidian.md']";
    for config in [config("", &text), config(toml, &[])] {
        assert_eq!(
            config.server.trusted_proxies,
            [
                "10.0.0.0/8".parse().unwrap(),
                "127.0.0.1/32".parse().unwrap()
            ]
        );
        assert_eq!(
            config.cors.allowed_origins,
            AllowedOrigins::Listed(vec![
                "https://chat.example.com".to_owned(),
                "app://obsidian.md".to_owned()
            ])
        );
    }
    assert_eq!(
        config("cors.allowed_origins = '*'", &[])
            .cors
            .allowed_origins,
        AllowedOrigins::Any
    );
}

#[test]
fn the_committed_reference_is_what_the_table_says() {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join("../../docs/configuration.md");
    let committed = fs::read_to_string(&path).unwrap_or_default();
    assert!(
        committed == reference(),
        "run `cargo run -q -- config reference > docs/configuration.md`"
    );
}

#[test]
fn every_environment_name_is_unique() {
    let mut names: Vec<_> = Config::default()
        .table()
        .iter()
        .map(|setting| layer::variable(setting.path))
        .collect();
    let count = names.len();
    names.sort();
    names.dedup();
    assert_eq!(names.len(), count);
}
