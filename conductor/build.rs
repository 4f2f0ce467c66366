//! Has the crate built again when only a migration changed: they are compiled in.
#![expect(clippy::print_stdout, reason = "the way a build script speaks to cargo")]

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
