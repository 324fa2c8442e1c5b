//! What is answered before there is an engine.

use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use moshi_serve::{ServeConfig, Server, Tls};
use tokio::sync::mpsc;

use crate::support::{Echo, Running, UPGRADE, config, http};

#[tokio::test]
async fn health_is_told_while_the_model_loads() {
    let server = Server::bind(config(1)).unwrap();
    let address = server.address().unwrap();
    for path in ["GET /healthz", "GET /ping", "GET /v2/health/live"] {
        assert_eq!(http(address, path, "").await.0, 200, "{path}");
    }
    for path in ["GET /readyz", "GET /health", "GET /v2/health/ready"] {
        let (status, body) = http(address, path, "").await;
        assert!(status == 503 && body.contains("loading"), "{path}: {status} {body}");
    }
    for path in ["GET /", "GET /metrics", "GET /v1/models", "POST /api/ticket"] {
        let (status, body) = http(address, path, "").await;
        assert!(status == 503 && body.contains("loading"), "{path}: {status} {body}");
    }
    assert_eq!(http(address, "GET /api/chat", UPGRADE).await.0, 503);
    assert_eq!(http(address, "GET /healthz", "Host: evil.example\r\n").await.0, 403);

    let worker = server.start(Arc::new(Echo::new())).unwrap();
    let (stop, stopped) = mpsc::channel(2);
    let task = tokio::spawn(server.run(worker, stopped));
    let (status, body) = http(address, "GET /readyz", "").await;
    assert!(status == 200 && body.contains("echo"), "{status} {body}");
    stop.send(()).await.unwrap();
    task.await.unwrap().unwrap();
}

#[tokio::test]
async fn a_server_that_never_starts_lets_its_port_go() {
    let server = Server::bind(ServeConfig { tls: Tls::SelfSigned, ..config(1) }).unwrap();
    let address = server.address().unwrap();
    drop(server);
    assert!(tokio::net::TcpStream::connect(address).await.is_err());
}

#[tokio::test]
async fn memory_bounds_the_number_of_sessions() {
    for room in [1, 2, 3, 7] {
        let echo = Arc::new(Echo::new());
        echo.room.store(room, Ordering::SeqCst);
        let server = Running::start(&echo, ServeConfig { max_sessions: None, ..config(1) });
        assert_eq!(server.hub.slots().capacity, room);
        server.stop().await;
    }
}

#[tokio::test]
async fn sessions_are_counted_as_if_all_had_gone_on_for_long() {
    let mut echo = Echo::new();
    echo.full_step_time = Duration::from_millis(10);
    let settings = ServeConfig { max_sessions: None, ..config(1) };
    let server = Running::start(&Arc::new(echo), settings);
    let capacity = server.hub.slots().capacity;
    assert!((1..=6).contains(&capacity), "{capacity} of 10 ms in four fifths of a frame");
    server.stop().await;
}
