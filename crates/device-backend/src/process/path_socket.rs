// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The socket of `--socket-path`.

use std::fs;
use std::io::{self, ErrorKind};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{UnixListener, UnixStream};
use std::path::{Path, PathBuf};
use vhost::vhost_user::Listener;

/// A socket file of ours, removed on drop.
#[must_use = "the socket file goes when this is dropped"]
pub struct SocketFile {
    path: PathBuf,
    /// Device and inode, to remove no other.
    identity: (u64, u64),
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum PathSocketError {
    /// Somebody listens there.
    #[error("{} is in use: another process listens there; stop it or choose another --socket-path", .0.display())]
    InUse(PathBuf),
    /// There is something else.
    #[error("{} exists and is not a socket; remove it or choose another --socket-path", .0.display())]
    NotASocket(PathBuf),
    /// The kernel refuses.
    #[error("cannot listen at {}: {source}; {}", .path.display(), advice(.source))]
    Bind {
        /// Where.
        path: PathBuf,
        /// Why not.
        source: io::Error,
    },
}

fn advice(error: &io::Error) -> &'static str {
    match error.kind() {
        ErrorKind::NotFound => "make the folder first",
        ErrorKind::PermissionDenied => "choose a folder that you may write to",
        // std's own word for a path that sockaddr_un has no room for.
        ErrorKind::InvalidInput => "choose a path of at most 107 bytes",
        _ => "choose another --socket-path",
    }
}

/// Listens at `path`. A socket file that nobody listens at any more is replaced.
pub fn listen(path: &Path) -> Result<(Listener, SocketFile), PathSocketError> {
    let bind_error = |source| PathSocketError::Bind {
        path: path.to_owned(),
        source,
    };
    clear(path)?;
    let listener = UnixListener::bind(path).map_err(bind_error)?;
    let metadata = fs::symlink_metadata(path).map_err(bind_error)?;
    let file = SocketFile {
        path: path.to_owned(),
        identity: (metadata.dev(), metadata.ino()),
    };
    Ok((Listener::from(listener), file))
}

/// Makes way for a new socket, if what is there is a dead one.
fn clear(path: &Path) -> Result<(), PathSocketError> {
    let bind_error = |source| PathSocketError::Bind {
        path: path.to_owned(),
        source,
    };
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(bind_error)?,
    };
    if !metadata.file_type().is_socket() {
        return Err(PathSocketError::NotASocket(path.to_owned()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing a socket that nobody listens at");
            fs::remove_file(path).map_err(bind_error)
        }
        // Connected, or refused for a reason that does not say that it is dead.
        _ => Err(PathSocketError::InUse(path.to_owned())),
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let is_ours = fs::symlink_metadata(&self.path)
            .is_ok_and(|metadata| (metadata.dev(), metadata.ino()) == self.identity);
        if is_ours {
            let _ = fs::remove_file(&self.path);
        }
    }
}
