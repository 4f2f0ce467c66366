//! TFTP for the first stage only: a firmware fetches iPXE, nothing else.
//!
//! Read-only, a fixed table of names held in memory, RFC 1350 with the options of RFC 2347, 2348,
//! 2349 and 7440. No path of a request ever reaches a file system.

use std::collections::HashMap;
use std::io;
use std::net::{IpAddr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use tokio::net::UdpSocket;
use tokio::sync::Semaphore;
use tokio::time::timeout;
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

/// What a firmware may ask for, and Debian's iPXE has.
pub(super) const NAMES: [&str; 3] = ["snponly.efi", "undionly.kpxe", "ipxe.efi"];
/// Transfers at a time; more wait for the client's next try.
const TRANSFERS: usize = 64;
/// Sends of the same window without progress, before a client is given up.
const TRIES: u32 = 6;
/// What fits into an Ethernet frame: a larger block comes in fragments, which firmware drops.
const MAX_BLOCK: usize = 1468;
const MAX_WINDOW: u16 = 16;
const MAX_FILE: u64 = 16 << 20;

/// The files by name.
pub(super) type Table = Arc<HashMap<&'static str, Bytes>>;

/// Reads the table from `dir`. `snponly.efi` and `undionly.kpxe` must be there.
pub(super) fn table(dir: &Path) -> Result<Table, (PathBuf, io::Error)> {
    let mut table = HashMap::new();
    for name in NAMES {
        let path = dir.join(name);
        let file = std::fs::metadata(&path).and_then(|meta| {
            if meta.len() > MAX_FILE {
                return Err(io::Error::other("it is longer than 16 MiB"));
            }
            std::fs::read(&path)
        });
        match file {
            Ok(bytes) => drop(table.insert(name, Bytes::from(bytes))),
            Err(_) if name == "ipxe.efi" => {}
            Err(error) => return Err((path, error)),
        }
    }
    Ok(Arc::new(table))
}

/// Serves `table` until it is stopped. `served` is told of each whole transfer.
pub(super) async fn run(
    socket: UdpSocket,
    table: Table,
    stop: CancellationToken,
    served: impl Fn(IpAddr, &'static str, u64) + Clone + Send + Sync + 'static,
) {
    let (transfers, slots) = (TaskTracker::new(), Arc::new(Semaphore::new(TRANSFERS)));
    let mut buffer = [0; 1024];
    loop {
        let received = tokio::select! {
            () = stop.cancelled() => break,
            received = socket.recv_from(&mut buffer) => received,
        };
        let (length, peer) = match received {
            Ok(received) => received,
            // An earlier answer bounced (ICMP): it concerns one client, not us.
            Err(error) => {
                tracing::debug!(%error, "tftp: receiving");
                continue;
            }
        };
        let request = match Request::parse(&buffer[..length], &table) {
            Ok(Some(request)) => request,
            Ok(None) => continue,
            Err(refusal) => {
                tracing::info!(%peer, %refusal, "tftp: refused");
                let _ = socket.send_to(&refusal.packet(), peer).await;
                continue;
            }
        };
        let Ok(slot) = Arc::clone(&slots).try_acquire_owned() else {
            tracing::warn!(%peer, "tftp: {TRANSFERS} transfers already; the client asks again");
            continue;
        };
        let (local, served, stop) = (socket.local_addr(), served.clone(), stop.clone());
        transfers.spawn(async move {
            let name = request.name;
            let bytes = request.file.len() as u64;
            let transfer = async { transfer(local?.ip(), peer, request).await };
            let ended = tokio::select! {
                () = stop.cancelled() => return,
                ended = transfer => ended,
            };
            match ended {
                Ok(true) => served(peer.ip(), name, bytes),
                // Firmware asks for the size alone first, and then says "enough".
                Ok(false) => tracing::debug!(%peer, name, "tftp: the client ended the transfer"),
                Err(error) => tracing::info!(%peer, name, %error, "tftp: transfer"),
            }
            drop(slot);
        });
    }
    transfers.close();
    transfers.wait().await;
}

/// A read request that can be served.
#[derive(Debug, Clone)]
struct Request {
    name: &'static str,
    file: Bytes,
    block: usize,
    window: u16,
    wait: Duration,
    /// The options that are acknowledged, in the client's order; none makes it RFC 1350.
    options: Vec<(&'static str, String)>,
}

/// Why a request is not served: TFTP's code and words.
#[derive(Debug, Clone, Copy, PartialEq, Eq, thiserror::Error)]
#[error("{1}")]
struct Refusal(u16, &'static str);

impl Refusal {
    fn packet(self) -> Vec<u8> {
        let mut packet = vec![0, 5];
        packet.extend(self.0.to_be_bytes());
        packet.extend(self.1.bytes());
        packet.push(0);
        packet
    }
}

impl Request {
    /// Reads a packet to port 69. What is no request at all gets no answer.
    fn parse(packet: &[u8], table: &Table) -> Result<Option<Self>, Refusal> {
        let [0, opcode, rest @ ..] = packet else {
            return Ok(None);
        };
        match opcode {
            1 => {}
            2 => return Err(Refusal(2, "this server is read-only")),
            _ => return Ok(None),
        }
        let Some(rest) = rest.strip_suffix(&[0]) else {
            return Err(Refusal(4, "the request is cut off"));
        };
        let mut words = rest.split(|&b| b == 0).map(|w| str::from_utf8(w).ok());
        let asked = words.next().flatten().unwrap_or("");
        let mode = words.next().flatten().unwrap_or("");
        if !mode.eq_ignore_ascii_case("octet") {
            return Err(Refusal(4, "only octet mode is served"));
        }
        let asked = asked.trim_start_matches(['.', '/', '\\']);
        let Some((name, file)) = table.get_key_value(asked) else {
            return Err(Refusal(1, "there is no such file here"));
        };
        let mut request = Self {
            name,
            file: file.clone(),
            block: 512,
            window: 1,
            wait: Duration::from_secs(1),
            options: Vec::new(),
        };
        while let (Some(Some(name)), Some(Some(value))) = (words.next(), words.next()) {
            request.option(name, value);
        }
        Ok(Some(request))
    }

    /// Takes over an option; one that is unknown or out of range is left out of the answer, which
    /// is how RFC 2347 declines it.
    fn option(&mut self, name: &str, value: &str) {
        let Ok(value) = value.parse::<u32>() else {
            return;
        };
        let small = u16::try_from(value).unwrap_or(u16::MAX);
        let (name, agreed) = match name.to_ascii_lowercase().as_str() {
            "blksize" if value >= 8 => {
                self.block = usize::from(small).min(MAX_BLOCK);
                ("blksize", self.block.to_string())
            }
            "tsize" => ("tsize", self.file.len().to_string()),
            "timeout" if (1..=255).contains(&value) => {
                self.wait = Duration::from_secs(u64::from(value.min(5)));
                ("timeout", value.to_string())
            }
            "windowsize" if value >= 1 => {
                self.window = small.min(MAX_WINDOW);
                ("windowsize", self.window.to_string())
            }
            _ => return,
        };
        if !self.options.iter().any(|(taken, _)| *taken == name) {
            self.options.push((name, agreed));
        }
    }

    /// Blocks of the file; the last one is shorter than a block, be it empty.
    fn blocks(&self) -> usize {
        self.file.len() / self.block + 1
    }

    /// Packet `number`, counted from 1; number 0 is the acknowledgement of the options.
    fn packet(&self, number: usize) -> Vec<u8> {
        let mut packet = Vec::with_capacity(self.block + 4);
        if number == 0 {
            packet.extend([0, 6]);
            for (name, value) in &self.options {
                packet.extend([name.as_bytes(), &[0], value.as_bytes(), &[0]].concat());
            }
            return packet;
        }
        let start = (number - 1) * self.block;
        let end = (start + self.block).min(self.file.len());
        packet.extend([0, 3]);
        packet.extend(wrapped(number).to_be_bytes());
        packet.extend(&self.file[start..end]);
        packet
    }
}

/// Block numbers begin again at 0 after 65,535.
fn wrapped(number: usize) -> u16 {
    u16::try_from(number & 0xffff).expect("masked to 16 bits")
}

/// Sends the file. `false` when the client ended it before the last block.
async fn transfer(from: IpAddr, peer: SocketAddr, request: Request) -> io::Result<bool> {
    let socket = UdpSocket::bind((from, 0)).await?;
    socket.connect(peer).await?;
    // `done` packets are acknowledged. The first to acknowledge is the options' packet 0.
    let first = usize::from(request.options.is_empty());
    let (mut done, total) = (first, request.blocks() + 1);
    let mut silent = 0;
    while done < total {
        // Options are acknowledged alone, before the first window.
        let window = if done == 0 {
            1
        } else {
            usize::from(request.window)
        };
        let end = (done + window).min(total);
        for number in done..end {
            socket.send(&request.packet(number)).await?;
        }
        match acknowledged(&socket, done, end, request.wait).await? {
            Heard::Upto(next) => (done, silent) = (next, 0),
            Heard::Enough => return Ok(false),
            Heard::Nothing => {
                silent += 1;
                if silent == TRIES {
                    return Err(io::Error::new(
                        io::ErrorKind::TimedOut,
                        format!("no acknowledgement after block {}", done.saturating_sub(1)),
                    ));
                }
            }
        }
    }
    Ok(true)
}

/// What came back for a window.
enum Heard {
    /// All before this packet have arrived.
    Upto(usize),
    /// The client wants no more.
    Enough,
    /// Nothing in time.
    Nothing,
}

/// Waits for an acknowledgement of a packet in `done..end`. An old one says nothing new and must
/// not make us send again, or every packet would be sent twice for ever.
async fn acknowledged(
    socket: &UdpSocket,
    done: usize,
    end: usize,
    wait: Duration,
) -> io::Result<Heard> {
    let mut buffer = [0; 64];
    let deadline = tokio::time::Instant::now() + wait;
    loop {
        let left = deadline.saturating_duration_since(tokio::time::Instant::now());
        let Ok(received) = timeout(left, socket.recv(&mut buffer)).await else {
            return Ok(Heard::Nothing);
        };
        match &buffer[..received?] {
            [0, 4, high, low, ..] => {
                let number = u16::from_be_bytes([*high, *low]);
                if let Some(at) = (done..end).find(|&n| wrapped(n) == number) {
                    return Ok(Heard::Upto(at + 1));
                }
            }
            [0, 5, ..] => return Ok(Heard::Enough),
            _ => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use proptest::prelude::*;
    use std::sync::Mutex;

    fn small_table(length: usize) -> Table {
        let file: Vec<u8> = (0..length)
            .map(|i| u8::try_from(i % 253).unwrap())
            .collect();
        Arc::new(HashMap::from([("snponly.efi", Bytes::from(file))]))
    }

    fn rrq(name: &str, options: &[(&str, &str)]) -> Vec<u8> {
        let mut packet = vec![0, 1];
        packet.extend(format!("{name}\0octet\0").bytes());
        for (name, value) in options {
            packet.extend(format!("{name}\0{value}\0").bytes());
        }
        packet
    }

    /// A client that drops every `lose`-th packet it gets, and the file it ends up with.
    async fn fetch(length: usize, options: &[(&str, &str)], lose: usize) -> (Vec<u8>, u64) {
        let socket = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        let server = socket.local_addr().unwrap();
        let (stop, log) = (CancellationToken::new(), Arc::new(Mutex::new(0)));
        let noted = Arc::clone(&log);
        let note = move |_, _, bytes| *noted.lock().unwrap() += bytes;
        let running = tokio::spawn(run(socket, small_table(length), stop.clone(), note));

        let client = UdpSocket::bind("127.0.0.1:0").await.unwrap();
        client
            .send_to(&rrq("/snponly.efi", options), server)
            .await
            .unwrap();
        let block: usize = options
            .iter()
            .find(|(n, _)| *n == "blksize")
            .map_or(512, |(_, v)| v.parse::<usize>().unwrap().min(MAX_BLOCK));
        let (mut file, mut next, mut count) = (Vec::new(), 1_usize, 0);
        let mut buffer = [0; 2048];
        loop {
            let (length, peer) = client.recv_from(&mut buffer).await.unwrap();
            count += 1;
            if lose != 0 && count % lose == 0 {
                continue;
            }
            let ack = |n: usize| [&[0, 4][..], &wrapped(n).to_be_bytes()].concat();
            match &buffer[..length] {
                [0, 6, ..] => drop(client.send_to(&ack(0), peer).await.unwrap()),
                [0, 3, high, low, data @ ..] => {
                    if u16::from_be_bytes([*high, *low]) == wrapped(next) {
                        file.extend_from_slice(data);
                        next += 1;
                        client.send_to(&ack(next - 1), peer).await.unwrap();
                        if data.len() < block {
                            break;
                        }
                    } else {
                        client.send_to(&ack(next - 1), peer).await.unwrap();
                    }
                }
                other => panic!("{other:?}"),
            }
        }
        for _ in 0..100 {
            if *log.lock().unwrap() != 0 {
                break;
            }
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        stop.cancel();
        running.await.unwrap();
        let noted = *log.lock().unwrap();
        (file, noted)
    }

    #[tokio::test]
    async fn a_file_arrives_whole_with_and_without_options() {
        for (length, options) in [
            (0, &[][..]),
            (511, &[]),
            (1024, &[]),
            (200_000, &[("blksize", "1468"), ("tsize", "0")]),
            (200_000, &[("blksize", "9000"), ("windowsize", "8")]),
        ] {
            let (file, noted) = fetch(length, options, 0).await;
            assert_eq!(
                file,
                small_table(length)["snponly.efi"],
                "{length} {options:?}"
            );
            assert_eq!(noted, length as u64);
        }
    }

    #[tokio::test]
    async fn lost_packets_are_sent_again() {
        let options = [("blksize", "1024"), ("windowsize", "4"), ("timeout", "1")];
        let (file, _) = fetch(30_000, &options, 13).await;
        assert_eq!(file, small_table(30_000)["snponly.efi"]);
    }

    #[tokio::test]
    async fn block_numbers_begin_again() {
        let (file, _) = fetch(70_000 * 8, &[("blksize", "8"), ("windowsize", "16")], 0).await;
        assert_eq!(file.len(), 70_000 * 8);
        assert_eq!(file, small_table(70_000 * 8)["snponly.efi"]);
    }

    #[test]
    fn nothing_but_the_table_is_served() {
        let table = small_table(10);
        for name in [
            "",
            "../../etc/passwd",
            "/etc/passwd",
            "snponly.efi/..",
            "SNPONLY.EFI",
        ] {
            assert_eq!(
                Request::parse(&rrq(name, &[]), &table).unwrap_err().0,
                1,
                "{name}"
            );
        }
        let write = [&[0, 2][..], b"snponly.efi\0octet\0"].concat();
        assert_eq!(Request::parse(&write, &table).unwrap_err().0, 2);
    }

    #[test]
    fn tsize_then_blksize_as_ovmf_asks() {
        let table = small_table(100_000);
        let request = Request::parse(
            &rrq("snponly.efi", &[("tsize", "0"), ("blksize", "1468")]),
            &table,
        );
        let packet = request.unwrap().unwrap().packet(0);
        assert_eq!(packet, b"\0\x06tsize\x00100000\0blksize\x001468\0");
    }

    proptest! {
        #[test]
        fn no_bytes_break_the_parser(packet in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = Request::parse(&packet, &small_table(10));
            let mut request = vec![0, 1];
            request.extend(b"snponly.efi\0octet\0");
            request.extend(&packet);
            let _ = Request::parse(&request, &small_table(10));
        }
    }
}
