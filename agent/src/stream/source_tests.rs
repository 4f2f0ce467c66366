//! Tests of sources with servers that misbehave, and with files of this machine.

use super::*;
use crate::stream::fixture::{Served, Server};
use crate::tls::fixture::Authority;
use base64::Engine as _;
use ferrite_proto::image::{Format, ImageRef};
use ferrite_proto::image_server::{ImageServer, Login};
use ferrite_proto::secret::Secret;
use rustls_pki_types::PrivateKeyDer;

fn content() -> Vec<u8> {
    (0..1_000_000_u32)
        .map(|at| at.wrapping_mul(2_654_435_761).to_le_bytes()[3])
        .collect()
}

fn image(url: String) -> ImageRef {
    ImageRef {
        url,
        digest: None,
        mirrors: Vec::new(),
        digest_url: None,
        raw_digest: None,
        signed_by: None,
        format: Format::Raw,
        compression: None,
        allow_unverified: true,
    }
}

/// As at a shell, and in a hurry.
fn terms() -> Terms {
    let mut terms = Terms::at_a_shell();
    terms.patience = Patience {
        connect: Duration::from_secs(2),
        read: Duration::from_secs(1),
        attempts: 3,
        pause: Duration::from_millis(5),
        ..terms.patience
    };
    terms
}

fn source(url: String) -> Source {
    Source::new(&image(url), &terms(), Stop::default()).unwrap()
}

fn all(mut from: Reader) -> Result<Vec<u8>, FetchError> {
    let (mut bytes, mut buffer) = (Vec::new(), vec![0; 30_000]);
    loop {
        match from.next(&mut buffer)? {
            0 => return Ok(bytes),
            count => bytes.extend_from_slice(&buffer[..count]),
        }
    }
}

#[test]
fn ranges_are_read_by_several_threads_at_once() {
    let content = content();
    let server = Server::start(vec![Served::whole(&content)]);
    let source = source(server.url());
    assert_eq!(source.greet().unwrap(), content[..4096]);
    assert_eq!(source.total(), Some(1_000_000));
    std::thread::scope(|scope| {
        for part in 0..8 {
            let (source, content) = (&source, &content);
            scope.spawn(move || {
                let mut buffer = vec![0; 125_000];
                let at = part * 125_000;
                source.read_exact_at(&mut buffer, at as u64).unwrap();
                assert!(buffer == content[at..at + 125_000], "{part}");
            });
        }
    });
    assert_eq!(source.moved(), 1_004_096);
    let beyond = source.read_exact_at(&mut [0; 2], 999_999).unwrap_err();
    assert_eq!(beyond.kind(), io::ErrorKind::UnexpectedEof);
}

#[test]
fn a_file_shorter_than_the_greeting_is_read_whole() {
    for length in [1, 4095, 4096, 4097] {
        let content = &content()[..length];
        let server = Server::start(vec![Served::whole(content)]);
        let source = source(server.url());
        let first = source.greet().unwrap();
        assert_eq!(first, content[..length.min(4096)], "{length}");
        assert_eq!(source.total(), Some(length as u64));
    }
}

#[test]
fn cut_at_every_twentieth_it_goes_on_at_the_byte() {
    let content = content();
    for cut in (0..20).map(|part| part * 50_000 + 1) {
        let scripts = vec![
            Served::whole(&content).cut_after(cut),
            Served::whole(&content),
        ];
        let server = Server::start(scripts);
        let source = source(server.url());
        assert!(all(source.whole()).unwrap() == content, "{cut}");
        assert_eq!(server.ranges(), [String::new(), format!("bytes={cut}-")]);
        assert_eq!(source.moved(), 1_000_000);
    }
}

#[test]
fn a_server_without_ranges_will_do_until_it_breaks() {
    let content = content();
    let whole = Served::whole(&content).without_ranges();
    let server = Server::start(vec![whole.clone()]);
    assert!(all(source(server.url()).whole()).unwrap() == content);
    let refused = source(server.url()).greet().unwrap_err();
    assert!(matches!(refused, FetchError::NoRanges { .. }), "{refused}");
    let server = Server::start(vec![whole.clone().cut_after(400_000), whole]);
    let error = all(source(server.url()).whole()).unwrap_err().to_string();
    assert!(error.contains("byte 400000 of 1000000"), "{error}");
    assert!(error.contains("cannot continue"), "{error}");
}

