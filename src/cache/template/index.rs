//! Which templates the cache has: found, published, and removed.

use std::collections::BTreeMap;
use std::fs::File;
use std::io::ErrorKind;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use anyhow::{Context, Result};
use sha2::{Digest, Sha256};

use super::file::{self, Index, KeptFile};
use super::{BlockRuns, Template, TemplateSpec};
use crate::bootstrap::Recipe;
use crate::cache::{Origin, Store, file_name, manifest, shown, stem};
use crate::report;
use crate::sys::tmpfile;

/// A template's file, as a list shows it.
#[derive(Debug)]
pub struct TemplateEntry {
    pub path: PathBuf,
    pub size_bytes: u64,
    pub used: SystemTime,
    /// An error where it is none, or damaged, or others could have written it.
    pub template: Result<Template>,
}

impl TemplateEntry {
    pub fn name(&self) -> String {
        file_name(&self.path)
    }
}

/// What a template is published from.
pub struct NewTemplate<'a> {
    pub origin: &'a Origin,
    pub spec: &'a TemplateSpec,
    pub runs: BlockRuns,
    /// The sparse file that the filesystem was made in.
    pub filesystem: &'a File,
    /// Files of its tree that are kept besides.
    pub files: BTreeMap<String, Vec<u8>>,
}

impl Store {
    /// Where the template of a tree and a spec lies, if it is there.
    pub fn template_path(&self, origin: &Origin, spec: &TemplateSpec) -> Result<PathBuf> {
        let key = serde_json::to_vec(&(origin, spec)).context("naming a template")?;
        let key = &format!("{:x}", Sha256::digest(key))[..16];
        let (suite, arch) = (origin.suite.replace('/', "_"), &origin.arch);
        let mib = spec.size_bytes >> 20;
        Ok(self.dir.join(format!("template-{suite}-{arch}-{}-{mib}M-{key}.img", spec.filesystem)))
    }

    /// The template of a tree and a spec; None where there is none. One that is damaged is removed, with a word.
    pub fn template(&self, origin: &Origin, spec: &TemplateSpec) -> Result<Option<Template>> {
        let path = self.template_path(origin, spec)?;
        if !path.exists() {
            return Ok(None);
        }
        self.judgement.of(&path)?;
        match Template::open(&path) {
            Ok(template) if template.origin() == origin && template.spec() == spec => {
                template.touch();
                Ok(Some(template))
            }
            Ok(_) => Ok(None),
            Err(error) => {
                report::warning(&format!("{}; it is made anew", report::sentence(&error)));
                remove(&path)?;
                Ok(None)
            }
        }
    }

    /// Every template, those that were used last first.
    pub fn templates(&self) -> Result<Vec<TemplateEntry>> {
        let names = self.names()?.into_iter();
        let mut entries: Vec<TemplateEntry> = names
            .filter(|name| name.starts_with("template-") && name.ends_with(".img"))
            .filter_map(|name| {
                let path = self.dir.join(name);
                let meta = std::fs::symlink_metadata(&path).ok().filter(|meta| !meta.is_dir())?;
                let (size_bytes, used) = (meta.len(), meta.modified().ok()?);
                let template = self.judgement.of(&path).and_then(|()| Template::open(&path));
                Some(TemplateEntry { size_bytes, used, template, path })
            })
            .collect();
        entries.sort_by_key(|entry| std::cmp::Reverse(entry.used));
        Ok(entries)
    }

    /// Those that nothing will be copied from any more: what they were made from is gone or another one, or they are damaged.
    pub fn stale_templates(&self) -> Result<Vec<PathBuf>> {
        let entries = self.entries()?;
        let origins: Vec<Origin> = entries
            .iter()
            .filter_map(|entry| Some(entry.origin(&std::fs::metadata(&entry.path).ok()?)))
            .collect();
        let serves = |entry: &TemplateEntry| {
            entry.template.as_ref().is_ok_and(|template| origins.contains(template.origin()))
        };
        Ok(self.templates()?.into_iter().filter(|entry| !serves(entry)).map(|entry| entry.path).collect())
    }

    /// What templates there are of any tree that was made by a recipe, those that were used last first.
    pub fn specs(&self, recipe: &Recipe) -> Result<Vec<TemplateSpec>> {
        let of_recipe = format!("{}.", stem(recipe));
        let templates = self.templates()?.into_iter().filter_map(|entry| entry.template.ok());
        let ours = templates.filter(|template| template.origin().file.starts_with(&of_recipe));
        Ok(ours.map(|template| template.spec().clone()).collect())
    }

    /// Copies the data of a new template's filesystem out of the file that it was made in, and publishes that.
    pub fn publish_template(&self, new: NewTemplate<'_>) -> Result<Template> {
        let NewTemplate { origin, spec, runs, filesystem, files } = new;
        let path = self.template_path(origin, spec)?;
        runs.check(spec.size_bytes).context("writing a template")?;
        let file = tmpfile::create(&self.dir)?;
        let kept = |(path, bytes): (&String, &Vec<u8>)| KeptFile {
            path: path.clone(),
            length: bytes.len() as u64,
            sum: crc32fast::hash(bytes),
        };
        let index = Index {
            origin: origin.clone(),
            spec: spec.clone(),
            runs,
            sums: Vec::new(),
            files: files.iter().map(kept).collect(),
            made: manifest::now(),
        };
        let index =
            file::write(&file, index, filesystem, files.into_values()).context("writing a template")?;
        // What stands there was found to be no template for this.
        remove(&path)?;
        tmpfile::link(&file, &path)?;
        Ok(Template { path, file, index })
    }

    /// Removes all templates but the `count` that were used last; one that cannot be removed is told of, and stays.
    pub fn keep_templates(&self, count: usize) -> Result<()> {
        for entry in self.templates()?.iter().skip(count) {
            report::detail(&format!("removing {}, which was not used for long", shown(&entry.path)));
            if let Err(error) = remove(&entry.path) {
                report::warning(&report::sentence(&error));
            }
        }
        Ok(())
    }
}

/// Others do so too, of other trees and without our lock: who was faster is right.
pub(super) fn remove(path: &Path) -> Result<()> {
    match std::fs::remove_file(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => Ok(()),
        removed => removed.with_context(|| format!("removing {}", shown(path))),
    }
}
