//! The listener: connections with their limits, and the way down.
//!
//! A server binds first, so that a taken port is known before a large model is loaded, tells its
//! health meanwhile, and takes callers when the engine is ready. It stops at a signal: no new
//! conversations, a notice to the running ones, and an end to those that are not over in time.

use std::collections::HashMap;
use std::net::{IpAddr, SocketAddr, TcpListener as StdListener};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::{Duration, Instant, SystemTime};

use axum::Router;
use hyper_util::rt::{TokioIo, TokioTimer};
use hyper_util::service::TowerToHyperService;
use socket2::{Domain, Protocol, Socket, Type};
use tokio::io::{AsyncRead, AsyncWrite};
use tokio::net::{TcpListener, TcpStream};
use tokio::sync::watch;
use tokio::time::{sleep, timeout};

use crate::auth::{Auth, Origins};
use crate::backend::Backend;
use crate::config::ServeConfig;
use crate::error::ServeError;
use crate::hub::{End, Hub, HubOptions};
use crate::memory;
use crate::routes::{App, router};
use crate::starting::{self, Starting};
use crate::worker::{Worker, rules};
use crate::{tls, tokens};

/// Time for a TLS handshake, and for the header of a request.
const HANDSHAKE: Duration = Duration::from_secs(10);
/// Largest header of a request.
const MAX_HEADER_BYTES: usize = 16 * 1024;
/// Sent bytes that the operating system holds for a connection: some seconds of audio.
const SEND_BUFFER_BYTES: usize = 32 * 1024;
/// Connections that wait to be accepted.
const BACKLOG: i32 = 256;
/// Time for the last close frames.
const FAREWELL: Duration = Duration::from_secs(2);
/// Threads for sockets and Opus; the engine has its own.
const NETWORK_THREADS: usize = 2;
/// A bound where sessions are counted by measuring.
const MOST_SESSIONS: usize = 64;

/// A bound address, not serving yet.
pub struct Server {
    config: ServeConfig,
    listener: StdListener,
    tls: Option<tls::Accepting>,
    /// Until there is an engine.
    starting: Mutex<Option<Starting>>,
}

impl Server {
    /// Checks the settings, reads certificates and binds the address. From now on, health is told:
    /// the process lives, and is not ready.
    ///
    /// # Errors
    /// [`ServeError::Config`], [`ServeError::File`], [`ServeError::Bind`], [`ServeError::Runtime`].
    pub fn bind(config: ServeConfig) -> Result<Self, ServeError> {
        config.check()?;
        let tls = tls::accepting(&config.tls, config.host)?;
        if let Some(dir) = &config.state_dir {
            prepare(dir)?;
        }
        let address = config.address();
        let bind = |cause| ServeError::Bind { address, cause };
        let listener = listen(address).map_err(bind)?;
        let answers = starting::router(origins(&config));
        let acceptor = tls.as_ref().map(|tls| tls.acceptor.clone());
        let starting = Starting::begin(&listener, Accepting::new(answers, acceptor, &config))?;
        Ok(Self { config, listener, tls, starting: Mutex::new(Some(starting)) })
    }

    /// The address in use.
    ///
    /// # Errors
    /// [`ServeError::Bind`] if the operating system does not know it any more.
    pub fn address(&self) -> Result<SocketAddr, ServeError> {
        let address = self.config.address();
        self.listener.local_addr().map_err(|cause| ServeError::Bind { address, cause })
    }

    /// True where connections are encrypted.
    pub fn is_encrypted(&self) -> bool {
        self.tls.is_some()
    }

    /// What to tell the operator about encryption, or nothing.
    pub fn tls_note(&self) -> Option<&str> {
        self.tls.as_ref().map(|tls| tls.note.as_str()).filter(|note| !note.is_empty())
    }

