//! Kernel modules: which files a module needs, and the index files that `modprobe` reads.

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use super::{LabError, io_error, read};

/// One module, as its own file describes it.
#[derive(Debug, Clone)]
pub struct Module {
    /// Its name as the kernel has it (underscores).
    pub name: String,
    /// Its path below the modules directory, for example `kernel/drivers/block/virtio_blk.ko`.
    pub path: String,
    /// The file's contents, signature included.
    pub contents: Vec<u8>,
    depends: Vec<String>,
    aliases: Vec<String>,
}

/// Reads `wanted` and all they need from the unpacked kernel package; what is needed comes before what needs it.
///
/// # Errors
/// When a module is not there.
pub fn closure(modules: &Path, wanted: &[&str]) -> Result<Vec<Module>, LabError> {
    let mut paths = BTreeMap::new();
    index(modules, &mut paths)?;
    let mut found = Vec::new();
    for name in wanted {
        add(modules, &paths, name, &mut found)?;
    }
    Ok(found)
}

fn index(dir: &Path, paths: &mut BTreeMap<String, PathBuf>) -> Result<(), LabError> {
    let list = fs::read_dir(dir).map_err(io_error(format!("cannot list {}", dir.display())))?;
    for entry in list.flatten() {
        let path = entry.path();
        if path.is_dir() {
            index(&path, paths)?;
        } else if path.extension().is_some_and(|extension| extension == "ko")
            && let Some(stem) = path.file_stem().and_then(|stem| stem.to_str())
        {
            paths.insert(stem.replace('-', "_"), path);
        }
    }
    Ok(())
}

fn add(modules: &Path, paths: &BTreeMap<String, PathBuf>, name: &str, found: &mut Vec<Module>) -> Result<(), LabError> {
    let name = name.replace('-', "_");
    if found.iter().any(|module: &Module| module.name == name) {
        return Ok(());
    }
    let path = paths.get(&name).ok_or_else(|| LabError::BadFile {
        path: modules.display().to_string(),
        problem: format!("the kernel package has no module {name}"),
    })?;
    let contents = read(path)?;
    let depends: Vec<String> = information(&contents, "depends")
        .iter()
        .flat_map(|list| list.split(','))
        .filter(|name| !name.is_empty())
        .map(|name| name.replace('-', "_"))
        .collect();
    for needed in &depends {
        add(modules, paths, needed, found)?;
    }
    let aliases = information(&contents, "alias");
    let path = path.strip_prefix(modules).unwrap_or(path).display().to_string();
    found.push(Module { name, path, contents, depends, aliases });
    Ok(())
}

/// The values of `key` in the module's `.modinfo`: NUL-terminated `key=value` strings.
fn information(contents: &[u8], key: &str) -> Vec<String> {
    let start = format!("{key}=");
    contents
        .split(|byte| *byte == 0)
        .filter_map(|text| text.strip_prefix(start.as_bytes()))
        .filter_map(|value| std::str::from_utf8(value).ok())
        .map(str::to_owned)
        .collect()
}

/// The text of `modules.dep` for these modules.
pub fn modules_dep(modules: &[Module]) -> String {
    let by_name: BTreeMap<&str, &Module> = modules.iter().map(|module| (module.name.as_str(), module)).collect();
    let mut text = String::new();
    for module in modules {
        let mut needed = Vec::new();
        collect(&by_name, module, &mut needed);
        text += &module.path;
        text.push(':');
        for path in needed {
            text.push(' ');
            text += path;
        }
        text.push('\n');
    }
    text
}

/// What `module` needs, the nearest first, as depmod writes it.
fn collect<'a>(by_name: &BTreeMap<&str, &'a Module>, module: &'a Module, needed: &mut Vec<&'a str>) {
    for name in &module.depends {
        if let Some(other) = by_name.get(name.as_str()) {
            needed.retain(|path| *path != other.path);
            needed.push(&other.path);
            collect(by_name, other, needed);
        }
    }
}

/// The text of `modules.alias` for these modules.
pub fn modules_alias(modules: &[Module]) -> String {
    let lines = modules
        .iter()
        .flat_map(|module| module.aliases.iter().map(move |alias| format!("alias {alias} {}\n", module.name)));
    lines.collect()
}

/// Whether a path is that of a kernel module.
pub fn is_module(path: &str) -> bool {
    Path::new(path).extension().is_some_and(|extension| extension == "ko")
}
