//! Lets the programs and tests of this crate find libtorch without LD_LIBRARY_PATH.
//!
//! The path does not reach programs of other crates; those that link this crate set it in their own build scripts.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
