//! cache: list, build, refresh, prune, verify, seal.

use std::collections::BTreeSet;
use std::fmt::Write as _;
use std::path::{Path, PathBuf};

use anyhow::{Context as _, Result};
use serde_json::json;

use super::{Outcome, answer, answer_json, image, node_context, warn};
use crate::bootstrap::{Kernel, downloads};
use crate::cache::{
    CHECKED, Entry, Exposed, Judgement, Kind, NOT_CHECKED, Signatures, Store, TemplateEntry, manifest_path,
};
use crate::cli::CacheCommand;
use crate::disk::Medium;
use crate::guest::Workspace;
use crate::install::base_tree::{self, Freshness};
use crate::install::template;
use crate::plan::{BasePlan, DiskFacts, Inputs, Plan, TreeSource, boot_plan};
use crate::report::{self, Foreign, WithHint, size};
use crate::request::{Env, Places};
use crate::settings::{Settings, published, with_files};

/// Looks after the cache.
pub fn cache(command: &CacheCommand, env: Env) -> Result<Outcome> {
    match command {
        CacheCommand::List { json } => list(&env, *json),
        CacheCommand::Build { variant, size } => {
            // What cannot be is refused before a tree is made for it.
            let disk = size.map(|bytes| disk_plan(&env, variant.as_deref(), bytes)).transpose()?;
            let workspace = Workspace::enter()?;
            build(&env, variant.as_deref(), &workspace, Freshness::Checked)?;
            if let Some(plan) = disk {
                build_template(&plan, &workspace)?;
            }
            Ok(Outcome::Done)
        }
        CacheCommand::Refresh => refresh(&env),
        CacheCommand::Prune => prune(&env),
        CacheCommand::Verify => verify(&known(&env)?.stores),
        CacheCommand::Seal { file } => seal(&known(&env)?.stores, file),
    }
}

/// The trees of a variant that are to be made, with its settings.
fn build(env: &Env, variant: Option<&str>, workspace: &Workspace, freshness: Freshness) -> Result<()> {
    for plan in plans(env, variant, Kernels::Usual)? {
        base_tree::ready(&plan, workspace, freshness)?;
    }
    Ok(())
}

/// What an instance with paravirtual devices under KVM gets on a disk of this size.
fn disk_plan(env: &Env, variant: Option<&str>, size_bytes: u64) -> Result<Plan> {
    let (name, output) = ("template.example.org", Path::new("/template"));
    let wanted = image::Wanted { name, variant, size_bytes, output, params: &[] };
    let (context, instance) = image::request(&wanted, env)?;
    let mut settings = Settings::load(&context, "cache")?;
    settings.generate_cache = true;
    let facts = DiskFacts { size_bytes, medium: Medium::File };
    let inputs = Inputs { context: &context, instance: &instance, settings: &settings };
    Plan::for_create(inputs, facts, TreeSource::Recipe)
}

/// The template for the disk of a plan.
fn build_template(plan: &Plan, workspace: &Workspace) -> Result<()> {
    let base = base_tree::ready(&plan.base, workspace, Freshness::Cached)?;
    match template::wanted(plan, &base, workspace)? {
        Some(template) => report::line(&format!("{:>10}  {}", "template", template.path.display())),
        None => report::warning("such a disk gets no template: its tree is unpacked"),
    }
    Ok(())
}

/// Which of a variant's trees are meant.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
enum Kernels {
    /// What an instance with paravirtual devices gets under KVM.
    Usual,
    /// Also those with another kernel, or none, that the cache has because creates needed them.
    AlsoCached,
}

/// The trees of a variant.
fn plans(env: &Env, variant: Option<&str>, kernels: Kernels) -> Result<Vec<BasePlan>> {
    let context = node_context(env, variant)?;
    let mut settings = Settings::load(&context, "cache")?;
    warn(&settings);
    // Whoever asks for one wants it, whatever creates do by themselves.
    settings.generate_cache = true;
    let usual = boot_plan(&settings, "kvm", &[])?.map(|boot| boot.kernel);
    let mut plans = vec![BasePlan::new(&context, &settings, usual)];
    for other in
        [None, Some(Kernel::Cloud), Some(Kernel::Generic)].into_iter().filter(|other| *other != usual)
    {
        let plan = BasePlan::new(&context, &settings, other);
        if kernels == Kernels::AlsoCached
            && Store::open(&plan.cache_dir, plan.judgement)?.has(&plan.recipe)?
        {
            plans.push(plan);
        }
    }
    Ok(plans)
}

