//! Who listens on this machine, as the kernel's tables tell. Nobody is connected to for it: there
//! may be no loopback.

use crate::root::Root;

/// Whether somebody listens on a TCP port, at any address.
pub(crate) fn on(root: &Root, port: u16) -> bool {
    let tables = ["/proc/net/tcp", "/proc/net/tcp6"];
    let table = |path: &&str| root.text(path).is_ok_and(|text| has(&text, port));
    tables.iter().any(table)
}

/// See proc(5): the second column is the local address, the fourth the state, 0A is `LISTEN`.
fn has(table: &str, port: u16) -> bool {
    let end = format!(":{port:04X}");
    table.lines().any(|line| {
        let mut columns = line.split_whitespace().skip(1);
        let local = columns.next().is_some_and(|local| local.ends_with(&end));
        local && columns.nth(1) == Some("0A")
    })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_listener_is_found_in_the_kernels_table() {
        let table = "  sl  local_address rem_address   st tx_queue rx_queue tr tm->when\n   \
                     0: 00000000:0016 00000000:0000 0A 00000000:00000000 00:00000000\n";
        assert!(has(table, 22));
        assert!(!has(table, 23));
        assert!(!has(&table.replace(" 0A ", " 01 "), 22));
    }
}
