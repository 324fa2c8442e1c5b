//! Who may call: keys, one-use tickets for browsers, and the origin of pages.
//!
//! The daemon keeps SHA-256 values of keys and tickets only, compares them in constant time, and
//! never logs either.

use std::collections::HashMap;
use std::sync::{Mutex, PoisonError};
use std::time::{Duration, Instant};

use axum::http::header::{AUTHORIZATION, HOST, ORIGIN, SEC_WEBSOCKET_PROTOCOL};
use axum::http::{HeaderMap, Uri};
use subtle::{Choice, ConstantTimeEq};

use crate::tokens::{Token, TokenHash, random_text};

/// How long a ticket is good for.
pub(crate) const TICKET_LIFE: Duration = Duration::from_secs(60);
/// Tickets that may be out at the same time.
const MAX_TICKETS: usize = 4096;
/// Bytes of JSON that all tickets together may promise.
const MAX_PROMISED_BYTES: usize = 16 << 20;
/// The shortest key, in bytes: what can be guessed protects nothing.
pub(crate) const MIN_KEY_BYTES: usize = 16;

/// Headers that carry a key as they are.
const KEY_HEADERS: [&str; 3] = ["kyutai-api-key", "api-key", "x-api-key"];
/// Sub-protocols that carry a key or a ticket behind the dot.
const KEY_PROTOCOL: &str = "openai-insecure-api-key.";
/// Offered beside the protocol's own name by the web page.
const TICKET_PROTOCOL: &str = "ticket.";
/// Begins a ticket that stands where clients of OpenAI put an ephemeral key.
pub(crate) const EPHEMERAL_KEY: &str = "ek_";
/// Parameters that carry a key, for clients that know nothing better.
const KEY_PARAMETERS: [&str; 3] = ["auth_id", "worker_auth_id", "api_key"];

/// Keys and tickets.
#[derive(Default)]
pub(crate) struct Auth {
    keys: Vec<TokenHash>,
    query_keys: bool,
    tickets: Mutex<HashMap<TokenHash, Ticket>>,
}

#[derive(Debug, Clone, PartialEq)]
struct Ticket {
    until: Instant,
    promise: Option<Promise>,
}

/// What a session is to be set to that comes with a ticket: an object of its protocol, as text,
/// which takes less than its tree.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct Promise(pub(crate) String);

/// A request that may come in, with the ticket that it used up, if it came with one.
#[derive(Debug, PartialEq)]
pub(crate) struct Admission {
    pub(crate) ticket: Option<UsedTicket>,
}

/// A ticket that cannot be used any more.
#[derive(Debug, Clone, PartialEq)]
pub(crate) struct UsedTicket {
    hash: TokenHash,
    ticket: Ticket,
}

impl UsedTicket {
    /// What it promised.
    pub(crate) fn promise(&self) -> Option<&Promise> {
        self.ticket.promise.as_ref()
    }
}