    /// Measures the engine and starts its worker.
    ///
    /// # Errors
    /// [`ServeError::Engine`].
    pub fn start<B: Backend>(&self, backend: Arc<B>) -> Result<Worker, ServeError> {
        let config = &self.config;
        let card = backend.card();
        let parked = config.resume_memory_bytes.checked_div(card.session_bytes);
        let rules = rules(
            card.frame_time(),
            config.coalesce,
            config.queue,
            config.resume_grace,
            parked.map_or(usize::MAX, |parked| usize::try_from(parked).unwrap_or(usize::MAX)),
            config.idle,
        );
        let options =
            HubOptions { state_dir: config.state_dir.clone(), grace: config.resume_grace };
        let fit = || memory::sessions_that_fit(card.session_bytes).unwrap_or(MOST_SESSIONS);
        let most = if card.is_in_main_memory() { fit().min(MOST_SESSIONS) } else { MOST_SESSIONS };
        let worker = Worker::start(backend, rules, config.max_sessions, most, options)?;
        self.starting.lock().unwrap_or_else(PoisonError::into_inner).take();
        Ok(worker)
    }

    /// Serves until `stop` resolves and the running conversations are over or out of time; at once
    /// when it resolves a second time.
    ///
    /// # Errors
    /// [`ServeError::Worker`] when the engine fails.
    pub async fn run(self, worker: Worker, stop: impl Stop) -> Result<(), ServeError> {
        let hub = worker.hub().clone();
        let outcome = self.serve(&hub, stop).await;
        tokio::task::spawn_blocking(move || worker.stop())
            .await
            .map_err(|error| ServeError::Worker(error.to_string()))?;
        outcome
    }

    /// As [`Server::run`] until a signal, on threads of its own.
    ///
    /// # Errors
    /// As [`Server::run`], and [`ServeError::Runtime`].
    pub fn run_until_signal(self, worker: Worker) -> Result<(), ServeError> {
        let runtime = tokio::runtime::Builder::new_multi_thread()
            .worker_threads(NETWORK_THREADS)
            .enable_all()
            .build()
            .map_err(ServeError::Runtime)?;
        runtime.block_on(async {
            let signals = Signals::listen()?;
            self.run(worker, signals).await
        })
    }

    async fn serve(self, hub: &Hub, mut stop: impl Stop) -> Result<(), ServeError> {
        let Self { config, listener, tls, starting } = self;
        drop(starting);
        let address = config.address();
        let listener =
            TcpListener::from_std(listener).map_err(|cause| ServeError::Bind { address, cause })?;
        let (draining, drain) = watch::channel(None);
        let app = App {
            hub: hub.clone(),
            auth: Auth::new(config.api_keys.iter().map(String::as_str), config.compat_query_keys),
            origins: origins(&config),
            drain,
            started: SystemTime::now(),
        };
        let acceptor = tls.map(|tls| tls.acceptor);
        let accepting = Accepting::new(router(Arc::new(app)), acceptor, &config);
        let connections = Arc::clone(&accepting.connections);
        let accept = tokio::spawn(accepting.run(listener));
        let forget = config
            .state_dir
            .clone()
            .map(|dir| tokio::spawn(forget_unclaimed(dir, config.resume_grace)));
        let failed = tokio::select! {
            reason = hub.failure() => Some(reason),
            () = stop.requested() => None,
        };
        let outcome = match failed {
            Some(reason) => Err(ServeError::Worker(reason)),
            None => drain_hub(hub, &config, &draining, &mut stop).await,
        };
        hub.drain();
        if outcome.is_ok() {
            match hub.save().await {
                0 => {}
                saved => log::info!("{saved} sessions saved for a later start"),
            }
        }
        hub.end_all(End::Draining);
        let over = async {
            while connections.count() > 0 {
                sleep(Duration::from_millis(10)).await;
            }
        };
        // Whoever does not say goodbye in time is cut off with the runtime.
        let _ = timeout(FAREWELL, over).await;
        accept.abort();
        if let Some(forget) = forget {
            forget.abort();
        }
        outcome
    }
}

