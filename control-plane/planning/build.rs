//! Names the rules that are compiled in: a hash of the sources that decide. The version of the workspace alone does not
//! change when a rule does, and an audit entry has to say which rules decided it.

use std::{
    collections::BTreeMap,
    fs,
    path::{Path, PathBuf},
};

fn sources(folder: &Path, found: &mut BTreeMap<PathBuf, Vec<u8>>) -> std::io::Result<()> {
    for entry in fs::read_dir(folder)? {
        let path = entry?.path();
        if path.is_dir() {
            sources(&path, found)?;
        } else if path.extension().is_some_and(|extension| extension == "rs") {
            found.insert(path.clone(), fs::read(&path)?);
        }
    }
    Ok(())
}

fn main() -> std::io::Result<()> {
    let mut found = BTreeMap::new();
    for folder in ["src", "../../topology/src", "../../health/verdict/src"] {
        println!("cargo:rerun-if-changed={folder}");
        sources(Path::new(folder), &mut found)?;
    }
    // FNV-1a: it tells versions apart, and need not resist an attacker.
    let bytes = found.values().flatten();
    let hash = bytes.fold(0xcbf2_9ce4_8422_2325_u64, |hash, byte| {
        (hash ^ u64::from(*byte)).wrapping_mul(0x0100_0000_01b3)
    });
    println!("cargo:rustc-env=MERIDIAN_RULES={hash:016x}");
    Ok(())
}
