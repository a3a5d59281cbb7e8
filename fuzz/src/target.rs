//! One target: what takes bytes from outside, and what tries it without a fuzzer.

use std::collections::BTreeSet;
use std::path::Path;

use super::memory;
use super::recordings::Recordings;

/// Changed inputs that a target gets in a test.
const CHANGED: usize = 300;

/// Something that takes bytes from outside.
pub struct Target {
    /// Its name: also that of its file in `fuzz_targets/`.
    pub name: &'static str,
    /// Takes the bytes, asserts what must hold, and says whether they were accepted.
    pub body: fn(&[u8]) -> bool,
    /// Longest input worth trying, in bytes: shorter ones are tried more often in the same time.
    pub max_len: usize,
    /// Genuine inputs.
    pub seeds: fn(&Recordings) -> Vec<Vec<u8>>,
}

impl Target {
    /// Runs the body. Panics if something does not hold, or if it took more memory than the input is worth.
    pub fn run(&self, bytes: &[u8]) -> bool {
        memory::in_proportion(bytes.len(), || (self.body)(bytes))
    }

    /// The genuine inputs that are short enough.
    pub fn short_seeds(&self, recordings: &Recordings) -> Vec<Vec<u8>> {
        let mut seeds = (self.seeds)(recordings);
        seeds.retain(|seed| seed.len() <= self.max_len);
        seeds.sort();
        seeds.dedup();
        seeds
    }

    /// Runs the body over the seeds and over simple changes of them, the same ones each time. Panics if no seed is
    /// accepted, or if whatever is changed is accepted too.
    pub fn run_simple_changes(&self, recordings: &Recordings) {
        let seeds = self.short_seeds(recordings);
        let accepted = seeds.iter().filter(|seed| self.run(seed)).count();
        assert!(accepted > 0, "{}: none of {} genuine inputs is accepted", self.name, seeds.len());
        let mut numbers = Numbers(0x9E37_79B9_7F4A_7C15);
        let changed = (0..CHANGED).map(|number| changed(&seeds[number % seeds.len()], &mut numbers));
        let refused = changed.filter(|bytes| !self.run(bytes)).count();
        assert!(refused > 0, "{}: whatever is changed, it is accepted", self.name);
    }
}

/// Panics unless each target of a room has its file in `fuzz_targets/` and is built, and the room no other file there.
pub fn check_files(room: &str, targets: &[Target]) {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("../fuzz");
    let manifest = std::fs::read_to_string(folder.join("Cargo.toml")).expect("the fuzzers' manifest");
    let mut files = BTreeSet::new();
    for file in std::fs::read_dir(folder.join("fuzz_targets")).expect("the fuzzers' folder") {
        let path = file.expect("a file").path();
        let text = std::fs::read_to_string(&path).expect("a fuzzer");
        let name = path.file_stem().and_then(|name| name.to_str()).expect("a name").to_owned();
        if text.contains(&format!("portcullis_fuzz::{room}::")) {
            assert!(text.contains(&format!("::{}.run(", name.to_uppercase())), "{name} runs another target");
            assert!(manifest.contains(&format!("path = \"fuzz_targets/{name}.rs\"")), "{name} is not built");
            files.insert(name);
        }
    }
    assert_eq!(files, targets.iter().map(|target| target.name.to_owned()).collect());
}

/// Numbers that look random and are the same in every run (xorshift, Marsaglia 2003).
struct Numbers(u64);

impl Numbers {
    fn below(&mut self, end: usize) -> usize {
        self.0 ^= self.0 << 13;
        self.0 ^= self.0 >> 7;
        self.0 ^= self.0 << 17;
        usize::try_from(self.0 % u64::try_from(end.max(1)).expect("64 bits")).expect("64 bits")
    }
}

/// The seed with one to four bytes set, inserted or removed, or cut short; often with a value at the edge of its range.
fn changed(seed: &[u8], numbers: &mut Numbers) -> Vec<u8> {
    const EDGES: [u8; 6] = [0, 1, 0x7F, 0x80, 0xFE, 0xFF];
    let mut bytes = seed.to_vec();
    for _ in 0..=numbers.below(4) {
        let at = numbers.below(bytes.len());
        let byte = match numbers.below(2) {
            0 => EDGES[numbers.below(EDGES.len())],
            _ => u8::try_from(numbers.below(256)).expect("a byte"),
        };
        match numbers.below(8) {
            0 => bytes.insert(at, byte),
            1 if !bytes.is_empty() => drop(bytes.remove(at)),
            2 => bytes.truncate(at),
            _ if !bytes.is_empty() => bytes[at] = byte,
            _ => {}
        }
    }
    bytes
}