/// Requests to stop: the first drains, the second ends at once.
pub trait Stop: Send {
    /// Resolves at the next request.
    fn requested(&mut self) -> impl Future<Output = ()> + Send;
}

/// SIGINT and SIGTERM, or Ctrl-C.
pub struct Signals {
    #[cfg(unix)]
    interrupt: tokio::signal::unix::Signal,
    #[cfg(unix)]
    terminate: tokio::signal::unix::Signal,
}

impl Signals {
    /// Listens from now on.
    ///
    /// # Errors
    /// [`ServeError::Runtime`].
    #[cfg(unix)]
    pub fn listen() -> Result<Self, ServeError> {
        use tokio::signal::unix::{SignalKind, signal};
        Ok(Self {
            interrupt: signal(SignalKind::interrupt()).map_err(ServeError::Runtime)?,
            terminate: signal(SignalKind::terminate()).map_err(ServeError::Runtime)?,
        })
    }

    /// Listens from now on.
    ///
    /// # Errors
    /// None on this platform.
    #[cfg(not(unix))]
    pub fn listen() -> Result<Self, ServeError> {
        Ok(Self {})
    }
}

impl Stop for Signals {
    #[cfg(unix)]
    async fn requested(&mut self) {
        tokio::select! {
            _ = self.interrupt.recv() => {}
            _ = self.terminate.recv() => {}
        }
    }

    #[cfg(not(unix))]
    async fn requested(&mut self) {
        if tokio::signal::ctrl_c().await.is_err() {
            std::future::pending::<()>().await;
        }
    }
}

/// For programs that embed the daemon: every message is a request, a closed channel is none.
impl Stop for tokio::sync::mpsc::Receiver<()> {
    async fn requested(&mut self) {
        if self.recv().await.is_none() {
            std::future::pending::<()>().await;
        }
    }
}

async fn drain_hub(
    hub: &Hub,
    config: &ServeConfig,
    draining: &watch::Sender<Option<Duration>>,
    stop: &mut impl Stop,
) -> Result<(), ServeError> {
    hub.drain();
    draining.send_replace(Some(config.drain));
    let running = |hub: &Hub| {
        let slots = hub.slots();
        slots.used - slots.parked
    };
    if running(hub) > 0 {
        log::warn!(
            "shutting down; {} sessions have {} s to end",
            running(hub),
            config.drain.as_secs()
        );
    }
    let start = Instant::now();
    while running(hub) > 0 && start.elapsed() < config.drain {
        tokio::select! {
            () = sleep(Duration::from_millis(20)) => {}
            () = stop.requested() => break,
            reason = hub.failure() => return Err(ServeError::Worker(reason)),
        }
    }
    Ok(())
}

fn listen(address: SocketAddr) -> std::io::Result<StdListener> {
    let socket = Socket::new(Domain::for_address(address), Type::STREAM, Some(Protocol::TCP))?;
    // On Windows the option would let others take the port.
    #[cfg(unix)]
    socket.set_reuse_address(true)?;
    // Accepted connections inherit it. What a slow reader leaves in the system's buffers is time
    // that passes before it is noticed.
    socket.set_send_buffer_size(SEND_BUFFER_BYTES)?;
    socket.bind(&address.into())?;
    socket.listen(BACKLOG)?;
    socket.set_nonblocking(true)?;
    Ok(socket.into())
}

fn prepare(dir: &Path) -> Result<(), ServeError> {
    let bad = |error: std::io::Error| ServeError::File {
        path: dir.into(),
        reason: format!("cannot keep sessions here: {error}"),
    };
    let mut builder = std::fs::DirBuilder::new();
    builder.recursive(true);
    #[cfg(unix)]
    std::os::unix::fs::DirBuilderExt::mode(&mut builder, 0o700);
    builder.create(dir).and_then(|()| std::fs::read_dir(dir)).map(drop).map_err(bad)
}

