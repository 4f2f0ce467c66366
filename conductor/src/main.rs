//! `ferrite`: the service and the command line for people. Here is only the way from an argument
//! to the function that does it.

mod bmc;
mod cloud_init;
mod netboot;
mod tls;

fn main() {}
