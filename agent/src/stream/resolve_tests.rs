//! Tests of what is found out before a fetch: digests that stand elsewhere, and artifacts of a
//! small registry that wants a token.

use super::*;
use crate::stream::fixture::{Served, Server};
use crate::stream::terms::Patience;
use ferrite_proto::image_server::{ImageServer, Login};
use ferrite_proto::secret::Secret;
use serde_json::json;
use sha2::Digest as _;
use std::time::{Duration, Instant};

fn terms() -> Terms {
    let mut terms = Terms::at_a_shell();
    terms.patience = Patience {
        attempts: 2,
        pause: Duration::from_millis(5),
        ..terms.patience
    };
    terms
}

fn image(value: serde_json::Value) -> ImageRef {
    serde_json::from_value(value).unwrap()
}

fn resolved(image: &ImageRef, terms: &Terms) -> Result<ImageRef, Problem> {
    resolve(image, terms, &AtomicBool::new(false))
}

fn sha256(bytes: &[u8]) -> String {
    let digest = sha2::Sha256::digest(bytes).to_vec();
    format!("sha256:{}", ferrite_proto::digest::to_hex(&digest))
}

#[test]
fn the_digest_is_the_one_of_the_images_own_name() {
    let (a, b) = ("aa".repeat(32), "bb".repeat(64));
    let sums = format!("{a}  other.raw\n{b}  os.raw\n");
    let server = Server::start(vec![Served::whole(sums.as_bytes())]);
    let described = |url: &str| image(json!({"url": url, "digest_url": server.url()}));
    let found = resolved(&described("http://h/12/os.raw?x=/y.raw"), &terms()).unwrap();
    assert_eq!(found.digest.unwrap().to_string(), format!("sha512:{b}"));
    assert_eq!(found.digest_url, None);
    let problem = resolved(&described("http://h/third.raw"), &terms()).unwrap_err();
    assert_eq!(problem.code, Code::ImageInvalid);
    assert!(problem.message.contains("third.raw"), "{problem}");
    assert!(problem.message.contains(&server.url()), "{problem}");
}

#[test]
fn a_file_of_digests_is_bounded_and_has_to_be_there() {
    let long = Server::start(vec![Served::whole(&vec![b'a'; SUMS + 1])]);
    let gone = Server::start(vec![Served::status(404)]);
    for (server, code, words) in [
        (&long, Code::ImageInvalid, "longer than 1048576 bytes"),
        (&gone, Code::ImageNotFound, "404"),
    ] {
        let described = image(json!({"url": "http://h/x", "digest_url": server.url()}));
        let problem = resolved(&described, &terms()).unwrap_err();
        assert_eq!(problem.code, code, "{problem}");
        assert!(problem.message.contains(words), "{problem}");
    }
}

#[test]
fn a_server_that_says_nothing_is_left_within_a_second() {
    let listener = std::net::TcpListener::bind("127.0.0.1:0").unwrap();
    let url = format!("http://{}/SHA256SUMS", listener.local_addr().unwrap());
    let described = image(json!({"url": "http://h/x", "digest_url": url}));
    let cancelled = AtomicBool::new(false);
    std::thread::scope(|scope| {
        let resolving = scope.spawn(|| resolve(&described, &terms(), &cancelled));
        std::thread::sleep(Duration::from_millis(300));
        assert!(!resolving.is_finished());
        let began = Instant::now();
        cancelled.store(true, Ordering::Relaxed);
        let problem = resolving.join().unwrap().unwrap_err();
        assert_eq!(problem.code, Code::StepCancelled);
        assert!(began.elapsed() < Duration::from_secs(1));
    });
}

/// A registry with one artifact behind an index. It wants a token for everything, and gives one
/// to whoever has the login.
struct Registry {
    server: Server,
    index: String,
    layer: String,
}

