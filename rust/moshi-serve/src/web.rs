//! The web page and its files, carried in the program.

use std::sync::Arc;

use axum::Router;
use axum::http::header::{CACHE_CONTROL, CONTENT_SECURITY_POLICY, CONTENT_TYPE};
use axum::response::IntoResponse;
use axum::routing::get;

use crate::routes::App;

/// The page loads nothing from other hosts and talks to its own only.
const POLICY: &str = "default-src 'none'; script-src 'self'; style-src 'self'; img-src 'self' \
                      data:; connect-src 'self'; worker-src 'self' blob:; media-src 'self' blob:; \
                      base-uri 'none'; form-action 'none'; frame-ancestors 'none'";

const HTML: &str = "text/html; charset=utf-8";
const STYLE: &str = "text/css; charset=utf-8";
const SCRIPT: &str = "text/javascript; charset=utf-8";

macro_rules! file {
    ($path:literal, $type:expr, $name:literal) => {
        ($path, $type, include_bytes!(concat!("../web/", $name)) as &[u8])
    };
}

const FILES: [(&str, &str, &[u8]); 8] = [
    file!("/", HTML, "index.html"),
    file!("/web/style.css", STYLE, "style.css"),
    file!("/web/app.js", SCRIPT, "app.js"),
    file!("/web/protocol.js", SCRIPT, "protocol.js"),
    file!("/web/scope.js", SCRIPT, "scope.js"),
    file!("/web/sound.js", SCRIPT, "sound.js"),
    file!("/web/capture-worklet.js", SCRIPT, "capture-worklet.js"),
    file!("/web/playback-worklet.js", SCRIPT, "playback-worklet.js"),
];

pub(crate) fn routes() -> Router<Arc<App>> {
    FILES.iter().fold(Router::new(), |router, &(path, media_type, bytes)| {
        let answer = move || async move {
            let headers = [
                (CONTENT_TYPE, media_type),
                (CACHE_CONTROL, "no-cache"),
                (CONTENT_SECURITY_POLICY, POLICY),
            ];
            (headers, bytes).into_response()
        };
        router.route(path, get(answer))
    })
}
