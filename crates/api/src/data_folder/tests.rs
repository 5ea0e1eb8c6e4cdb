use std::fs;

use sluice_domain::key::Pepper;

use super::*;
use crate::config::{Config, Secret32};

/// A path that does not exist yet, and its guard.
fn fresh() -> (tempfile::TempDir, PathBuf) {
    let parent = tempfile::tempdir().unwrap();
    let path = parent.path().join("deep").join("data");
    (parent, path)
}

fn locked(path: &Path) -> DataFolder {
    let mut folder = DataFolder::open_or_create(path).unwrap();
    folder.lock().unwrap();
    folder
}

fn config(path: &Path) -> Config {
    Config {
        data_dir: path.to_owned(),
        ..Config::default()
    }
}

/// What hashing with a pepper gives: the only way to compare two of them.
fn print_of(pepper: &Pepper) -> [u8; 32] {
    pepper.hasher().hash("probe").0
}

#[cfg(unix)]
#[test]
fn the_folder_and_every_file_in_it_belong_to_the_owner_alone() {
    use std::os::unix::fs::PermissionsExt as _;

    let (_guard, path) = fresh();
    let folder = locked(&path);
    Secrets::load_or_create(&folder, &config(&path)).unwrap();
    let identity = folder.begin_boot().unwrap();
    folder.confirm_boot(identity.boot_id).unwrap();
    let mode = |path: &Path| fs::metadata(path).unwrap().permissions().mode() & 0o777;
    assert_eq!(mode(&path), 0o700);
    let mut names = Vec::new();
    for entry in fs::read_dir(&path).unwrap() {
        let entry = entry.unwrap();
        assert_eq!(mode(&entry.path()), 0o600, "{:?}", entry.path());
        names.push(entry.file_name().into_string().unwrap());
    }
    names.sort();
    assert_eq!(
        names,
        ["boots", "instance_id", "lock", "master.key", "pepper.key"]
    );
}

#[test]
fn a_second_lock_is_refused_until_the_first_holder_is_gone() {
    let (_guard, path) = fresh();
    let first = locked(&path);
    let mut second = DataFolder::open_or_create(&path).unwrap();
    assert_eq!(
        second.lock().unwrap_err().to_string(),
        format!(
            "the data folder {} is in use by another sluice process; stop it, or choose another \
             folder with --data",
            path.display()
        )
    );
    drop(first);
    second.lock().unwrap();
}

#[test]
fn an_instance_keeps_its_id_and_each_start_knows_all_before_it() {
    let (_guard, path) = fresh();
    let mut earlier = Vec::new();
    let mut instance = None;
    for start in 0..4 {
        let folder = locked(&path);
        let identity = folder.begin_boot().unwrap();
        assert_eq!(identity.earlier_boots, earlier);
        assert!(!earlier.contains(&identity.boot_id));
        assert_eq!(
            *instance.get_or_insert(identity.instance_id),
            identity.instance_id
        );
        // Whether a start that was never confirmed reached the database, nobody knows.
        if start != 2 {
            folder.confirm_boot(identity.boot_id).unwrap();
        }
        earlier.push(identity.boot_id);
    }
}

#[test]
fn a_settled_instance_is_set_aside_with_its_journal() {
    let (_guard, path) = fresh();
    let folder = locked(&path);
    let old = folder.begin_boot().unwrap();
    fs::write(folder.journal().unwrap().join("segment"), "posts").unwrap();
    folder.retire_instance().unwrap();
    let new = folder.begin_boot().unwrap();
    assert_ne!(new.instance_id, old.instance_id);
    assert_eq!(new.earlier_boots, []);
    let retired = path.join("retired").join(old.instance_id.to_string());
    let kept = fs::read_to_string(retired.join("journal/segment")).unwrap();
    assert_eq!(kept, "posts");
    assert!(
        folder
            .journal()
            .unwrap()
            .read_dir()
            .unwrap()
            .next()
            .is_none()
    );
}

#[test]
fn a_start_needs_the_lock() {
    let (_guard, path) = fresh();
    let folder = DataFolder::open_or_create(&path).unwrap();
    assert!(matches!(
        folder.begin_boot(),
        Err(FolderError::NotLocked { .. })
    ));
}

#[test]
fn damaged_files_are_named() {
    let (_guard, path) = fresh();
    let folder = locked(&path);
    folder.begin_boot().unwrap();
    fs::write(path.join("boots"), "what\n").unwrap();
    let error = folder.begin_boot().unwrap_err().to_string();
    assert!(error.starts_with("line 1 of "), "{error}");
    fs::write(path.join("instance_id"), "ins_1").unwrap();
    let error = folder.begin_boot().unwrap_err().to_string();
    assert!(
        error.ends_with("instance_id does not hold the id of an instance"),
        "{error}"
    );
}