impl Auth {
    /// Without keys, everybody may call. `query_keys` also accepts them in the address.
    pub(crate) fn new<'a>(keys: impl IntoIterator<Item = &'a str>, query_keys: bool) -> Self {
        let keys = keys.into_iter().map(Token::hash_of).collect();
        Self { keys, query_keys, tickets: Mutex::default() }
    }

    /// True when a key is asked for.
    pub(crate) fn is_required(&self) -> bool {
        !self.keys.is_empty()
    }

    /// Lets a request in, or not. A ticket is used up by it.
    pub(crate) fn admit(&self, headers: &HeaderMap, uri: &Uri, now: Instant) -> Option<Admission> {
        let ticket = self.use_ticket(headers, now);
        let admitted = !self.is_required() || ticket.is_some() || self.has_key(headers, uri);
        admitted.then_some(Admission { ticket })
    }

    /// Makes a ticket good again that opened nothing.
    pub(crate) fn give_back(&self, used: UsedTicket) {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.insert(used.hash, used.ticket);
    }

    /// True for a request with a key: what a ticket alone does not open.
    pub(crate) fn has_key(&self, headers: &HeaderMap, uri: &Uri) -> bool {
        let text = |name: &str| headers.get(name).and_then(|value| value.to_str().ok());
        let bearer = bearer(headers);
        let offered = protocols(headers).filter_map(|offer| offer.strip_prefix(KEY_PROTOCOL));
        let named = KEY_HEADERS.iter().filter_map(|name| text(name));
        let mut candidates: Vec<String> =
            bearer.into_iter().chain(named).chain(offered).map(str::to_owned).collect();
        if self.query_keys {
            let pairs = parameters(uri);
            let keys = pairs.into_iter().filter(|(name, _)| KEY_PARAMETERS.contains(&&**name));
            candidates.extend(keys.map(|(_, value)| value));
        }
        candidates.iter().any(|candidate| self.is_key(candidate))
    }

    fn is_key(&self, candidate: &str) -> bool {
        let hash = Token::hash_of(candidate);
        let found = self.keys.iter().fold(Choice::from(0), |found, key| found | key.ct_eq(&hash));
        found.into()
    }

    /// A new ticket; `None` when too many are out. Where no key is asked for, nobody asks for a
    /// ticket either: pages get a text, and nothing is kept.
    pub(crate) fn issue_ticket(&self, now: Instant) -> Option<String> {
        self.issue_ticket_for(TICKET_LIFE, None, now)
    }

    /// As [`Auth::issue_ticket`], with a life of its own and settings for the session that it
    /// opens, which are kept in any case.
    pub(crate) fn issue_ticket_for(
        &self,
        life: Duration,
        promise: Option<Promise>,
        now: Instant,
    ) -> Option<String> {
        if !self.is_required() && promise.is_none() {
            return Some(random_text());
        }
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        tickets.retain(|_, ticket| ticket.until > now);
        let promises = tickets.values().filter_map(|ticket| ticket.promise.as_ref());
        let bytes: usize = promises.chain(&promise).map(|promise| promise.0.len()).sum();
        if tickets.len() >= MAX_TICKETS || bytes > MAX_PROMISED_BYTES {
            return None;
        }
        let ticket = random_text();
        tickets.insert(Token::hash_of(&ticket), Ticket { until: now + life, promise });
        Some(ticket)
    }

    fn use_ticket(&self, headers: &HeaderMap, now: Instant) -> Option<UsedTicket> {
        let mut tickets = self.tickets.lock().unwrap_or_else(PoisonError::into_inner);
        let ephemeral = protocols(headers)
            .filter_map(|offer| offer.strip_prefix(KEY_PROTOCOL))
            .chain(bearer(headers))
            .filter_map(|key| key.strip_prefix(EPHEMERAL_KEY));
        protocols(headers)
            .filter_map(|offer| offer.strip_prefix(TICKET_PROTOCOL))
            .chain(ephemeral)
            .map(Token::hash_of)
            .find_map(|hash| {
                let ticket = tickets.remove(&hash).filter(|ticket| ticket.until > now)?;
                Some(UsedTicket { hash, ticket })
            })
    }
}

fn bearer(headers: &HeaderMap) -> Option<&str> {
    let (scheme, key) = headers.get(AUTHORIZATION)?.to_str().ok()?.split_once(' ')?;
    scheme.eq_ignore_ascii_case("bearer").then(|| key.trim())
}

/// Sub-protocols that a client offers.
pub(crate) fn protocols(headers: &HeaderMap) -> impl Iterator<Item = &str> {
    headers
        .get_all(SEC_WEBSOCKET_PROTOCOL)
        .into_iter()
        .filter_map(|value| value.to_str().ok())
        .flat_map(|offers| offers.split(','))
        .map(str::trim)
}

/// Decoded parameters of an address.
pub(crate) fn parameters(uri: &Uri) -> Vec<(String, String)> {
    axum::extract::Query::<Vec<(String, String)>>::try_from_uri(uri)
        .map(|q| q.0)
        .unwrap_or_default()
}

/// Which pages may open connections, and under which names the daemon is called.
#[derive(Debug, Clone, Default)]
pub(crate) struct Origins {
    /// Further origins, as `https://example.org`.
    pub(crate) allowed: Vec<String>,
    /// True when only this machine can connect: then any other name is an attack by DNS.
    pub(crate) loopback_only: bool,
}

