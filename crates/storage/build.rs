//! Compiles the crate anew when a migration is added, which the macro that embeds them cannot see.

#[expect(clippy::print_stdout, reason = "Cargo reads the standard output of a build script")]
fn main() {
    println!("cargo::rerun-if-changed=../../migrations");
}
