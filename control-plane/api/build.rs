//! Generates the Rust code for proto/meridian/v1/meridian.proto. Needs protoc (Debian: protobuf-compiler).

/// The messages that `meridian -o json` prints as they are, each field under its name. cli/src/present/json.rs maps the others.
const PRINTED: [&str; 14] = [
    "Action",
    "Check",
    "EdgeStatus",
    "Load",
    "NamesReported",
    "PlanNumber",
    "Principal",
    "Progress",
    "Reason",
    "RegionStatus",
    "Share",
    "StackStatus",
    "Unwritten",
    "DnsTiming",
];

fn main() {
    let mut code = tonic_prost_build::configure().bytes(".");
    for message in PRINTED {
        code = code.type_attribute(format!(".meridian.v1.{message}"), "#[derive(serde::Serialize)]");
    }
    // The JSON never had it: programs read the phase, which is "running" while this is set.
    code.field_attribute(".meridian.v1.Action.spreads", "#[serde(skip)]")
        .compile_protos(&["proto/meridian/v1/meridian.proto"], &["proto"])
        .unwrap_or_else(|error| panic!("meridian.proto does not compile (is protoc installed?): {error}"));
}
