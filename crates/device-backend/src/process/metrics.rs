// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The counters over HTTP, for a Prometheus server on the same machine.

use super::clients;
use super::observer::Observer;
use http_body_util::Full;
use hyper::body::{Bytes, Incoming};
use hyper::header::{ALLOW, CONTENT_TYPE};
use hyper::server::conn::http1;
use hyper::service::service_fn;
use hyper::{Method, Request, Response, StatusCode};
use hyper_util::rt::{TokioIo, TokioTimer};
use std::convert::Infallible;
use std::io;
use std::net::{SocketAddr, TcpListener as StdListener};
use std::rc::Rc;
use std::time::Duration;
use tokio::net::{TcpListener, TcpStream};
use tracing::{debug, info};

/// A client says what it wants within this time, and is answered within as much.
const CLIENT_TIMEOUT: Duration = Duration::from_secs(10);

/// What the text format is called.
const FORMAT: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// Reads `--metrics-listen`: nobody but this machine gets to see the counters.
pub fn parse_address(text: &str) -> Result<SocketAddr, String> {
    let address: SocketAddr = text
        .parse()
        .map_err(|_| format!("{text} is not of the form 127.0.0.1:PORT"))?;
    if address.ip().is_loopback() {
        Ok(address)
    } else {
        Err(format!(
            "{address} is not a loopback address; use 127.0.0.1"
        ))
    }
}

/// Listens, and says where.
pub fn listen(address: SocketAddr) -> io::Result<StdListener> {
    let listener = StdListener::bind(address)?;
    info!(
        "the counters are at http://{}/metrics",
        listener.local_addr()?
    );
    Ok(listener)
}

/// Serves clients for ever. Runs inside a `LocalSet`.
pub async fn serve(listener: StdListener, observer: Rc<Observer>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = TcpListener::from_std(listener)?;
    let accept = async || listener.accept().await.map(|(client, _)| client);
    let talk = |client| talk(client, observer.clone());
    clients::serve("the metrics", accept, talk).await;
    Ok(())
}

/// Answers one client's only request.
async fn talk(client: TcpStream, observer: Rc<Observer>) {
    let service = service_fn(move |request| {
        let response = answer(&request, &observer);
        async move { Ok::<_, Infallible>(response) }
    });
    let connection = http1::Builder::new()
        .timer(TokioTimer::new())
        .header_read_timeout(CLIENT_TIMEOUT)
        .keep_alive(false)
        .serve_connection(TokioIo::new(client), service);
    match tokio::time::timeout(2 * CLIENT_TIMEOUT, connection).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => debug!(%error, "lost a client of the metrics"),
        Err(_) => debug!("a client of the metrics took too long"),
    }
}

fn answer(request: &Request<Incoming>, observer: &Observer) -> Response<Full<Bytes>> {
    let (status, header, text) = match (request.method(), request.uri().path()) {
        (&Method::GET, "/metrics") => (StatusCode::OK, (CONTENT_TYPE, FORMAT), observer.metrics()),
        (_, "/metrics") => (
            StatusCode::METHOD_NOT_ALLOWED,
            (ALLOW, "GET"),
            String::new(),
        ),
        _ => (
            StatusCode::NOT_FOUND,
            (CONTENT_TYPE, "text/plain"),
            "the counters are at /metrics\n".to_owned(),
        ),
    };
    let mut response = Response::new(Full::new(Bytes::from(text)));
    *response.status_mut() = status;
    let (name, value) = header;
    response
        .headers_mut()
        .insert(name, hyper::header::HeaderValue::from_static(value));
    response
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn only_addresses_of_this_machine_are_taken() {
        assert!(parse_address("127.0.0.1:9100").is_ok());
        assert!(parse_address("[::1]:0").is_ok());
        for (text, reason) in [
            ("0.0.0.0:9100", "loopback"),
            ("192.0.2.1:80", "loopback"),
            ("9100", "127.0.0.1:PORT"),
        ] {
            assert!(parse_address(text).unwrap_err().contains(reason), "{text}");
        }
    }
}
