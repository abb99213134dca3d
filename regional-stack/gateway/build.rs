//! Generates the Rust half of proto/meridian/voice/v1/voice.proto, which needs protoc (Debian: protobuf-compiler), and lets
//! `meridian-stack` find libtorch without LD_LIBRARY_PATH: rpath is a property of the program, so the crate that
//! links libtorch cannot set it for us.

fn main() {
    let out = std::env::var("OUT_DIR").expect("cargo sets OUT_DIR");
    tonic_prost_build::configure()
        .file_descriptor_set_path(std::path::Path::new(&out).join("voice.bin"))
        .bytes(".")
        .compile_protos(&["proto/meridian/voice/v1/voice.proto"], &["proto"])
        .unwrap_or_else(|error| panic!("voice.proto does not compile (is protoc installed?): {error}"));
    println!("cargo:rerun-if-env-changed=LIBTORCH");
    if let Ok(libtorch) = std::env::var("LIBTORCH") {
        // Absolute, or the program would only start from the folder it was built in.
        let libtorch = std::path::absolute(&libtorch).unwrap_or(libtorch.into());
        println!("cargo:rustc-link-arg=-Wl,-rpath,{}/lib", libtorch.display());
    }
}
