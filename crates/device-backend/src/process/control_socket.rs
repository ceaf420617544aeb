// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The control socket: what is asked there, line by line. `docs/reference/control-socket.md`.

use super::clients;
use super::observer::Observer;
use cdm_control_protocol::{Ask, LINE_BYTES_MAX, Response};
use std::io;
use std::os::unix::net::UnixListener as StdListener;
use std::rc::Rc;
use std::time::Duration;
use tokio::io::{AsyncBufReadExt, AsyncReadExt, AsyncWriteExt, BufReader};
use tokio::net::{UnixListener, UnixStream};
use tracing::debug;

/// A client that does not read its answer is let go.
const ANSWER_TIMEOUT: Duration = Duration::from_secs(10);

/// Serves clients for ever. Runs inside a `LocalSet`.
pub async fn serve(listener: StdListener, observer: Rc<Observer>) -> io::Result<()> {
    listener.set_nonblocking(true)?;
    let listener = UnixListener::from_std(listener)?;
    let accept = async || listener.accept().await.map(|(client, _)| client);
    let talk = |client| {
        let observer = observer.clone();
        async move {
            if let Err(error) = talk(client, &observer).await {
                debug!(%error, "lost a client of the control socket");
            }
        }
    };
    clients::serve("the control socket", accept, talk).await;
    Ok(())
}

/// Answers one client until it hangs up, or says a line that is too long.
async fn talk(client: UnixStream, observer: &Observer) -> io::Result<()> {
    let (reader, mut writer) = client.into_split();
    let mut reader = BufReader::new(reader);
    let mut line = Vec::new();
    loop {
        line.clear();
        let mut rest = (&mut reader).take(LINE_BYTES_MAX as u64);
        if rest.read_until(b'\n', &mut line).await? == 0 {
            return Ok(());
        }
        let is_whole = line.ends_with(b"\n") || line.len() < LINE_BYTES_MAX;
        let response = if is_whole {
            answer(&line, observer)
        } else {
            Response::error(format!("a line has at most {LINE_BYTES_MAX} bytes"))
        };
        let mut text = serde_json::to_string(&response)?;
        text.push('\n');
        let written = writer.write_all(text.as_bytes());
        tokio::time::timeout(ANSWER_TIMEOUT, written).await??;
        if !is_whole {
            // Where the next line begins is not known.
            return Ok(());
        }
    }
}

/// What a line is answered with.
pub fn answer(line: &[u8], observer: &Observer) -> Response {
    let Ok(line) = std::str::from_utf8(line) else {
        return Response::error("a line is text in UTF-8");
    };
    match Ask::read(line.trim()) {
        Ok(ask) => observer.answer(ask),
        Err(error) => Response::error(error),
    }
}
