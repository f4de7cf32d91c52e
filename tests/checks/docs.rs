//! Texts that come from the table of settings: UPDATE_DOCS=1 writes them, otherwise they are compared.

use std::path::Path;

use ganeti_instance_debootstrap::settings::table::{KEYS, Key, Kind, parameters_list};

/// A default as config.toml would have it.
fn default_of(key: &Key) -> String {
    let all: toml::Table = toml::from_str(include_str!("../../defaults.toml")).unwrap();
    let value = all["all"].get(key.name).or_else(|| all["1"].get(key.name)).unwrap();
    value.to_string().replace("CONFIG_DIR", "/etc/ganeti/instance-debootstrap")
}

fn compare(file: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    if std::env::var_os("UPDATE_DOCS").is_some() {
        std::fs::write(&path, wanted).unwrap();
    }
    let found = std::fs::read_to_string(&path).unwrap_or_default();
    assert_eq!(
        found, wanted,
        "{file} is not what the table says: UPDATE_DOCS=1 cargo test --test checks docs"
    );
}

/// Compares the part of a document between `<!-- NAME -->` and `<!-- end -->`.
pub fn compare_part(file: &str, name: &str, wanted: &str) {
    let path = Path::new(env!("CARGO_MANIFEST_DIR")).join(file);
    let document = std::fs::read_to_string(path).unwrap();
    let mark = format!("<!-- {name} -->\n");
    let (before, rest) = document.split_once(&mark).expect("the table begins");
    let (_, after) = rest.split_once("<!-- end -->").expect("the table ends");
    compare(file, &format!("{before}{mark}{wanted}<!-- end -->{after}"));
}

#[test]
fn parameters_list_names_every_os_parameter() {
    compare("os-def/parameters.list", &parameters_list());
}

#[test]
fn the_template_of_config_toml_shows_every_setting() {
    let mut text = String::from(
        "# Settings of ganeti-instance-debootstrap on this node.\n\
         # A line that begins with # shows a default. `ganeti-instance-debootstrap config show --origin` tells what\n\
         # holds and where it comes from, `config check` what is wrong. A variant's own settings stand in\n\
         # variants/NAME.toml beside this file, with the same keys.\n\n\
         # Whose defaults hold: \"1\", or \"0.17\" for those of the predecessor (msdos).\n\
         defaults = \"1\"\n",
    );
    for key in KEYS {
        text += &format!("\n# {}.\n", key.help);
        if key.is_parameter() {
            text += "# Also an OS parameter, which wins.\n";
        }
        text += &format!("#{} = {}\n", key.name, default_of(key));
    }
    compare("os-def/config.toml", &text);
    let all: String = text
        .lines()
        .map(|l| format!("{}\n", l.strip_prefix('#').filter(|l| !l.starts_with(' ')).unwrap_or(l)))
        .collect();
    toml::from_str::<toml::Table>(&all).expect("every commented setting is right when its # is taken away");
}

#[test]
fn the_readme_shows_every_setting() {
    let mut table = String::from(
        "| setting | shell variable | OS parameter | default | meaning |\n|---|---|---|---|---|\n",
    );
    for key in KEYS {
        let days = if key.kind == Kind::Days { "; 0 and more" } else { "" };
        table += &format!(
            "| `{}` | {} | {} | `{}` | {}{days} |\n",
            key.name,
            key.legacy.map_or(String::new(), |name| format!("`{name}`")),
            if key.is_parameter() { "yes" } else { "" },
            default_of(key),
            key.help,
        );
    }
    compare_part("README.md", "settings", &table);
}

#[test]
fn every_test_that_docs_trust_names_is_there() {
    let functions: std::collections::BTreeSet<String> = ["tests", "src"]
        .into_iter()
        .flat_map(|dir| walkdir::WalkDir::new(Path::new(env!("CARGO_MANIFEST_DIR")).join(dir)))
        .map(|entry| entry.unwrap().into_path())
        .filter(|path| path.extension().is_some_and(|ending| ending == "rs"))
        .flat_map(|path| {
            let text = std::fs::read_to_string(path).unwrap();
            let names = text
                .split("#[test]")
                .skip(1)
                .filter_map(|rest| Some(rest.split_once("fn ")?.1.split_once('(')?.0.to_owned()));
            names.collect::<Vec<_>>()
        })
        .collect();
    let text = std::fs::read_to_string(Path::new(env!("CARGO_MANIFEST_DIR")).join("docs/trust.md")).unwrap();
    let lists: Vec<&str> = text.split('[').skip(1).filter_map(|rest| Some(rest.split_once(']')?.0)).collect();
    let named: Vec<&str> = lists.iter().flat_map(|list| list.split('`').skip(1).step_by(2)).collect();
    assert!(named.len() > 40, "{}", named.len());
    for name in named {
        assert!(functions.contains(name), "docs/trust.md names the test {name}, which is not there");
    }
}