/// Every published variant; what several share is made once.
fn refresh(env: &Env) -> Result<Outcome> {
    let mut names = published(&Places::from_env(env));
    if names.is_empty() {
        names.push("default".into());
    }
    let workspace = Workspace::enter()?;
    let mut done: BTreeSet<(PathBuf, String)> = BTreeSet::new();
    let mut failed = Vec::new();
    for name in &names {
        let result = plans(env, Some(name), Kernels::AlsoCached).and_then(|plans| {
            for plan in plans {
                let made = (plan.cache_dir.clone(), plan.recipe.cache_key());
                if !done.contains(&made) {
                    make_again(&plan, &workspace)?;
                    done.insert(made);
                }
            }
            Ok(())
        });
        if let Err(error) = result {
            crate::sys::signals::check()?;
            report::error(&error);
            failed.push(name.clone());
        }
    }
    if failed.is_empty() {
        return Ok(Outcome::Done);
    }
    Err(anyhow::anyhow!(
        "{} of {} variants could not be refreshed: {}",
        failed.len(),
        names.len(),
        failed.join(", ")
    ))
    .hint("what an earlier refresh made still serves; the causes stand above")
}

fn make_again(plan: &BasePlan, workspace: &Workspace) -> Result<()> {
    let specs = Store::open(&plan.cache_dir, plan.judgement)?.specs(&plan.recipe)?;
    let base = base_tree::ready(plan, workspace, Freshness::Anew)?;
    template::make_again(plan, &base, &specs, workspace)
}

/// What is kept, by the most generous of all variants: what any of them still uses stays.
struct Keeping {
    /// None: for ever.
    days: Option<u32>,
    templates: usize,
    /// The node's cache, and those that variants' shell files move it to.
    stores: Vec<Store>,
}

fn keeping(env: &Env) -> Result<Keeping> {
    let places = Places::from_env(env);
    let plain = Settings::load(&node_context(env, None)?, "cache")?;
    let mut names = published(&places);
    names.extend(with_files(Path::new(plain.text("variants_dir"))));
    let (days, templates) = (plain.clean_cache_days, plain.templates);
    let mut dirs = vec![places.cache_dir.clone()];
    let mut keeping = Keeping { days, templates, stores: Vec::new() };
    for name in names {
        let settings = Settings::load(&node_context(env, Some(&name))?, "cache")
            .with_context(|| format!("reading the settings of the variant {name}"))?;
        keeping.days = keeping.days.zip(settings.clean_cache_days).map(|(a, b)| a.max(b));
        keeping.templates = keeping.templates.max(settings.templates);
        dirs.push(settings.cache_dir(&places).to_owned());
    }
    let mut seen = BTreeSet::new();
    dirs.retain(|dir| seen.insert(dir.clone()));
    let judgement = Judgement::strict_if(plain.is_strict());
    keeping.stores = dirs.iter().map(|dir| Store::open(dir, judgement)).collect::<Result<_>>()?;
    Ok(keeping)
}

/// The same for a command that removes nothing. If settings are wrong, it looks at the node's own
/// cache, and nothing in it counts as expired.
fn known(env: &Env) -> Result<Keeping> {
    keeping(env).or_else(|error| {
        let node = Store::open(&Places::from_env(env).cache_dir, Judgement::Strict)?;
        let (error, dir) = (report::sentence(&error), node.dir.display());
        report::warning(&format!("{error}: what has expired cannot be told, and only {dir} is looked at"));
        Ok(Keeping { days: None, templates: 0, stores: vec![node] })
    })
}

/// The entries of all stores.
fn all<T>(stores: &[Store], of: fn(&Store) -> Result<Vec<T>>) -> Result<Vec<T>> {
    let each: Result<Vec<Vec<T>>> = stores.iter().map(of).collect();
    Ok(each?.into_iter().flatten().collect())
}

/// The name of a file in the node's own cache, the path of any other one.
fn shown(path: &Path, stores: &[Store]) -> String {
    let node = stores.first().map_or(Path::new(""), |store| &store.dir);
    foreign_path(path.strip_prefix(node).unwrap_or(path))
}

/// Names in the cache, and what manifests say, may be anybody's.
fn foreign_path(path: &Path) -> String {
    Foreign(path.as_os_str().as_encoded_bytes()).to_string()
}

fn foreign(text: &str) -> String {
    Foreign(text.as_bytes()).to_string()
}

/// What is wrong with a file of the cache, in a word; an error is told.
fn fault(error: &anyhow::Error) -> &'static str {
    if report::cause::<Exposed>(error).is_some() { "REFUSED" } else { "DAMAGED" }
}

