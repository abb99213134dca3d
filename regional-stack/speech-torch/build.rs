//! Lets this crate's own programs and tests find libtorch without LD_LIBRARY_PATH.
//!
//! The path reaches no program of another crate; those that link this one do the same in their own build scripts.

fn main() {
    println!("cargo:rerun-if-changed=build.rs");
    println!("cargo:rerun-if-env-changed=DEP_TCH_LIBTORCH_LIB");
    if let Ok(lib) = std::env::var("DEP_TCH_LIBTORCH_LIB") {
        println!("cargo:rustc-link-arg=-Wl,-rpath,{lib}");
    }
}
