// SPDX-License-Identifier: Apache-2.0 OR MIT

//! The socket of `--socket-path`.

use nix::fcntl::{RenameFlags, renameat2};
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::AsRawFd;
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
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
///
/// The file appears at `path` only when connections are taken, so who waits for it to
/// exist can connect at once: it is made under another name in the same folder.
pub fn listen(path: &Path) -> Result<(Listener, SocketFile), PathSocketError> {
    let bind_error = |source| PathSocketError::Bind {
        path: path.to_owned(),
        source,
    };
    // Who connects uses the whole path, so its length matters, if not to us.
    SocketAddr::from_pathname(path).map_err(bind_error)?;
    let name = path
        .file_name()
        .ok_or_else(|| bind_error(ErrorKind::NotFound.into()))?;
    clear(path)?;
    let folder = match path.parent() {
        Some(parent) if !parent.as_os_str().is_empty() => parent,
        _ => Path::new("."),
    };
    let folder = File::open(folder).map_err(bind_error)?;
    let temporary = format!(".cdm-backend-{}", std::process::id());
    // By way of /proc, a folder's name of any length leaves room for ours.
    let bound = Path::new("/proc/self/fd")
        .join(folder.as_raw_fd().to_string())
        .join(&temporary);
    let listener = UnixListener::bind(&bound).map_err(bind_error)?;
    let published = fs::symlink_metadata(&bound).and_then(|metadata| {
        let flags = RenameFlags::RENAME_NOREPLACE;
        renameat2(&folder, temporary.as_str(), &folder, name, flags)?;
        Ok((metadata.dev(), metadata.ino()))
    });
    match published {
        Ok(identity) => {
            let path = path.to_owned();
            Ok((Listener::from(listener), SocketFile { path, identity }))
        }
        Err(error) => {
            let _ = fs::remove_file(&bound);
            if error.kind() == ErrorKind::AlreadyExists {
                // Somebody has started between our look and now.
                return Err(PathSocketError::InUse(path.to_owned()));
            }
            Err(bind_error(error))
        }
    }
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