fn list(env: &Env, as_json: bool) -> Result<Outcome> {
    let Keeping { days, stores, .. } = known(env)?;
    let entries = all(&stores, Store::entries)?;
    let templates = all(&stores, Store::templates)?;
    stores.iter().for_each(tell_packages);
    if as_json {
        let trees = entries.iter().map(|entry| object(entry, days));
        let objects: Vec<serde_json::Value> = trees.chain(templates.iter().map(template_object)).collect();
        answer_json(&objects.into())?;
        return Ok(Outcome::Done);
    }
    if entries.is_empty() && templates.is_empty() {
        for store in &stores {
            let dir = store.dir.display();
            report::line(&format!("{dir} is empty; the first create or `cache build` fills it"));
        }
        return Ok(Outcome::Done);
    }
    let mut text = format!(
        "{:10} {:8} {:8} {:>10}  {:20}  {:8}  FILE\n",
        "SUITE", "ARCH", "KERNEL", "SIZE", "MADE", "STATE"
    );
    for entry in &entries {
        let made = humantime::format_rfc3339_seconds(entry.made).to_string();
        let (state, bytes, name) = (state(entry, days), size(entry.size_bytes), shown(&entry.path, &stores));
        let (suite, arch, kernel) = (foreign(&entry.suite), foreign(&entry.arch), foreign(kernel(entry)));
        let _ = writeln!(text, "{suite:10} {arch:8} {kernel:8} {bytes:>10}  {made}  {state:8}  {name}");
    }
    for entry in &templates {
        let bytes = size(entry.size_bytes);
        let ([suite, arch, kernel], made, state) = match &entry.template {
            Ok(template) => {
                let origin = template.origin();
                let made = humantime::format_rfc3339_seconds(template.made()).to_string();
                let words = [&origin.suite, &origin.arch, dash(&origin.kernel)];
                (words.map(foreign), made, "template")
            }
            Err(error) => (["-"; 3].map(foreign), "-".into(), fault(error)),
        };
        let name = shown(&entry.path, &stores);
        let _ = writeln!(text, "{suite:10} {arch:8} {kernel:8} {bytes:>10}  {made:20}  {state:8}  {name}");
    }
    answer(&text)?;
    Ok(Outcome::Done)
}

/// What is there besides trees.
fn tell_packages(store: &Store) {
    let (count, bytes) = downloads::total(&store.packages_dir());
    if count > 0 {
        let dir = store.packages_dir();
        report::line(&format!(
            "{count} packages for bootstraps to come in {}: {}",
            dir.display(),
            size(bytes)
        ));
    }
}

/// `-` where a tree has none, or nobody knows.
fn kernel(entry: &Entry) -> &str {
    dash(entry.manifest.as_ref().map_or("", |manifest| &manifest.boot))
}

fn dash(text: &str) -> &str {
    if text.is_empty() { "-" } else { text }
}

fn state(entry: &Entry, days: Option<u32>) -> &'static str {
    if let Err(error) = entry.open() {
        return fault(&error);
    }
    let sealed = entry.manifest.as_ref().is_some_and(|manifest| manifest.sealed);
    match (sealed, entry.expired(days), entry.kind) {
        (true, _, _) => "sealed",
        (_, true, _) => "expired",
        (_, _, Kind::Handmade) => "by hand",
        _ => match entry.signatures() {
            Signatures::Checked => "ready",
            Signatures::NotChecked => "unsigned",
            Signatures::Unknown => "unknown",
        },
    }
}

fn object(entry: &Entry, days: Option<u32>) -> serde_json::Value {
    let mut object = json!({
        "kind": "tree", "file": entry.path, "suite": entry.suite, "arch": entry.arch, "size_bytes": entry.size_bytes,
        "made": humantime::format_rfc3339_seconds(entry.made).to_string(), "state": state(entry, days),
    });
    if let Some(manifest) = &entry.manifest {
        object["codename"] = json!(manifest.codename);
        object["kernel"] = json!(kernel(entry));
        object["digest"] = json!(manifest.digest);
        object["signatures"] = json!(match entry.signatures() {
            Signatures::Checked => CHECKED,
            Signatures::NotChecked => NOT_CHECKED,
            Signatures::Unknown => "unknown",
        });
        object["mirror"] = json!(manifest.mirror);
        object["components"] = json!(manifest.components);
        object["extra_pkgs"] = json!(manifest.extra_pkgs);
        object["packages"] = json!(manifest.packages.len());
    }
    object
}

