// SPDX-License-Identifier: Apache-2.0 OR MIT

//! Sockets with a path: that of `--socket-path`, and that of `--control`.

use nix::fcntl::{AtFlags, RenameFlags, renameat2};
use nix::sys::stat::fstatat;
use nix::unistd::{UnlinkatFlags, unlinkat};
use std::ffi::OsString;
use std::fs::{self, File};
use std::io::{self, ErrorKind};
use std::os::fd::{AsFd, AsRawFd, BorrowedFd};
use std::os::unix::fs::{FileTypeExt, MetadataExt};
use std::os::unix::net::{SocketAddr, UnixListener, UnixStream};
use std::path::{Path, PathBuf};

/// A socket file of ours, removed on drop.
#[must_use = "the socket file goes when this is dropped"]
pub struct SocketFile {
    /// Kept open: inside the sandbox there is no way to it.
    folder: File,
    name: OsString,
    /// Device and inode, to remove no other.
    identity: (u64, u64),
}

/// Where a socket is to be, and which option says so.
#[derive(Clone, Debug)]
pub struct Place {
    /// The option, for messages.
    pub option: &'static str,
    /// Its value.
    pub path: PathBuf,
}

/// Why there is no socket.
#[derive(Debug, thiserror::Error)]
pub enum PathSocketError {
    /// Somebody listens there.
    #[error("{} is in use: another process listens there; stop it or choose another {}", .0.path.display(), .0.option)]
    InUse(Place),
    /// There is something else.
    #[error("{} exists and is not a socket; remove it or choose another {}", .0.path.display(), .0.option)]
    NotASocket(Place),
    /// The kernel refuses.
    #[error("cannot listen at {}: {source}; {}", .place.path.display(), advice(.source))]
    Bind {
        /// Where.
        place: Place,
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
        _ => "choose another path",
    }
}

/// Listens at `path`. A socket file that nobody listens at any more is replaced.
///
/// The file appears at `path` only when connections are taken, so who waits for it to
/// exist can connect at once: it is made under another name in the same folder.
pub fn listen(place: &Place) -> Result<(UnixListener, SocketFile), PathSocketError> {
    let path = place.path.as_path();
    let bind_error = |source| bind_error(place, source);
    // Who connects uses the whole path, so its length matters, if not to us.
    SocketAddr::from_pathname(path).map_err(bind_error)?;
    let name = path
        .file_name()
        .ok_or_else(|| bind_error(ErrorKind::NotFound.into()))?;
    clear(place)?;
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
            let file = SocketFile {
                folder,
                name: name.to_owned(),
                identity,
            };
            Ok((listener, file))
        }
        Err(error) => {
            let _ = fs::remove_file(&bound);
            if error.kind() == ErrorKind::AlreadyExists {
                // Somebody has started between our look and now.
                return Err(PathSocketError::InUse(place.clone()));
            }
            Err(bind_error(error))
        }
    }
}

/// Makes way for a new socket, if what is there is a dead one.
fn clear(place: &Place) -> Result<(), PathSocketError> {
    let path = place.path.as_path();
    let bind_error = |source| bind_error(place, source);
    let metadata = match fs::symlink_metadata(path) {
        Err(error) if error.kind() == ErrorKind::NotFound => return Ok(()),
        other => other.map_err(bind_error)?,
    };
    if !metadata.file_type().is_socket() {
        return Err(PathSocketError::NotASocket(place.clone()));
    }
    match UnixStream::connect(path) {
        Err(error) if error.kind() == ErrorKind::ConnectionRefused => {
            tracing::info!(path = %path.display(), "replacing a socket that nobody listens at");
            fs::remove_file(path).map_err(bind_error)
        }
        // Connected, or refused for a reason that does not say that it is dead.
        _ => Err(PathSocketError::InUse(place.clone())),
    }
}

fn bind_error(place: &Place, source: io::Error) -> PathSocketError {
    let place = place.clone();
    PathSocketError::Bind { place, source }
}

impl SocketFile {
    /// The folder that it is in.
    pub fn folder(&self) -> BorrowedFd<'_> {
        self.folder.as_fd()
    }
}

impl Drop for SocketFile {
    fn drop(&mut self) {
        let name = self.name.as_os_str();
        let found = fstatat(&self.folder, name, AtFlags::AT_SYMLINK_NOFOLLOW);
        if found.is_ok_and(|found| (found.st_dev, found.st_ino) == self.identity) {
            let _ = unlinkat(&self.folder, name, UnlinkatFlags::NoRemoveDir);
        }
    }
}
