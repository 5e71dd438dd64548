"""The writer's lock: one process at a time writes to a gallery, on a disk where that can be known."""

import contextlib
import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from reidserve.datasets import path_to_text
from reidserve.errors import GalleryError, GalleryLockedError
from reidserve.index.storage.folders import make_folder

LOCK = "writer.lock"

_REMOTE = frozenset(
    {"nfs", "nfs4", "cifs", "smb3", "smbfs", "ceph", "lustre", "gpfs", "beegfs", "afs", "ocfs2", "gfs2"}
    | {"fuse.sshfs", "fuse.glusterfs", "fuse.ceph", "fuse.s3fs", "fuse.gcsfuse", "fuse.rclone", "fuse.mergerfs"}
)
_MOUNTS = Path("/proc/self/mountinfo")


@contextmanager
def writer_lock(folder: Path) -> Iterator[None]:
    """Be the only writer of a gallery for as long as the block runs; a killed process gives the lock up.

    Raises:
        GalleryLockedError: another process holds it; the message names it.
        GalleryError: the folder lies on a network file system, or cannot be written.
    """
    try:
        make_folder(folder)
        kind = remote_file_system(folder)
        if kind is not None:
            raise GalleryError(
                f"{path_to_text(folder)} lies on a network file system ({kind}), where locks and SQLite's write-ahead "
                "log cannot be trusted: keep a gallery that is written to on a local disk"
            )
        file = (folder / LOCK).open("ab+", buffering=0)
    except OSError as error:
        raise GalleryError(f"{path_to_text(folder)} cannot be written: {error.strerror}") from error
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            file.seek(0)
            holder = file.read().decode(errors="replace").strip() or "another process"
            raise GalleryLockedError(f"{path_to_text(folder)} is being written to by {holder}") from error
        # Only told to the next one: on a full disk it goes unsaid. Without a buffer, which closing would write again.
        with contextlib.suppress(OSError):
            file.truncate(0)
            file.write(f"process {os.getpid()}\n".encode())
        yield


def remote_file_system(folder: Path, mounts: Path = _MOUNTS) -> str | None:
    """The kind of network file system that a folder lies on, None where it lies on none that is known."""
    device = folder.stat().st_dev
    wanted = f"{os.major(device)}:{os.minor(device)}"
    try:
        lines = mounts.read_text(errors="replace").splitlines()
    except OSError:  # no Linux, or no /proc
        return None
    for line in lines:
        fields, _, rest = line.partition(" - ")
        if fields.split()[2:3] == [wanted] and rest:
            kind = rest.split()[0]
            return kind if kind in _REMOTE else None
    return None
