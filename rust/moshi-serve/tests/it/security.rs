//! Keys, tickets, origins and encryption.

use std::sync::Arc;

use moshi_serve::client::{ChatClient, ClientOptions};
use moshi_serve::{ServeConfig, ServeError, Server, Tls};
use tokio::io::{AsyncReadExt, AsyncWriteExt};

use crate::support::{Echo, Running, UPGRADE, config, frames, greeted, http, http_with_body, talk};

const KEY: &str = "a-key-that-is-long-enough";

fn keyed() -> ServeConfig {
    ServeConfig { api_keys: vec![KEY.into()], ..config(2) }
}

#[tokio::test]
async fn a_wrong_key_opens_no_route() {
    let server = Running::start(&Arc::new(Echo::new()), keyed());
    let mut seen = 0;
    for route in [
        "GET /api/chat",
        "GET /v1/realtime",
        "GET /realtime",
        "GET /v1/live/sessions",
        "GET /api/build_info",
        "GET /api/modules_info",
        "GET /metrics",
        "GET /v1/models",
        "GET /v1/models/echo",
        "POST /api/ticket",
        "POST /v1/realtime/client_secrets",
    ] {
        for header in [
            String::new(),
            "Authorization: Bearer a-key-that-is-wrong-here\r\n".into(),
            format!("Authorization: Basic {KEY}\r\n"),
            "x-api-key: wrong\r\n".into(),
            "Sec-WebSocket-Protocol: moshi, ticket.wrong\r\n".into(),
        ] {
            let (status, body) = http(server.address, route, &header).await;
            assert!(status == 401 && body.contains("invalid_api_key"), "{route} {header}: {body}");
            assert!(!body.contains(KEY));
            seen += 1;
        }
        let query = format!("{route}?auth_id={KEY}");
        assert_eq!(http(server.address, &query, "").await.0, 401, "{query}");
        let header = format!("Authorization: Bearer {KEY}\r\n");
        assert_ne!(http(server.address, route, &header).await.0, 401, "{route}");
    }
    assert_eq!(seen, 55);
    for open in ["GET /healthz", "GET /readyz", "GET /"] {
        assert_eq!(http(server.address, open, "").await.0, 200, "{open}");
    }
    let options = ClientOptions { api_key: Some(KEY.into()), ..ClientOptions::default() };
    let mut client = ChatClient::connect(&server.url(), &options).await.unwrap();
    greeted(&mut client).await;
    let wrong = ClientOptions { api_key: Some("wrong".into()), ..options };
    let Err(ServeError::Connect { reason, .. }) = ChatClient::connect(&server.url(), &wrong).await
    else {
        panic!("not refused")
    };
    assert!(reason.contains("401") && reason.contains("API key"), "{reason}");
    server.stop().await;
}

#[tokio::test]
async fn a_page_exchanges_its_key_for_a_ticket_that_opens_once() {
    let server = Running::start(&Arc::new(Echo::new()), keyed());
    let header = format!("Authorization: Bearer {KEY}\r\n");
    let (status, body) = http(server.address, "POST /api/ticket", &header).await;
    assert_eq!(status, 200);
    let answer: serde_json::Value = serde_json::from_str(&body).unwrap();
    let ticket = answer["ticket"].as_str().unwrap();
    assert_eq!(answer["expires_in"], 60);
    let ask = format!("Sec-WebSocket-Protocol: moshi, ticket.{ticket}\r\n");
    // A ticket is for one request, and buys no other ticket.
    assert_eq!(http(server.address, "POST /api/ticket", &ask).await.0, 401);
    let mut socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let text = format!("GET /api/chat HTTP/1.1\r\nHost: {}\r\n{UPGRADE}{ask}\r\n", server.address);
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut answer = vec![0; 64];
    socket.read_exact(&mut answer).await.unwrap();
    assert!(answer.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&answer));
    assert_eq!(http(server.address, "GET /api/chat", &ask).await.0, 401);
    server.stop().await;
}