fn template_object(entry: &TemplateEntry) -> serde_json::Value {
    let seconds = |time| humantime::format_rfc3339_seconds(time).to_string();
    let mut object = json!({
        "kind": "template", "file": entry.path, "size_bytes": entry.size_bytes, "used": seconds(entry.used),
        "state": if entry.template.is_ok() { "ready" } else { "damaged" },
    });
    if let Ok(template) = &entry.template {
        let (origin, spec) = (template.origin(), template.spec());
        object["suite"] = json!(origin.suite);
        object["arch"] = json!(origin.arch);
        object["kernel"] = json!(dash(&origin.kernel));
        object["tree"] = json!(origin.file);
        object["filesystem"] = json!(spec.filesystem);
        object["root_bytes"] = json!(spec.size_bytes);
        object["made"] = json!(seconds(template.made()));
    }
    object
}

fn prune(env: &Env) -> Result<Outcome> {
    let keeping = keeping(env).hint("`config check` shows all that is wrong; nothing was removed")?;
    let mut freed = 0;
    for store in &keeping.stores {
        if store.dir.is_dir() {
            freed += prune_store(store, &keeping)?;
        } else {
            report::line(&format!("{} is not there: nothing to remove", store.dir.display()));
        }
    }
    report::line(&format!("{} freed", size(freed)));
    Ok(Outcome::Done)
}

/// Returns the bytes that were freed.
fn prune_store(store: &Store, keeping: &Keeping) -> Result<u64> {
    let Keeping { days, templates, .. } = *keeping;
    // What is being made looks like what was left behind, and takes the place of what has expired.
    let _lock = store.lock(|holder| {
        report::line(&format!("{:>10}  waiting for {holder}, which makes a tree for the cache", "..."));
    })?;
    let mut freed = 0;
    let mut remove = |path: &Path| -> Result<()> {
        let bytes = std::fs::metadata(path).map_or(0, |meta| meta.len());
        match std::fs::remove_file(path) {
            Ok(()) => {
                freed += bytes;
                report::line(&format!("removed {}", foreign_path(path)));
                Ok(())
            }
            Err(error) if error.kind() == std::io::ErrorKind::NotFound => Ok(()),
            Err(error) => Err(error).with_context(|| format!("removing {}", path.display())),
        }
    };
    for entry in store.entries()?.iter().filter(|entry| entry.expired(days)) {
        remove(&entry.path)?;
        remove(&manifest_path(&entry.path))?;
    }
    for orphan in store.orphans()? {
        remove(&orphan)?;
    }
    for template in store.stale_templates()? {
        remove(&template)?;
    }
    for (before, template) in store.templates()?.iter().enumerate() {
        let unused = template.used.elapsed().unwrap_or_default().as_secs() / (24 * 3600);
        if before >= templates || days.is_some_and(|days| unused > u64::from(days)) {
            remove(&template.path)?;
        }
    }
    for package in days.map(|days| downloads::unused(&store.packages_dir(), days)).unwrap_or_default() {
        remove(&package)?;
    }
    Ok(freed)
}

fn verify(stores: &[Store]) -> Result<Outcome> {
    let mut damaged = Vec::new();
    let mut text = String::new();
    for entry in all(stores, Store::entries)? {
        let name = shown(&entry.path, stores);
        let verdict = match entry.open().and_then(|base| base.verify()) {
            Ok(()) if entry.manifest.is_some() => "good",
            Ok(()) => "no manifest (cache seal makes one)",
            Err(error) => {
                crate::sys::signals::check()?;
                report::error(&error);
                damaged.push(name.clone());
                fault(&error)
            }
        };
        let _ = writeln!(text, "{name}  {verdict}");
    }
    for entry in all(stores, Store::templates)? {
        let name = shown(&entry.path, stores);
        let verdict = match entry.template.and_then(|template| template.verify()) {
            Ok(()) => "good",
            Err(error) => {
                crate::sys::signals::check()?;
                report::error(&error);
                damaged.push(name.clone());
                fault(&error)
            }
        };
        let _ = writeln!(text, "{name}  {verdict}");
    }
    answer(&text)?;
    Ok(if damaged.is_empty() { Outcome::Done } else { Outcome::No })
}

fn seal(stores: &[Store], file: &Path) -> Result<Outcome> {
    let own = |dir: &Path| std::fs::canonicalize(dir).ok();
    let holds = |store: &&Store| own(&store.dir).is_some() && own(&store.dir) == file.parent().and_then(own);
    let node = stores.first().context("a node without a cache")?;
    let store = stores.iter().find(holds).unwrap_or(node);
    let entry = store.seal(file)?;
    let digest = entry.manifest.map(|manifest| manifest.digest).unwrap_or_default();
    report::line(&format!("{} is sealed: {}", foreign_path(&entry.path), foreign(&digest)));
    Ok(Outcome::Done)
}
