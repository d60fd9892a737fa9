"""The data directory: one holder at a time, secrets of its own making.

Directory of mode 700, secrets of mode 600. The lock is flock(2) on `lock`, which the kernel drops with
the process, so that a killed gateway never leaves a stale one.
"""

from __future__ import annotations

import fcntl
import os
import secrets
from pathlib import Path
from types import TracebackType

from gateway.errors import GatewayError

__all__ = ["DataDir", "DataDirBusy"]


class DataDirBusy(GatewayError):
    """Another gateway holds the directory. `pid` is None if it didn't say."""

    def __init__(self, path: Path, pid: int | None) -> None:
        self.pid = pid
        who = f"the gateway with pid {pid}" if pid else "another gateway"
        super().__init__(f"{path} is in use by {who}: stop it or take another --data directory")


class DataDir:
    """Made at first use. Without a lock it reads secrets beside a running gateway (`gateway token`)."""

    def __init__(self, path: Path, lock_fd: int | None) -> None:
        self.path = path
        self._lock_fd = lock_fd

    @classmethod
    def open(cls, path: Path, *, lock: bool = True) -> DataDir:
        """Raises DataDirBusy, or GatewayError when the directory can't be made or written."""
        try:
            path.mkdir(mode=0o700, parents=True, exist_ok=True)
            path.chmod(0o700)
            lock_fd = cls._lock(path) if lock else None
        except OSError as error:
            raise GatewayError(f"can't use the data directory {path}: {error.strerror}") from error
        return cls(path, lock_fd)

    @staticmethod
    def _lock(path: Path) -> int:
        lock_fd = os.open(path / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            fcntl.flock(lock_fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            text = os.read(lock_fd, 32).decode("ascii", "replace").strip()
            os.close(lock_fd)
            raise DataDirBusy(path, int(text) if text.isdigit() else None) from None
        os.ftruncate(lock_fd, 0)
        os.pwrite(lock_fd, f"{os.getpid()}\n".encode(), 0)
        return lock_fd

    def __enter__(self) -> DataDir:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def close(self) -> None:
        """Let the next one in."""
        if self._lock_fd is not None:
            os.close(self._lock_fd)
            self._lock_fd = None

    def free_bytes(self) -> int:
        """Left on its file system for us."""
        there = os.statvfs(self.path)
        return there.f_bavail * there.f_frsize

    def secret(self, name: str, *, size: int = 32) -> bytes:
        """The random secret of that name, made when asked for the first time. Two processes agree on one."""
        file = self.path / name
        try:
            if not file.exists():
                self._make(file, size)
            mode = file.stat().st_mode & 0o777
            if mode & 0o077:
                raise GatewayError(
                    f"others may read {file} (mode {mode:o}): chmod 600 it, or delete it for a new one"
                )
            secret = bytes.fromhex(file.read_text(encoding="ascii").strip())
        except OSError as error:
            raise GatewayError(f"can't use the secret {file}: {error.strerror}") from error
        except ValueError as error:
            raise GatewayError(f"{file} holds no secret: delete it for a new one") from error
        if len(secret) < size:
            raise GatewayError(f"{file} holds too short a secret: delete it for a new one")
        return secret

    @staticmethod
    def _make(file: Path, size: int) -> None:
        draft = file.with_name(f".{file.name}.{os.getpid()}.{secrets.token_hex(4)}")
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            with os.fdopen(descriptor, "w", encoding="ascii") as stream:
                stream.write(secrets.token_hex(size) + "\n")
                stream.flush()
                os.fsync(stream.fileno())
            # link(2) fails when somebody else was first: then theirs counts.
            try:
                os.link(draft, file)
            except FileExistsError:
                return
        finally:
            draft.unlink()