#[test]
fn secrets_are_made_once_and_then_loaded() {
    let (_guard, path) = fresh();
    let folder = DataFolder::open_or_create(&path).unwrap();
    let made = Secrets::load_or_create(&folder, &config(&path)).unwrap();
    let again = Secrets::load_or_create(&folder, &config(&path)).unwrap();
    let loaded = Secrets::load(&config(&path)).unwrap();
    for secrets in [again, loaded] {
        assert_eq!(secrets.master_key.expose(), made.master_key.expose());
        assert_eq!(print_of(&secrets.pepper), print_of(&made.pepper));
    }
    assert_ne!(made.master_key.expose(), &[0; 32]);
    let texts = ["master.key", "pepper.key"].map(|f| fs::read_to_string(path.join(f)).unwrap());
    assert_ne!(texts[0], texts[1]);
}

#[test]
fn a_secret_of_the_settings_wins_and_no_file_is_made_for_it() {
    let (_guard, path) = fresh();
    let folder = DataFolder::open_or_create(&path).unwrap();
    let config = Config {
        master_key: Some(Secret32::new([5; 32])),
        pepper: Some(Secret32::new([6; 32])),
        ..config(&path)
    };
    let secrets = Secrets::load_or_create(&folder, &config).unwrap();
    assert_eq!(secrets.master_key.expose(), &[5; 32]);
    assert_eq!(print_of(&secrets.pepper), print_of(&Pepper::new([6; 32])));
    assert_eq!(fs::read_dir(&path).unwrap().count(), 0);
}

#[test]
fn a_missing_secret_is_never_made_up_for_an_existing_deployment() {
    let (_guard, path) = fresh();
    let folder = DataFolder::open_or_create(&path).unwrap();
    Secrets::load_or_create(&folder, &config(&path)).unwrap();
    fs::remove_file(path.join("pepper.key")).unwrap();
    assert_eq!(
        Secrets::load(&config(&path)).unwrap_err().to_string(),
        format!(
            "the pepper of this deployment is missing: there is no {}, and SLUICE_PEPPER and \
             SLUICE_PEPPER_FILE are not set",
            path.join("pepper.key").display()
        )
    );
    assert!(!path.join("pepper.key").exists());
}

#[test]
fn a_damaged_secret_is_named_and_not_shown() {
    let (_guard, path) = fresh();
    let folder = DataFolder::open_or_create(&path).unwrap();
    Secrets::load_or_create(&folder, &config(&path)).unwrap();
    fs::write(path.join("master.key"), "c2hvcnQ=\n").unwrap();
    let error = Secrets::load(&config(&path)).unwrap_err();
    let source = std::error::Error::source(&error).unwrap().to_string();
    assert!(error.to_string().ends_with("master.key is damaged"));
    assert!(source.starts_with("has 5 bytes, not 32"), "{source}");
    assert!(!format!("{error:?}{source}").contains("c2hvcnQ"));
}

#[cfg(unix)]
#[test]
fn a_secret_file_that_others_can_read_is_warned_about() {
    use std::os::unix::fs::PermissionsExt as _;

    let (_guard, path) = fresh();
    let folder = DataFolder::open_or_create(&path).unwrap();
    Secrets::load_or_create(&folder, &config(&path)).unwrap();
    let file = path.join("pepper.key");
    fs::set_permissions(&file, fs::Permissions::from_mode(0o644)).unwrap();
    assert_eq!(
        Secrets::load(&config(&path)).unwrap().warnings,
        [format!(
            "the secret file {} can be read by others; `chmod 600` it",
            file.display()
        )]
    );
}

#[test]
fn a_path_that_is_no_folder_or_cannot_be_made_is_named() {
    let (guard, _path) = fresh();
    let file = guard.path().join("file");
    fs::write(&file, "").unwrap();
    assert!(matches!(
        DataFolder::open_or_create(&file),
        Err(FolderError::NotAFolder { .. })
    ));
    assert!(matches!(
        DataFolder::open_or_create(&file.join("below")),
        Err(FolderError::CreateFolder { .. })
    ));
    // Even root may not make anything here.
    #[cfg(target_os = "linux")]
    assert!(matches!(
        DataFolder::open_or_create(Path::new("/proc")),
        Err(FolderError::NotWritable { .. })
    ));
}
