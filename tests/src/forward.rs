//! A door between the ordinary network and a lab: one TCP port here for one address there.

use std::net::{SocketAddr, TcpListener};

use anyhow::{Context, Result};
use tokio::io::copy_bidirectional;
use tokio::net::TcpStream;
use tokio::runtime::Handle;

/// Opens a port on the caller's network; the lab's runtime carries the bytes. `port` 0 takes any.
pub(crate) fn forward(runtime: &Handle, port: u16, target: SocketAddr) -> Result<SocketAddr> {
    let listener = TcpListener::bind(("127.0.0.1", port))
        .with_context(|| format!("opening 127.0.0.1:{port} for {target}"))?;
    let address = listener.local_addr()?;
    carry_all(runtime, listener, target)?;
    Ok(address)
}

/// Carries each connection of the listener to the target, as the runtime's threads reach it.
pub(crate) fn carry_all(runtime: &Handle, listener: TcpListener, target: SocketAddr) -> Result<()> {
    listener.set_nonblocking(true)?;
    runtime.spawn(async move {
        let Ok(listener) = tokio::net::TcpListener::from_std(listener) else {
            return;
        };
        while let Ok((outer, _)) = listener.accept().await {
            tokio::spawn(carry(outer, target));
        }
    });
    Ok(())
}

async fn carry(mut outer: TcpStream, target: SocketAddr) {
    // Nobody there: closing is what a person's client should see.
    if let Ok(mut inner) = TcpStream::connect(target).await {
        let _ = copy_bidirectional(&mut outer, &mut inner).await;
    }
}
