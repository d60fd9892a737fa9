"""A district that was read without a mistake, kept so that the next start needn't read it again.

Reading 16,000 households with the line of each is eight seconds of CPU during which no press is taken; what was read is two
megabytes. It counts only for exactly these files and exactly this reader (SHA-256 of both); anything else is read anew. The
cache is data (MessagePack into the district's own types), never code, and as private as the database beside it.
"""

from __future__ import annotations

import contextlib
import hashlib
import logging
import os
from pathlib import Path

import msgspec

from gateway import district as reader
from gateway import geo, yaml_check
from gateway.district import Area, Box, District, Gridworker, Household, User, Volunteer
from gateway.geo import Position
from gateway.yaml_check import Mistake

__all__ = ["read_district"]

logger = logging.getLogger(__name__)

_READERS = (reader, geo, yaml_check)


class _Kept(msgspec.Struct, frozen=True, kw_only=True):
    """digest: of the files and of what read them."""

    digest: bytes
    code: str
    name: str
    center: Position | None
    areas: list[Area]
    gridworkers: list[Gridworker]
    volunteers: list[Volunteer]
    households: list[Household]
    boxes: list[Box]
    users: list[User]

    def district(self) -> District:
        parts = {name: getattr(self, name) for name in self.__struct_fields__ if name != "digest"}
        return District.of(**parts)


def read_district(directory: Path, cache: Path | None) -> tuple[District, list[Mistake]]:
    """As District.read(). cache: the file that it is kept in, None for none."""
    if cache is None:
        return District.read(directory)
    digest = _digest(directory)
    if digest is not None and (kept := _load(cache, digest)) is not None:
        return kept, []
    district, mistakes = District.read(directory)
    if not mistakes and digest is not None and digest == _digest(directory):  # nobody wrote meanwhile
        _keep(cache, digest, district)
    return district, mistakes


def _digest(directory: Path) -> bytes | None:
    """None: what can't be read is the reader's to complain about."""
    whole = hashlib.sha256()
    try:
        files = sorted(path for path in directory.iterdir() if path.suffix in (".yaml", ".geojson"))
        files += [Path(str(module.__file__)) for module in _READERS]
        for path in files:
            data = path.read_bytes()
            whole.update(f"{path.name}\0{len(data)}\0".encode())
            whole.update(data)
    except OSError:
        return None
    return whole.digest()


def _load(cache: Path, digest: bytes) -> District | None:
    try:
        kept = msgspec.msgpack.decode(cache.read_bytes(), type=_Kept)
        return kept.district() if kept.digest == digest else None
    except FileNotFoundError:
        return None
    except (OSError, msgspec.MsgspecError, ValueError) as error:
        logger.warning("%s is of no use and made anew: %s", cache, error)
        return None


def _keep(cache: Path, digest: bytes, district: District) -> None:
    """Whole or not at all. Without it the next start takes longer, which is no reason to fail this one."""
    kept = _Kept(
        digest=digest,
        code=district.code,
        name=district.name,
        center=district.center,
        areas=list(district.areas.values()),
        gridworkers=list(district.gridworkers.values()),
        volunteers=list(district.volunteers.values()),
        households=list(district.households.values()),
        boxes=list(district.boxes.values()),
        users=list(district.users.values()),
    )
    draft = cache.with_name(f".{cache.name}.{os.getpid()}")
    try:
        with contextlib.suppress(FileExistsError):
            cache.parent.mkdir(mode=0o700, parents=True)
        descriptor = os.open(draft, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(msgspec.msgpack.encode(kept))
        draft.replace(cache)
    except OSError as error:
        logger.warning("the district can't be kept in %s: %s", cache, error.strerror)
