//! What strangers may do without hurting anybody else.

use std::io::{BufRead, BufReader};
use std::process::{Command, Stdio};
use std::sync::Arc;
use std::sync::atomic::Ordering;
use std::time::Duration;

use futures_util::{SinkExt, StreamExt};
use moshi_core::lm::Sampling;
use moshi_serve::backend::StreamOptions;
use moshi_serve::client::{ChatClient, ClientEvent, ClientOptions};
use moshi_serve::hub::{End, OpenError, SessionRequest};
use moshi_serve::scheduler::Overflow;
use moshi_serve::{ServeError, Server};
use moshi_wire::chat::ChatMessage;
use moshi_wire::opus::OpusWriter;
use tokio::io::AsyncWriteExt;
use tokio::net::TcpStream;
use tokio_tungstenite::WebSocketStream;
use tokio_tungstenite::tungstenite::Message;

use crate::support::{
    Echo, FRAME, RATE_HZ, Running, closed, config, eventually, frames, greeted, heard, http,
    last_words, talk, through_opus,
};

fn request(overflow: Overflow) -> SessionRequest {
    let sampling = Some(Sampling::greedy());
    let stream = StreamOptions { seed: Some(1), sampling };
    SessionRequest { stream, overflow, resume: None, protocol: "test" }
}

/// Runs `attack` while another session talks, which must not notice.
async fn beside_a_witness<F: Future<Output = ()>>(attack: impl FnOnce(Arc<Running>) -> F) {
    let server = Arc::new(Running::start(&Arc::new(Echo::new()), config(4)));
    let mut witness = server.connect(&[("seed", "5")]).await;
    greeted(&mut witness).await;
    let frames = frames(24);
    let (pcm, expected) = Echo::alone(&heard(&frames), 5);
    let (mut audio, mut text) = talk(&mut witness, &frames[..12]).await;
    attack(Arc::clone(&server)).await;
    let (more, said) = talk(&mut witness, &frames[12..]).await;
    audio.extend(more);
    text.push_str(&said);
    last_words(&mut witness, &mut text, &expected).await;
    assert_eq!(text, expected);
    assert!(audio == through_opus(&pcm), "the witness hears what it hears alone");
    server.slots(1, 0).await;
    witness.close().await;
    server.slots(0, 0).await;
}

#[tokio::test]
async fn garbage_is_survived_and_too_much_of_it_closes() {
    beside_a_witness(async |server| {
        let mut client = server.connect(&[]).await;
        greeted(&mut client).await;
        for message in [&[][..], &[0], &[1], &[2], &[3, 9], &[4, 0xff], &[200, 1, 2], b"\x01OggS"] {
            assert!(client.send_message(message.to_vec()).await);
        }
        talk(&mut client, &frames(2)).await;
        for _ in 0..60 {
            client.send_message(vec![0xee]).await;
        }
        assert_eq!(closed(&mut client).await.unwrap().0, 1007);
    })
    .await;
}

#[tokio::test]
async fn a_damaged_page_costs_no_more_than_itself() {
    beside_a_witness(async |server| {
        let mut client = server.connect(&[]).await;
        greeted(&mut client).await;
        let mut writer = OpusWriter::new(RATE_HZ).unwrap();
        for (number, frame) in frames(10).iter().enumerate() {
            let mut message = writer.push(frame).unwrap();
            if number == 4 {
                let middle = message.len() / 4;
                message[middle] ^= 0x55;
            }
            message.insert(0, 1);
            assert!(client.send_message(message).await);
            // The page after the damaged one tells that it is missing, and it is concealed.
            loop {
                match client.next().await {
                    ClientEvent::Audio(samples) => break assert_eq!(samples.len(), FRAME),
                    ClientEvent::Text(_) | ClientEvent::Metadata(_) => {}
                    other => panic!("{other:?}"),
                }
            }
        }
        client.close().await;
    })
    .await;
}

#[tokio::test]
async fn a_message_beyond_the_limit_closes_with_its_code() {
    beside_a_witness(async |server| {
        let mut client = server.connect(&[]).await;
        greeted(&mut client).await;
        // The server answers at the header of the message, and takes no more of it.
        client.send_message(vec![1; 100 << 20]).await;
        let said = closed(&mut client).await;
        assert!(said.as_ref().is_none_or(|(code, _)| *code == 1009), "{said:?}");
        let mut client = server.connect(&[]).await;
        greeted(&mut client).await;
        client.send_message(vec![1; 2 << 20]).await;
        assert_eq!(closed(&mut client).await.unwrap().0, 1009);
    })
    .await;
}