#[test]
fn a_file_of_this_machine_is_a_source() {
    let folder = tempfile::tempdir().unwrap();
    let path = folder.path().join("image");
    std::fs::write(&path, content()).unwrap();
    let source_of = |path: &Path| {
        let image = image(format!("file://{}", path.display()));
        Source::new(&image, &terms(), Stop::default())
    };
    let source = source_of(&path).unwrap();
    assert_eq!(source.total(), Some(1_000_000));
    assert!(all(source.whole()).unwrap() == content());
    assert_eq!(source.greet().unwrap(), content()[..4096]);
    let mut buffer = [0; 100];
    source.read_exact_at(&mut buffer, 999_900).unwrap();
    assert_eq!(buffer, content()[999_900..]);
    // Shortened under the reader's hands.
    let shorter = File::options().write(true).open(&path).unwrap();
    shorter.set_len(5000).unwrap();
    let error = all(source.whole()).unwrap_err().to_string();
    assert!(error.contains("it ends at byte 5000"), "{error}");

    let fifo = folder.path().join("fifo");
    nix::unistd::mkfifo(&fifo, nix::sys::stat::Mode::S_IRWXU).unwrap();
    for odd in [&fifo, Path::new("/dev/zero"), folder.path()] {
        let error = source_of(odd).unwrap_err().to_string();
        assert!(error.contains("not a plain file"), "{error}");
    }
    let mut remote = terms();
    remote.local_files = false;
    let named = image(format!("file://{}", path.display()));
    let refused = Source::new(&named, &remote, Stop::default());
    assert!(refused.is_err(), "from the API no file is read");
}

#[test]
fn nobody_waits_for_a_server_that_says_nothing() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/", listener.local_addr().unwrap());
    let stop = Stop::default();
    let mut patient = terms();
    patient.patience.read = Duration::from_mins(1);
    let source = Source::new(&image(url), &patient, Stop::clone(&stop)).unwrap();
    std::thread::scope(|scope| {
        let reading = scope.spawn(|| all(source.whole()));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!reading.is_finished());
        let stopped = Instant::now();
        stop.store(true, Ordering::Relaxed);
        let error = reading.join().unwrap().unwrap_err();
        assert!(matches!(error, FetchError::Stopped), "{error}");
        assert!(stopped.elapsed() < Duration::from_secs(1));
    });
}

#[test]
fn a_server_that_drips_is_given_up_and_named() {
    let content = content();
    let server = Server::start(vec![Served::whole(&content).dripping(1)]);
    let began = Instant::now();
    let error = all(source(server.url()).whole()).unwrap_err().to_string();
    assert!(error.contains("fewer than 4096 bytes a second"), "{error}");
    assert!(error.contains(&server.url()), "{error}");
    assert!(began.elapsed() < Duration::from_secs(8));
}

#[test]
fn a_busy_server_is_asked_again_when_it_says() {
    let content = content();
    let busy = Served::status(503).with_header("Retry-After", "1");
    let server = Server::start(vec![busy, Served::whole(&content)]);
    let began = Instant::now();
    assert!(all(source(server.url()).whole()).unwrap() == content);
    let waited = began.elapsed();
    assert!(waited >= Duration::from_secs(1), "{waited:?}");
    let server = Server::start(vec![Served::status(503)]);
    let error = all(source(server.url()).whole()).unwrap_err().to_string();
    assert!(error.contains("503"), "{error}");
    assert_eq!(server.asked().len(), 3);
}

fn mirrored(servers: &[&Server], terms: &Terms) -> Source {
    let mut image = image(servers[0].url());
    image.mirrors = servers[1..].iter().map(|server| server.url()).collect();
    Source::new(&image, terms, Stop::default()).unwrap()
}

#[test]
fn mirrors_go_on_where_another_broke_off() {
    let content = content();
    let whole = || Served::whole(&content);
    for (first, second_ranges) in [
        (vec![Served::status(404)], vec![String::new()]),
        (vec![Served::status(503)], vec![String::new()]),
        (
            vec![whole().cut_after(300_000), Served::status(404)],
            vec!["bytes=300000-".to_owned()],
        ),
        (
            vec![whole().stall_after(300_000)],
            vec!["bytes=300000-".to_owned()],
        ),
    ] {
        let first = Server::start(first);
        let second = Server::start(vec![whole().tagged("\"another\"")]);
        let source = mirrored(&[&first, &second], &terms());
        assert!(all(source.whole()).unwrap() == content);
        assert_eq!(second.ranges(), second_ranges);
    }
}

#[test]
fn a_mirror_with_another_length_is_named_and_not_used() {
    let content = content();
    let first = Server::start(vec![
        Served::whole(&content).cut_after(300_000),
        Served::status(404),
    ]);
    let second = Server::start(vec![Served::whole(&content[..900_000])]);
    let source = mirrored(&[&first, &second], &terms());
    let error = all(source.whole()).unwrap_err().to_string();
    for words in ["byte 300000", "none of 2 servers", "900000 bytes", "404"] {
        assert!(error.contains(words), "{words}: {error}");
    }
    let third = Server::start(vec![Served::whole(&content)]);
    let first = Server::start(vec![
        Served::whole(&content).cut_after(300_000),
        Served::status(404),
    ]);
    let source = mirrored(&[&first, &second, &third], &terms());
    assert!(all(source.whole()).unwrap() == content);
}

