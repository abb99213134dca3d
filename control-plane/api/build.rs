//! Generates the Rust code for proto/meridian/v1/meridian.proto. Needs protoc (Debian: protobuf-compiler).

fn main() {
    tonic_prost_build::configure()
        .bytes(".")
        .compile_protos(&["proto/meridian/v1/meridian.proto"], &["proto"])
        .unwrap_or_else(|error| panic!("meridian.proto does not compile (is protoc installed?): {error}"));
}
