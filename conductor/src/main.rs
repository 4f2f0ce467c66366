//! `ferrite`: the service and the command line for people. Here is only the way from an argument
//! to the function that does it.

mod access;
mod actor;
mod api;
mod audit;
mod bmc;
mod boots;
mod cli;
mod clock;
mod cloud_init;
mod cluster;
mod config;
mod crash;
mod crypt;
mod documents;
mod guard;
mod hosts;
mod image_servers;
mod images;
mod joining;
mod lifecycle;
mod listen;
mod netboot;
mod ownership;
mod ranges;
mod replicas;
mod roll;
mod rolling;
mod seal;
mod seeing;
mod serve;
#[cfg(test)]
mod simulation;
mod store;
mod systemd;
mod tls;
mod token;
mod workflow;

use std::process::ExitCode;

use clap::Parser;

fn main() -> ExitCode {
    match cli::complete::answered() {
        Ok(false) => {}
        // A shell shows what is wrong amid the line that is typed: nothing is better.
        Ok(true) | Err(_) => return ExitCode::SUCCESS,
    }
    let arguments = cli::args::Arguments::parse();
    // One provider of cryptography for client and server alike.
    let _ = rustls::crypto::ring::default_provider().install_default();
    let runtime = match tokio::runtime::Runtime::new() {
        Ok(runtime) => runtime,
        Err(error) => return cli::failed(&anyhow::Error::new(error).context("starting threads")),
    };
    match runtime.block_on(cli::run(arguments)) {
        Ok(code) => code,
        Err(error) => cli::failed(&error),
    }
}