/// Gives the callers of before the restart their time to come back, and forgets the others.
async fn forget_unclaimed(dir: PathBuf, grace: Duration) {
    let ready = SystemTime::now();
    sleep(grace).await;
    let swept = tokio::task::spawn_blocking(move || tokens::sweep(&dir, ready)).await;
    if let Ok(Err(error)) = swept {
        log::warn!("saved sessions cannot be removed: {error}");
    }
}

fn origins(config: &ServeConfig) -> Origins {
    Origins { allowed: config.allow_origins.clone(), loopback_only: config.host.is_loopback() }
}

pub(crate) struct Connections {
    open: Mutex<HashMap<IpAddr, usize>>,
    most: usize,
    most_per_address: usize,
}

impl Connections {
    fn admit(self: &Arc<Self>, address: IpAddr) -> Option<Connection> {
        let mut open = self.open.lock().unwrap_or_else(PoisonError::into_inner);
        if open.values().sum::<usize>() >= self.most {
            return None;
        }
        let count = open.entry(address).or_default();
        if *count >= self.most_per_address {
            return None;
        }
        *count += 1;
        Some(Connection { connections: Arc::clone(self), address })
    }

    pub(crate) fn count(&self) -> usize {
        self.open.lock().unwrap_or_else(PoisonError::into_inner).values().sum()
    }
}

/// One open connection, counted until dropped.
pub(crate) struct Connection {
    connections: Arc<Connections>,
    address: IpAddr,
}

impl Drop for Connection {
    fn drop(&mut self) {
        let mut open = self.connections.open.lock().unwrap_or_else(PoisonError::into_inner);
        if let Some(count) = open.get_mut(&self.address) {
            *count -= 1;
            if *count == 0 {
                open.remove(&self.address);
            }
        }
    }
}

/// Goes with every request, so that a WebSocket keeps its connection counted.
pub(crate) type Counted = Arc<Connection>;

/// Takes connections and gives them to a router.
pub(crate) struct Accepting {
    router: Router,
    tls: Option<tokio_rustls::TlsAcceptor>,
    pub(crate) connections: Arc<Connections>,
}

impl Accepting {
    fn new(router: Router, tls: Option<tokio_rustls::TlsAcceptor>, config: &ServeConfig) -> Self {
        let connections = Arc::new(Connections {
            open: Mutex::default(),
            most: config.max_connections,
            most_per_address: config.max_connections_per_address,
        });
        Self { router, tls, connections }
    }

    pub(crate) async fn run(self, listener: TcpListener) {
        loop {
            let (stream, peer) = match listener.accept().await {
                Ok(accepted) => accepted,
                Err(error) => {
                    // Out of file descriptors: others must close first.
                    log::warn!("cannot accept a connection: {error}");
                    sleep(Duration::from_millis(100)).await;
                    continue;
                }
            };
            let Some(counted) = self.connections.admit(peer.ip()) else {
                log::debug!("too many connections");
                continue;
            };
            let counted = Arc::new(counted);
            let _ = stream.set_nodelay(true);
            let router = self.router.clone();
            match self.tls.clone() {
                None => drop(tokio::spawn(http(stream, router, counted))),
                Some(tls) => drop(tokio::spawn(https(stream, tls, router, counted))),
            }
        }
    }
}

async fn https(
    stream: TcpStream,
    tls: tokio_rustls::TlsAcceptor,
    router: Router,
    counted: Counted,
) {
    if let Ok(Ok(stream)) = timeout(HANDSHAKE, tls.accept(stream)).await {
        http(stream, router, counted).await;
    }
}

async fn http<S>(stream: S, router: Router, counted: Counted)
where
    S: AsyncRead + AsyncWrite + Unpin + Send + 'static,
{
    let service = TowerToHyperService::new(router.layer(axum::Extension(counted)));
    let connection = hyper::server::conn::http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(HANDSHAKE)
        .max_buf_size(MAX_HEADER_BYTES)
        .serve_connection(TokioIo::new(stream), service)
        .with_upgrades();
    if let Err(error) = connection.await {
        log::debug!("connection: {error}");
    }
}