impl Origins {
    /// True for a request from no page, from this daemon's own, or from an allowed one.
    pub(crate) fn allow(&self, headers: &HeaderMap) -> bool {
        let text = |name| headers.get(name).map(|value| value.to_str().unwrap_or_default());
        let host = text(HOST).unwrap_or_default();
        let listed = |host: &str| {
            self.allowed.iter().any(|origin| without_scheme(origin).eq_ignore_ascii_case(host))
        };
        if self.loopback_only && !is_loopback(host) && !listed(host) {
            return false;
        }
        text(ORIGIN).is_none_or(|origin| {
            let same = origin.contains("://") && without_scheme(origin).eq_ignore_ascii_case(host);
            same || self.allowed.iter().any(|allowed| allowed.eq_ignore_ascii_case(origin))
        })
    }
}

fn without_scheme(origin: &str) -> &str {
    origin.split_once("://").map_or(origin, |(_, host)| host)
}

/// True for names of this machine, with or without a port. A request without a name comes from no
/// browser.
fn is_loopback(host: &str) -> bool {
    let name = match host.rsplit_once(':') {
        Some((name, port)) if port.bytes().all(|b| b.is_ascii_digit()) => name,
        _ => host,
    };
    let name = name.trim_start_matches('[').trim_end_matches(']');
    name.is_empty()
        || name.eq_ignore_ascii_case("localhost")
        || name.parse::<std::net::IpAddr>().is_ok_and(|address| address.is_loopback())
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderValue;

    const KEY: &str = "0123456789abcdef";

    fn headers(pairs: &[(&'static str, &str)]) -> HeaderMap {
        let mut map = HeaderMap::new();
        for (name, value) in pairs {
            map.append(*name, HeaderValue::from_str(value).unwrap());
        }
        map
    }

    fn allows(auth: &Auth, pairs: &[(&'static str, &str)], uri: &str) -> bool {
        auth.admit(&headers(pairs), &uri.parse().unwrap(), Instant::now()).is_some()
    }

    #[test]
    fn a_key_is_taken_wherever_clients_put_it() {
        let auth = Auth::new([KEY, "another key of some length"], false);
        for (name, value) in [
            ("authorization", format!("Bearer {KEY}")),
            ("authorization", format!("bearer  {KEY}")),
            ("kyutai-api-key", KEY.into()),
            ("api-key", KEY.into()),
            ("x-api-key", KEY.into()),
            ("sec-websocket-protocol", format!("realtime, openai-insecure-api-key.{KEY}")),
        ] {
            assert!(allows(&auth, &[(name, &value)], "/"), "{name}: {value}");
        }
        for (name, value) in [
            ("authorization", KEY.into()),
            ("authorization", format!("Basic {KEY}")),
            ("authorization", "Bearer ".into()),
            ("api-key", format!("{KEY}x")),
            ("api-key", String::new()),
        ] {
            assert!(!allows(&auth, &[(name, &value)], "/"), "{name}: {value}");
        }
        assert!(allows(&Auth::default(), &[], "/"));
    }

    #[test]
    fn keys_in_the_address_must_be_wanted() {
        let uri = format!("/api/chat?auth_id={KEY}");
        assert!(!allows(&Auth::new([KEY], false), &[], &uri));
        assert!(allows(&Auth::new([KEY], true), &[], &uri));
    }

    #[test]
    fn a_ticket_opens_once_and_not_for_long() {
        let auth = Auth::new([KEY], false);
        let now = Instant::now();
        let uri = "/".parse().unwrap();
        let with = |ticket: &str| {
            headers(&[("sec-websocket-protocol", &format!("moshi, ticket.{ticket}"))])
        };
        let ticket = auth.issue_ticket(now).unwrap();
        assert!(!auth.has_key(&with(&ticket), &uri));
        let used = auth.admit(&with(&ticket), &uri, now).unwrap().ticket.unwrap();
        assert_eq!(used.promise(), None);
        assert_eq!(auth.admit(&with(&ticket), &uri, now), None);
        auth.give_back(used);
        assert!(auth.admit(&with(&ticket), &uri, now).is_some(), "it opened nothing");
        assert_eq!(auth.admit(&with(&ticket), &uri, now), None);
        let ticket = auth.issue_ticket(now).unwrap();
        assert_eq!(auth.admit(&with(&ticket), &uri, now + TICKET_LIFE), None);
        for name in ["authorization", "sec-websocket-protocol"] {
            let ticket = auth.issue_ticket_for(Duration::from_secs(10), None, now).unwrap();
            let value = match name {
                "authorization" => format!("Bearer ek_{ticket}"),
                _ => format!("realtime, openai-insecure-api-key.ek_{ticket}"),
            };
            let with = headers(&[(name, &value)]);
            assert!(!auth.has_key(&with, &uri));
            assert!(auth.admit(&with, &uri, now + Duration::from_secs(9)).is_some(), "{name}");
            assert!(auth.admit(&with, &uri, now).is_none(), "{name}");
        }
        for _ in 0..MAX_TICKETS {
            auth.issue_ticket(now).unwrap();
        }
        assert!(auth.issue_ticket(now).is_none());
        assert!(auth.issue_ticket(now + TICKET_LIFE).is_some());
    }

    #[test]
    fn tickets_without_keys_never_run_out() {
        let auth = Auth::default();
        let now = Instant::now();
        let tickets: Vec<String> =
            (0..=MAX_TICKETS).map(|_| auth.issue_ticket(now).unwrap()).collect();
        assert_ne!(tickets[0], tickets[1]);
        let offer = format!("moshi, ticket.{}", tickets[0]);
        assert!(allows(&auth, &[("sec-websocket-protocol", &offer)], "/"));
        assert!(auth.tickets.lock().unwrap().is_empty());
    }

    #[test]
    fn a_ticket_brings_its_promise_once_and_promises_are_bounded() {
        let now = Instant::now();
        let uri = "/".parse().unwrap();
        let life = Duration::from_secs(10);
        for auth in [Auth::new([KEY], false), Auth::default()] {
            let promise = Promise("x".repeat(1 << 20));
            let issue = |promise| auth.issue_ticket_for(life, promise, now);
            let tickets: Vec<String> =
                std::iter::from_fn(|| issue(Some(promise.clone()))).take(100).collect();
            assert_eq!(tickets.len(), 16, "of a megabyte each");
            assert!(issue(None).is_some());
            let with = headers(&[("authorization", &format!("Bearer ek_{}", tickets[3]))]);
            let used = auth.admit(&with, &uri, now).unwrap().ticket.unwrap();
            assert_eq!(used.promise(), Some(&promise));
            let again = auth.admit(&with, &uri, now);
            assert!(again.is_none_or(|admission| admission.ticket.is_none()));
            assert!(issue(Some(promise)).is_some(), "used ones make room");
        }
    }

    #[test]
    fn an_expired_ticket_does_not_hide_a_good_one() {
        let auth = Auth::new([KEY], false);
        let now = Instant::now();
        let old = auth.issue_ticket(now).unwrap();
        let new = auth.issue_ticket(now + TICKET_LIFE / 2).unwrap();
        let offers = format!("moshi, ticket.{old}, ticket.{new}");
        let with = headers(&[("sec-websocket-protocol", &offers)]);
        assert!(auth.admit(&with, &"/".parse().unwrap(), now + TICKET_LIFE).is_some());
    }

    #[test]
    fn pages_of_other_hosts_stay_out() {
        let local = Origins { loopback_only: true, ..Origins::default() };
        let open = Origins { allowed: vec!["https://app.example".into()], ..Origins::default() };
        let ask = |origins: &Origins, host: &str, origin: Option<&str>| {
            let mut pairs = vec![("host", host)];
            pairs.extend(origin.map(|origin| ("origin", origin)));
            origins.allow(&headers(&pairs))
        };
        for host in ["localhost:8998", "127.0.0.1:8998", "[::1]:8998", "localhost"] {
            assert!(ask(&local, host, None), "{host}");
            assert!(ask(&local, host, Some(&format!("http://{host}"))), "{host}");
            assert!(!ask(&local, host, Some("https://evil.example")), "{host}");
            assert!(!ask(&local, host, Some("null")), "{host}");
        }
        assert!(!ask(&local, "evil.example", Some("http://evil.example")));
        assert!(!ask(&local, "evil.example:8998", None));
        assert!(ask(&open, "host.example", Some("https://host.example")));
        assert!(ask(&open, "host.example", Some("https://app.example")));
        assert!(!ask(&open, "host.example", Some("https://other.example")));
    }
}
