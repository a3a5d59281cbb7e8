//! The programs under test: the very files that users run, from the same build as this one.

use std::path::{Path, PathBuf};

use crate::Trouble;

/// Where the built programs are.
#[derive(Debug, Clone)]
pub struct Programs {
    dir: PathBuf,
}

impl Programs {
    /// Finds the programs beside the running one (`target/debug`, or its `deps` when this is a test).
    pub fn find() -> Result<Self, Trouble> {
        let me = std::env::current_exe()?;
        let dir = me.parent().map(Path::to_owned).unwrap_or_default();
        let dir = if dir.ends_with("deps") { dir.parent().map(Path::to_owned).unwrap_or_default() } else { dir };
        let programs = Self { dir };
        for name in ["portcullis", "portcullis-agent", "portcullis-attacker", "portcullis-verifier", "portcullis-vmm"] {
            let path = programs.path(name);
            if !path.is_file() {
                let hint = "build everything first: cargo build --workspace --bins";
                return Err(Trouble::Step(format!("{} is not there; {hint}", path.display())));
            }
        }
        Ok(programs)
    }

    /// The file of one program.
    pub fn path(&self, name: &str) -> PathBuf {
        self.dir.join(name)
    }
}