#[tokio::test]
async fn audio_faster_than_life_is_dropped_and_reported() {
    let mut echo = Echo::new();
    echo.step_time = Duration::from_millis(50);
    let server = Running::start(&Arc::new(echo), config(2));
    let mut client = server.connect(&[("stats", "1")]).await;
    greeted(&mut client).await;
    // Encoded before, and a slow engine: a busy machine must not make the audio as slow as life.
    let mut writer = OpusWriter::new(RATE_HZ).unwrap();
    let encode = |frame: &Vec<f32>| ChatMessage::Audio(&writer.push(frame).unwrap()).encode();
    let messages: Vec<Vec<u8>> = frames(100).iter().map(encode).collect();
    for message in messages {
        assert!(client.send_message(message).await);
    }
    let (mut answers, mut dropped) = (0, 0);
    // Everything is answered or dropped.
    let counted = |server: &Running| {
        let text = server.hub.metrics_text();
        let line =
            text.lines().find(|l| l.starts_with("moshi_input_dropped_frames_total")).unwrap();
        line.rsplit(' ').next().unwrap().parse::<usize>().unwrap()
    };
    while answers + counted(&server) < 100 {
        if let ClientEvent::Audio(samples) = client.next().await {
            answers += samples.len() / FRAME;
        }
    }
    assert!(counted(&server) >= 50, "{answers} answers");
    // The next frame that is told about comes with the count.
    for frame in frames(3) {
        tokio::time::sleep(Duration::from_millis(500)).await;
        client.send(&frame).await.unwrap();
    }
    while dropped == 0 {
        match client.next().await {
            ClientEvent::Metadata(metadata) => {
                dropped = metadata["dropped_frames"].as_u64().unwrap();
            }
            ClientEvent::Closed(said) => panic!("{said:?}"),
            _ => {}
        }
    }
    assert_eq!(dropped as usize, counted(&server));
    server.stop().await;
}

#[tokio::test]
async fn conversations_that_run_do_not_wait_for_a_crowd() {
    let echo = Arc::new(Echo::new());
    let server = Running::start(&echo, config(4));
    let mut talking = server.hub.open(request(Overflow::DropOldest)).await.unwrap();
    echo.holds.store(true, Ordering::SeqCst);
    talking.push(&frames(1).concat());
    eventually(|| echo.is_held.load(Ordering::SeqCst)).await;
    talking.push(&frames(3).concat());
    let comes = || {
        let hub = server.hub.clone();
        tokio::spawn(async move { hub.open(request(Overflow::DropOldest)).await.unwrap() })
    };
    let crowd = [(); 3].map(|()| comes());
    server.slots(4, 0).await;
    echo.done.lock().unwrap().clear();
    echo.holds.store(false, Ordering::SeqCst);
    let mut handles = Vec::new();
    for caller in crowd {
        handles.push(caller.await.unwrap());
    }
    let done = echo.done.lock().unwrap().clone();
    assert_eq!(done, ["step", "step", "open", "step", "open", "step", "open"]);
    drop(handles);
    server.stop().await;
}

#[tokio::test]
async fn a_client_that_does_not_read_is_closed_and_its_slot_freed() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut handle = server.hub.open(request(Overflow::PushBack)).await.unwrap();
    let ended = handle.ended();
    let mut left = handle.offer(&frames(70).concat());
    while left > 0 {
        tokio::time::sleep(Duration::from_millis(1)).await;
        left = handle.pump();
    }
    assert_eq!(ended.await, End::SlowReader);
    server.slots(0, 0).await;
    while handle.next().await.is_some() {
        left += 1;
    }
    assert_eq!(left, 64, "what was finished is still there");
    let text = server.hub.metrics_text();
    assert!(text.contains("moshi_slow_readers_total 1"), "{text}");
    server.stop().await;
}

#[tokio::test]
async fn an_upload_is_pushed_back_and_loses_nothing() {
    let mut echo = Echo::new();
    echo.step_time = Duration::from_micros(200);
    let server = Running::start(&Arc::new(echo), config(1));
    let frames = frames(400);
    let (pcm, _) = Echo::alone(&frames, 1);
    let mut handle = server.hub.open(request(Overflow::PushBack)).await.unwrap();
    let mut outputs = Vec::new();
    handle.offer(&frames.concat());
    while outputs.len() < 400 {
        tokio::select! {
            output = handle.next() => outputs.push(output.unwrap()),
            () = tokio::time::sleep(Duration::from_millis(1)) => drop(handle.pump()),
        }
    }
    assert_eq!(outputs.last().unwrap().step, 400);
    assert_eq!(outputs.last().unwrap().dropped, 0);
    assert!(outputs.iter().zip(&pcm).all(|(output, pcm)| output.pcm == *pcm));
    handle.close();
    server.stop().await;
}