#[tokio::test]
async fn an_ephemeral_key_opens_one_realtime_connection() {
    let server = Running::start(&Arc::new(Echo::new()), keyed());
    let header = format!("Authorization: Bearer {KEY}\r\n");
    let path = "POST /v1/realtime/client_secrets";
    let body = r#"{"expires_after": {"anchor": "created_at", "seconds": 600},
        "session": {"type": "realtime", "instructions": "be kind"}}"#;
    let now = std::time::SystemTime::now().duration_since(std::time::UNIX_EPOCH).unwrap().as_secs();
    let (status, answer) = http_with_body(server.address, path, &header, body).await;
    assert_eq!(status, 200, "{answer}");
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let key = answer["value"].as_str().unwrap();
    assert!(key.starts_with("ek_"), "{key}");
    let expires = answer["expires_at"].as_u64().unwrap();
    assert!((now + 60..now + 90).contains(&expires), "a minute, not ten");
    assert_eq!(answer["session"]["instructions"], "be kind");

    let with = format!("Authorization: Bearer {key}\r\n");
    assert_eq!(http(server.address, path, &with).await.0, 401, "it buys no other");
    let ask = format!("Sec-WebSocket-Protocol: realtime, openai-insecure-api-key.{key}\r\n");
    let known = ClientOptions { api_key: Some(KEY.into()), ..ClientOptions::default() };
    let inside = [
        ChatClient::connect(&server.url(), &known).await.unwrap(),
        ChatClient::connect(&server.url(), &known).await.unwrap(),
    ];
    server.slots(2, 0).await;
    let upgrade = format!("{UPGRADE}{ask}");
    assert_eq!(http(server.address, "GET /v1/realtime", &upgrade).await.0, 429);
    for client in inside {
        client.close().await;
    }
    server.slots(0, 0).await;
    // Who was refused comes again with the same key.
    let mut socket = tokio::net::TcpStream::connect(server.address).await.unwrap();
    let text =
        format!("GET /v1/realtime HTTP/1.1\r\nHost: {}\r\n{UPGRADE}{ask}\r\n", server.address);
    socket.write_all(text.as_bytes()).await.unwrap();
    let mut start = vec![0; 64];
    socket.read_exact(&mut start).await.unwrap();
    assert!(start.starts_with(b"HTTP/1.1 101"), "{}", String::from_utf8_lossy(&start));
    assert_eq!(http(server.address, "GET /v1/realtime", &ask).await.0, 401);
    let mut created = Vec::new();
    while !created.ends_with(b"}") {
        assert_ne!(socket.read_buf(&mut created).await.unwrap(), 0, "closed");
    }
    let created = String::from_utf8_lossy(&created);
    assert!(created.contains("session.created") && created.contains("be kind"), "{created}");

    let (_, answer) = http(server.address, path, &header).await;
    let answer: serde_json::Value = serde_json::from_str(&answer).unwrap();
    let with = format!("Authorization: Bearer {}\r\n", answer["value"].as_str().unwrap());
    assert_eq!(http(server.address, "GET /v1/models", &with).await.0, 200);
    assert_eq!(http(server.address, "GET /v1/models", &with).await.0, 401);
    for (bad, reason) in [
        ("no json", "not JSON"),
        (r#"{"session": {"type": "transcription"}}"#, "session.type"),
        (r#"{"expires_after": {"seconds": "soon"}}"#, "expires_after.seconds"),
    ] {
        let (status, answer) = http_with_body(server.address, path, &header, bad).await;
        assert!(status == 400 && answer.contains(reason), "{bad}: {status} {answer}");
    }
    server.stop().await;
}

#[tokio::test]
async fn pages_of_other_hosts_cannot_connect() {
    let settings = ServeConfig { allow_origins: vec!["https://app.example".into()], ..config(2) };
    let server = Running::start(&Arc::new(Echo::new()), settings);
    for (headers, status) in [
        ("Origin: https://evil.example\r\n".to_owned(), 403),
        ("Origin: null\r\n".to_owned(), 403),
        ("Host: evil.example\r\n".to_owned(), 403),
        (format!("Origin: http://{}\r\n", server.address), 200),
        ("Origin: https://app.example\r\n".to_owned(), 200),
    ] {
        assert_eq!(http(server.address, "GET /v1/models", &headers).await.0, status, "{headers}");
    }
    server.stop().await;
}

#[tokio::test]
async fn tls_takes_a_given_certificate() {
    let folder = tempfile::tempdir().unwrap();
    let made = rcgen::generate_simple_self_signed(vec!["localhost".into()]).unwrap();
    let (certificate, key) = (folder.path().join("cert.pem"), folder.path().join("key.pem"));
    std::fs::write(&certificate, made.cert.pem()).unwrap();
    std::fs::write(&key, made.signing_key.serialize_pem()).unwrap();
    let tls = Tls::Files { certificate: certificate.clone(), key };
    let server = Running::start(&Arc::new(Echo::new()), ServeConfig { tls, ..config(1) });
    let url = format!("wss://localhost:{}", server.address.port());
    let trusting =
        ClientOptions { certificate: Some(certificate.clone()), ..ClientOptions::default() };
    let mut client = ChatClient::connect(&url, &trusting).await.unwrap();
    greeted(&mut client).await;
    talk(&mut client, &frames(3)).await;
    let Err(ServeError::Connect { reason, .. }) =
        ChatClient::connect(&url, &ClientOptions::default()).await
    else {
        panic!("an unknown certificate is not trusted")
    };
    assert!(reason.contains("--ca-file"), "{reason}");
    server.stop().await;

    let tls = Tls::Files { certificate, key: folder.path().join("none.pem") };
    let refused = Server::bind(ServeConfig { tls, ..config(1) });
    assert!(matches!(refused, Err(ServeError::File { path, .. }) if path.ends_with("none.pem")));
    let server = Server::bind(ServeConfig { tls: Tls::SelfSigned, ..config(1) }).unwrap();
    assert!(server.tls_note().unwrap().contains("SHA-256"));
}

#[test]
fn a_taken_port_is_an_error_that_names_it() {
    let first = Server::bind(config(1)).unwrap();
    let port = first.address().unwrap().port();
    let error = Server::bind(ServeConfig { port, ..config(1) }).err().unwrap();
    assert!(matches!(error, ServeError::Bind { .. }), "{error}");
    assert!(error.to_string().contains(&port.to_string()));
}
