//! Has the crate built again when only a migration changed: they are compiled in.

fn main() {
    println!("cargo::rerun-if-changed=migrations");
}