#[tokio::test]
async fn two_hundred_comers_and_goers_leave_nothing_behind() {
    let server = Running::start(&Arc::new(Echo::new()), config(4));
    for number in 0..200 {
        let mut client = server.connect(&[]).await;
        match number % 4 {
            0 => drop(client),
            1 => client.close().await,
            2 => {
                greeted(&mut client).await;
                client.send(&frames(1)[0]).await.unwrap();
                client.close().await;
            }
            _ => {
                greeted(&mut client).await;
                drop(client);
            }
        }
        eventually(|| server.hub.slots().used < 4).await;
    }
    server.slots(0, 0).await;
    greeted(&mut server.connect(&[]).await).await;
    server.stop().await;
}

#[tokio::test]
async fn a_panic_of_the_engine_ends_everything_loudly() {
    let echo = Arc::new(Echo::new());
    let server = Running::start(&echo, config(2));
    let mut client = server.connect(&[]).await;
    greeted(&mut client).await;
    let bystander = server.hub.open(request(Overflow::DropOldest)).await.unwrap();
    echo.panics.store(true, Ordering::SeqCst);
    client.send(&frames(1)[0]).await.unwrap();
    assert_eq!(closed(&mut client).await.unwrap().0, 1011);
    assert_eq!(bystander.ended().await, End::Failed);
    let (hub, address) = (server.hub.clone(), server.address);
    let error = server.outcome().await.unwrap_err();
    assert!(
        matches!(&error, ServeError::Worker(reason) if reason.contains("invariant")),
        "{error}"
    );
    assert_eq!(hub.readiness(), moshi_serve::hub::Readiness::Failed);
    let refused = hub.open(request(Overflow::DropOldest)).await;
    assert!(matches!(refused, Err(OpenError::Failed)));
    assert!(
        ChatClient::connect(&format!("ws://{address}"), &ClientOptions::default()).await.is_err()
    );
}

/// In the environment of a process that serves and panics.
const PANICKING: &str = "MOSHI_SERVE_TEST_PANICKING";
/// Before the address in its output.
const SERVING: &str = "serving on ";

#[test]
fn the_process_exits_with_an_error_after_a_panic() {
    if std::env::var_os(PANICKING).is_some() {
        serve_and_panic();
    }
    let own_name = std::thread::current().name().unwrap().to_owned();
    let mut process = Command::new(std::env::current_exe().unwrap())
        .args(["--exact", &own_name, "--nocapture", "--test-threads=1"])
        .env(PANICKING, "1")
        .stdout(Stdio::piped())
        .stderr(Stdio::null())
        .spawn()
        .unwrap();
    let mut lines = BufReader::new(process.stdout.take().unwrap()).lines();
    let address = lines
        .find_map(|line| line.unwrap().split_once(SERVING).map(|(_, address)| address.to_owned()))
        .unwrap();
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().unwrap();
    runtime.block_on(async {
        let url = format!("ws://{address}");
        let mut client = ChatClient::connect(&url, &ClientOptions::default()).await.unwrap();
        greeted(&mut client).await;
        client.send(&frames(1)[0]).await.unwrap();
        assert_eq!(closed(&mut client).await.unwrap().0, 1011);
    });
    assert_eq!(process.wait().unwrap().code(), Some(3));
}

/// As `moshi-rs serve`, with an engine that is broken, and codes of its own for how it ends.
#[allow(clippy::print_stdout, clippy::exit, reason = "a process of its own")]
fn serve_and_panic() -> ! {
    let echo = Arc::new(Echo::new());
    echo.panics.store(true, Ordering::SeqCst);
    let server = Server::bind(config(1)).unwrap();
    let worker = server.start(echo).unwrap();
    println!("{SERVING}{}", server.address().unwrap());
    std::process::exit(match server.run_until_signal(worker) {
        Err(ServeError::Worker(_)) => 3,
        Err(_) => 4,
        Ok(()) => 0,
    })
}

/// A connection on which a client may send anything.
async fn raw(server: &Running, path: &str) -> WebSocketStream<TcpStream> {
    let stream = TcpStream::connect(server.address).await.unwrap();
    let url = format!("{}{path}", server.url());
    tokio_tungstenite::client_async(url, stream).await.unwrap().0
}