/// A login for one server alone.
fn known_to(server: &Server) -> Terms {
    let login = Login::Bearer(Secret::new("opens".into()));
    let server = ImageServer {
        prefix: server.url(),
        login: Some(login),
        ..ImageServer::default()
    };
    Terms {
        servers: vec![server],
        ..terms()
    }
}

#[test]
fn a_login_goes_to_its_own_server_and_to_no_other() {
    let content = content();
    let elsewhere = Server::start(vec![Served::whole(&content)]);
    let to = elsewhere.url();
    let first = Server::start(vec![Served::status(302).with_header("Location", &to)]);
    let source = mirrored(&[&first], &known_to(&first));
    assert!(all(source.whole()).unwrap() == content);
    assert_eq!(first.asked()[0].authorization, "Bearer opens");
    assert_eq!(elsewhere.asked()[0].authorization, "", "after a redirect");

    let gone = Server::start(vec![Served::status(404)]);
    let source = mirrored(&[&gone, &elsewhere], &known_to(&gone));
    assert!(all(source.whole()).unwrap() == content);
    assert_eq!(gone.asked()[0].authorization, "Bearer opens");
    assert_eq!(elsewhere.asked()[1].authorization, "", "a mirror");
}

#[test]
fn a_proxy_is_asked_in_place_of_the_server() {
    let content = content();
    let proxy = Server::start(vec![Served::whole(&content)]);
    let mut terms = terms();
    terms.servers = vec![ImageServer {
        prefix: "http://images.invalid/".into(),
        proxy: Some(Secret::new(proxy.url().replace("/image", ""))),
        ..ImageServer::default()
    }];
    let image = image("http://images.invalid/os.raw".into());
    let source = Source::new(&image, &terms, Stop::default()).unwrap();
    assert!(all(source.whole()).unwrap() == content);
    assert_eq!(proxy.asked()[0].path, "http://images.invalid/os.raw");
}

#[test]
fn a_server_that_sends_other_parts_than_were_asked_for_is_not_believed() {
    let content = content();
    let served = Served::whole(&content);
    let moved = Server::answering(move |asked, _| {
        if asked.range.is_empty() {
            served.clone().cut_after(300_000)
        } else {
            served.clone().shifted(1)
        }
    });
    let error = all(source(moved.url()).whole()).unwrap_err().to_string();
    assert!(error.contains("byte 300000"), "{error}");
    assert!(error.contains("other bytes than were asked for"), "{error}");
}

/// Serves one small file over TLS to whoever trusts its authority.
fn secure(authority: &Authority) -> String {
    let key = PrivateKeyDer::try_from(authority.key.serialize_der()).unwrap();
    let config = rustls::ServerConfig::builder_with_provider(crate::tls::provider())
        .with_safe_default_protocol_versions()
        .unwrap()
        .with_no_client_auth()
        .with_single_cert(authority.chain(), key)
        .unwrap();
    let config = Arc::new(config);
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("https://{}/os.raw", listener.local_addr().unwrap());
    std::thread::spawn(move || {
        while let Ok((tcp, _)) = listener.accept() {
            let tls = rustls::ServerConnection::new(Arc::clone(&config)).unwrap();
            let mut stream = rustls::StreamOwned::new(tls, tcp);
            // Who does not trust us hangs up.
            let _ = stream.read(&mut [0; 4096]).and_then(|_| {
                let reply = b"HTTP/1.1 200 OK\r\nContent-Length: 4\r\n\r\nfile";
                io::Write::write_all(&mut stream, reply)
            });
        }
    });
    url
}

#[test]
fn a_server_may_be_vouched_for_by_a_ca_of_its_own() {
    let authority = Authority::new(&["127.0.0.1"], (2020, 2090));
    let url = secure(&authority);
    let pem = |der: &[u8]| {
        let text = base64::engine::general_purpose::STANDARD.encode(der);
        format!("-----BEGIN CERTIFICATE-----\n{text}\n-----END CERTIFICATE-----\n")
    };
    let trusting = |ca: Option<String>| {
        let mut terms = terms();
        terms.servers = vec![ImageServer {
            prefix: url.clone(),
            ca,
            ..ImageServer::default()
        }];
        Source::new(&image(url.clone()), &terms, Stop::default())
    };
    let ours = trusting(Some(pem(&authority.ca))).unwrap();
    assert_eq!(all(ours.whole()).unwrap(), b"file");
    let other = Authority::new(&["127.0.0.1"], (2020, 2090));
    for stranger in [None, Some(pem(&other.ca))] {
        let error = all(trusting(stranger).unwrap().whole()).unwrap_err();
        assert!(error.to_string().contains("certificate"), "{error}");
    }
    let error = trusting(Some("no PEM".into())).unwrap_err().to_string();
    assert!(error.contains("no certificate in PEM"), "{error}");
}
