"""Configuration that changes under a running gateway: files read anew, and cameras.yaml changed by API.

Both are the same step: all files are read and checked as at the start; on any mistake nothing changes; else the new world
is handed over as a whole. A change by API is an edit of cameras.yaml (`cameras_file`) that is written only after that
check, so that what runs and what a hand finds in the file are one. One step at a time.
"""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
import logging
import os
import stat
import tempfile
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

from gateway.cameras_file import Put, Remove, Update, edit_cameras
from gateway.config import CameraConfig, Configuration, Files, load_configuration
from gateway.errors import ConfigError, Conflict, Unavailable

__all__ = ["Changed", "Reloader", "write_whole"]

log = logging.getLogger(__name__)

Change = Put | Update | Remove


@dataclass(frozen=True, slots=True, kw_only=True)
class Changed:
    """What a reload did. Ids of cameras; `restart`: sections of gateway.yaml that differ and count from the next start."""

    added: tuple[str, ...]
    changed: tuple[str, ...]
    removed: tuple[str, ...]
    secrets: bool
    restart: tuple[str, ...]


class Reloader:
    """Holds what is in force. apply(new): hands it to all parts; must not fail."""

    def __init__(
        self, files: Files, running: Configuration, apply: Callable[[Configuration], Awaitable[None]]
    ) -> None:
        self._files = files
        self._started_with = running.settings
        self._running = running
        self._apply = apply
        self._one_at_a_time = asyncio.Lock()

    async def reload(self) -> Changed:
        """Read all files anew. Raises ConfigError with every mistake, and then nothing has changed."""
        async with self._one_at_a_time:
            return await self._swap(await asyncio.to_thread(load_configuration, self._files))

    async def change_cameras(
        self, changes: Sequence[Change], *, recorded: Callable[[Changed], Awaitable[None]]
    ) -> Changed:
        """All changes or none. recorded: puts on record what is about to happen, before it does.

        What was edited in the files by hand meanwhile comes into force with it. Raises ConfigError with every mistake,
        NotFound, Conflict, Unavailable (the file can't be written)."""
        path = self._files.cameras
        if path is None:
            raise Conflict("this gateway was started without a cameras file")
        async with self._one_at_a_time:
            before = await asyncio.to_thread(_read, path)
            data, new = await asyncio.to_thread(self._edited, before, changes)
            await recorded(_difference(self._running, new, self._started_with))
            await asyncio.to_thread(write_whole, path, data, expected=before)
            return await self._swap(new)

    def _edited(self, before: bytes, changes: Sequence[Change]) -> tuple[bytes, Configuration]:
        try:
            text = before.decode()
        except UnicodeDecodeError:
            raise ConfigError([f"{self._files.cameras}: is no UTF-8"]) from None
        data = edit_cameras(text, changes).encode()
        return data, load_configuration(self._files, cameras=data, only_from=self._dialled_by(changes))

    def _dialled_by(self, changes: Sequence[Change]) -> set[str]:
        """Ids of cameras that get a URL by these changes which they don't have already: what a hand has written is trusted."""
        known = {camera.id: {"main": camera.main, "sub": camera.sub} for camera in self._running.cameras}
        touched: set[str] = set()
        for change in changes:
            match change:
                case Put():
                    identifier, said = str(change.entry.get("id")), change.entry
                case Update():
                    identifier, said = change.id, change.values
                case Remove():
                    continue
            urls = known.get(identifier, {})
            if any(said.get(key) not in (None, urls.get(key)) for key in ("main", "sub")):
                touched.add(identifier)
        return touched

    async def _swap(self, new: Configuration) -> Changed:
        changed = _difference(self._running, new, self._started_with)
        self._running = dataclasses.replace(new, settings=self._started_with)
        await self._apply(self._running)
        log.info(
            "configuration reloaded: %d cameras added, %d changed, %d removed",
            len(changed.added),
            len(changed.changed),
            len(changed.removed),
        )
        if changed.restart:
            log.warning("gateway.yaml: changes of %s count from the next start", ", ".join(changed.restart))
        return changed


def _difference(old: Configuration, new: Configuration, settings: object) -> Changed:
    before: dict[str, CameraConfig] = {camera.id: camera for camera in old.cameras}
    after: dict[str, CameraConfig] = {camera.id: camera for camera in new.cameras}
    return Changed(
        added=tuple(one for one in after if one not in before),
        changed=tuple(one for one in after if one in before and after[one] != before[one]),
        removed=tuple(one for one in before if one not in after),
        secrets=old.secrets != new.secrets,
        restart=tuple(
            one.name
            for one in dataclasses.fields(new.settings)
            if getattr(new.settings, one.name) != getattr(settings, one.name)
        ),
    )


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return b""
    except OSError as error:
        raise Unavailable(f"{path} can't be read: {error.strerror}") from None


def write_whole(path: Path, data: bytes, *, expected: bytes) -> None:
    """Replace a file so that after a crash it is the old one or the new one, and both are whole. Blocks.

    expected: what it should still say. Raises Conflict when somebody else has written it meanwhile, Unavailable when it can't
    be written. The file a link points to is replaced, not the link; its mode is kept.
    """
    path = path.resolve()
    if _read(path) != expected:
        raise Conflict(f"{path.name} was just changed by somebody else; look again")
    try:
        descriptor, name = tempfile.mkstemp(prefix=f".{path.name}.", dir=path.parent)
        try:
            with os.fdopen(descriptor, "wb") as file:
                os.fchmod(file.fileno(), stat.S_IMODE(path.stat().st_mode) if path.exists() else 0o644)
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(name, path)
        except BaseException:
            with contextlib.suppress(FileNotFoundError):
                os.unlink(name)
            raise
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)
    except OSError as error:
        raise Unavailable(f"{path} can't be written: {error.strerror}", retry_after_s=60) from None