/// The code with which the server closes.
async fn code(socket: &mut WebSocketStream<TcpStream>) -> Option<u16> {
    loop {
        match socket.next().await {
            Some(Ok(Message::Close(frame))) => return frame.map(|frame| frame.code.into()),
            Some(Ok(_)) => {}
            Some(Err(_)) | None => return None,
        }
    }
}

#[tokio::test]
async fn what_is_not_the_protocol_is_closed_with_its_code() {
    beside_a_witness(async |server| {
        // Frames of a client: a mask of zeros changes nothing.
        let masked = |first: u8, payload: &[u8]| {
            [&[first, 0x80 | payload.len() as u8, 0, 0, 0, 0][..], payload].concat()
        };
        for path in ["/api/chat", "/v1/realtime", "/v1/live/sessions"] {
            for (bytes, expected) in [
                (masked(0xc2, b"reserved bit"), 1002),
                (masked(0x83, b"reserved kind"), 1002),
                (masked(0x80, b"nothing to continue"), 1002),
                (masked(0x09, b"a ping in parts"), 1002),
                (vec![0x82, 1, 7], 1002),
                (masked(0x81, &[0xff, 0xfe]), 1007),
            ] {
                let mut socket = raw(&server, path).await;
                socket.get_mut().write_all(&bytes).await.unwrap();
                assert_eq!(code(&mut socket).await, Some(expected), "{path}: {bytes:?}");
                eventually(|| server.hub.slots().used == 1).await;
            }
        }
    })
    .await;
}

#[tokio::test]
async fn garbage_in_pages_is_counted_message_by_message() {
    let server = Running::start(&Arc::new(Echo::new()), config(1));
    let mut client = server.connect(&[]).await;
    greeted(&mut client).await;
    for _ in 0..60 {
        client.send_message([&[1][..], &[0xaa; 300]].concat()).await;
    }
    assert_eq!(closed(&mut client).await.unwrap().0, 1007);
    server.stop().await;
}

#[tokio::test]
async fn pings_without_end_close_and_a_few_do_not() {
    beside_a_witness(async |server| {
        for (count, floods) in [(40, false), (400, true)] {
            let mut socket = raw(&server, "/api/chat").await;
            for _ in 0..count {
                // It may be closed by now.
                let _ = socket.send(Message::Ping(Vec::new().into())).await;
            }
            let mut reason = None;
            let mut pongs = 0;
            while reason.is_none() && (floods || pongs < count) {
                match socket.next().await {
                    Some(Ok(Message::Pong(_))) => pongs += 1,
                    Some(Ok(Message::Close(frame))) => reason = frame,
                    Some(Ok(_)) => {}
                    other => panic!("{other:?} after {pongs} of {count}"),
                }
            }
            assert_eq!(reason.is_some(), floods, "{pongs} of {count} answered");
            if let Some(frame) = reason {
                assert_eq!(u16::from(frame.code), 1008);
                assert!(frame.reason.contains("pings"), "{}", frame.reason);
            }
        }
    })
    .await;
}

#[tokio::test]
async fn an_idle_session_is_ended() {
    let idle = Duration::from_millis(200);
    let settings = moshi_serve::ServeConfig { idle, ..config(1) };
    let server = Running::start(&Arc::new(Echo::new()), settings);
    let mut client = server.connect(&[]).await;
    greeted(&mut client).await;
    let (code, reason) = closed(&mut client).await.unwrap();
    assert_eq!(code, 1000);
    assert!(reason.contains("no audio"), "{reason}");
    server.slots(0, 0).await;
    server.stop().await;
}

#[tokio::test]
async fn connections_of_one_address_are_limited() {
    let settings = moshi_serve::ServeConfig { max_connections_per_address: 2, ..config(4) };
    let server = Running::start(&Arc::new(Echo::new()), settings);
    let mut kept = [server.connect(&[]).await, server.connect(&[]).await];
    for client in &mut kept {
        greeted(client).await;
    }
    assert!(ChatClient::connect(&server.url(), &ClientOptions::default()).await.is_err());
    let [one, _other] = kept;
    one.close().await;
    let address = server.address;
    for _ in 0..400 {
        tokio::time::sleep(Duration::from_millis(5)).await;
        if tokio::spawn(async move { http(address, "GET /healthz", "").await }).await.is_ok() {
            return server.stop().await;
        }
    }
    panic!("a connection that ended still counts");
}