impl Registry {
    fn start(file: &[u8]) -> Self {
        let layer = sha256(file);
        let manifest = json!({
            "schemaVersion": 2,
            "layers": [{"digest": layer, "size": file.len()}],
        });
        let manifest = manifest.to_string();
        let index = json!({
            "schemaVersion": 2,
            "manifests": [{"digest": sha256(manifest.as_bytes()), "size": manifest.len()}],
        });
        let index = index.to_string();
        let (manifest_at, index_at) = (sha256(manifest.as_bytes()), sha256(index.as_bytes()));
        let (file, layer_at, index_name) = (file.to_vec(), layer.clone(), index_at.clone());
        let server = Server::answering(move |asked, own| {
            if asked
                .path
                .starts_with("/token?service=ours&scope=repository")
            {
                // me:hunter2
                return match asked.authorization.as_str() {
                    "Basic bWU6aHVudGVyMg==" => Served::whole(b"{\"token\": \"opens\"}"),
                    _ => Served::status(401),
                };
            }
            if asked.authorization != "Bearer opens" {
                let challenge = format!(
                    "Bearer realm=\"{own}/token\",service=\"ours\",scope=\"repository:a:pull\""
                );
                return Served::status(401).with_header("WWW-Authenticate", &challenge);
            }
            match asked.path.strip_prefix("/v2/team/os/") {
                Some(path) if path == format!("manifests/{index_at}") => {
                    Served::whole(index.as_bytes())
                }
                Some(path) if path == format!("manifests/{manifest_at}") => {
                    Served::whole(manifest.as_bytes())
                }
                Some(path) if path == format!("blobs/{layer_at}") => Served::whole(&file),
                _ => Served::status(404),
            }
        });
        Self {
            server,
            index: index_name,
            layer,
        }
    }

    fn named(&self) -> String {
        let host = self.server.url().replace("http://", "oci+http://");
        let host = host.trim_end_matches("/image");
        format!("{host}/team/os@{}", self.index)
    }

    fn terms(&self, password: &str) -> Terms {
        let prefix = self.named().split("/team").next().unwrap().to_owned();
        let login = Login::Basic {
            username: "me".into(),
            password: Secret::new(password.into()),
        };
        let server = ImageServer {
            prefix,
            login: Some(login),
            ..ImageServer::default()
        };
        Terms {
            servers: vec![server],
            ..terms()
        }
    }
}

#[test]
fn an_artifact_is_followed_to_its_layer_and_that_is_fetched() {
    let file: Vec<u8> = (0..200_000_u32).map(|at| at.to_le_bytes()[1]).collect();
    let registry = Registry::start(&file);
    let described = image(json!({"url": registry.named()}));
    assert_eq!(described.validate(), Ok(()));
    let terms = registry.terms("hunter2");
    let found = resolved(&described, &terms).unwrap();
    assert_eq!(found.digest.as_ref().unwrap().to_string(), registry.layer);
    let source = Source::new(&found, &terms, Stop::default()).unwrap();
    assert!(all(&source, "", 1 << 20).unwrap() == file);
    // A part of it, too: that is how packed images and qcow2 are read.
    let source = Source::new(&found, &terms, Stop::default()).unwrap();
    assert_eq!(source.greet().unwrap(), file[..4096]);
}

#[test]
fn a_registry_that_does_not_know_us_and_one_that_lies_are_named() {
    let registry = Registry::start(b"file");
    let described = image(json!({"url": registry.named()}));
    let problem = resolved(&described, &registry.terms("wrong")).unwrap_err();
    assert_eq!(problem.code, Code::ImageInvalid, "{problem}");
    assert!(
        problem.message.contains("no token is given: 401"),
        "{problem}"
    );
    assert!(!problem.message.contains("wrong"), "{problem}");
    let forged = Server::start(vec![Served::whole(b"{\"schemaVersion\": 2}")]);
    let host = forged.url().replace("http://", "oci+http://");
    let url = host.replace("/image", &format!("/a@sha256:{}", "ab".repeat(32)));
    let problem = resolved(&image(json!({"url": url})), &terms()).unwrap_err();
    assert!(problem.message.contains("has the digest"), "{problem}");
}

#[test]
fn the_index_of_a_packed_artifact_is_vouched_for_by_a_person() {
    let registry = Registry::start(b"file");
    let digest = sha256(b"index");
    let described = image(json!({
        "url": registry.named(), "format": "packed", "digest": digest,
    }));
    let found = resolved(&described, &registry.terms("hunter2")).unwrap();
    assert_eq!(found.digest.unwrap().to_string(), digest);
    assert!(found.url.contains(&registry.layer), "{}", found.url);
}
