"""Backup beside a running gateway, and restore into an empty place.

A backup is a directory of mode 700: `data/` (the database by SQLite's online backup, the made secrets, photos), `config/` (all
configuration files, secrets included), and `manifest.json` with the SHA-256 of each file, the head of the audit trail and the
evidence files that exist, which are too big to copy each night and are copied with `evidence=True`. It is written beside
its place and renamed when it is whole: what has a manifest is complete. Blocking; for the console.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import sqlite3
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from gateway import __version__
from gateway.audit import verify_audit
from gateway.config import Files
from gateway.data_dir import DataDir
from gateway.errors import GatewayError

__all__ = ["Backup", "make_backup", "restore_backup"]

DATABASE = "gateway.db"
EVIDENCE = ("evidence", "recordings")
NOT_KEPT = (
    "broker",
    "exports",
    "lock",
    f"{DATABASE}.lock",
    f"{DATABASE}-wal",
    f"{DATABASE}-shm",
    f"{DATABASE}-journal",
)
"""The broker's directory is made anew at each start; what it has not handed over comes again from the boxes and the outbox."""
FORMAT = 1


@dataclass(frozen=True, slots=True, kw_only=True)
class Backup:
    """What was written. audit_head: anchor for `gateway audit verify --anchor`."""

    path: Path
    files: int
    size: int
    audit_head: str
    evidence_files: int
    evidence_copied: bool


def make_backup(data: Path, files: Files, target: Path, *, now_ms: int, evidence: bool = False) -> Backup:
    """Everything that is needed to go on elsewhere, into `target`, which must not exist. Raises GatewayError."""
    if not (data / DATABASE).is_file():
        raise GatewayError(f"no database {data / DATABASE}: is --data right?")
    if target.exists():
        raise GatewayError(f"{target} exists: name a new directory for each backup")
    draft = target.with_name(f".{target.name}.part")
    try:
        shutil.rmtree(draft, ignore_errors=True)
        _folder(draft)
        _copy_database(data / DATABASE, draft / "data" / DATABASE)
        head = _audit_head(draft / "data" / DATABASE)
        for source, name in _data_files(data):
            _copy(source, draft / "data" / name)
        for source, name in _config_files(files):
            _copy(source, draft / "config" / name)
        kept = [(source, name) for top in EVIDENCE for source, name in _tree(data / top, Path(top))]
        if evidence:
            for source, name in kept:
                _copy(source, draft / "data" / name)
        manifest = {
            "format": FORMAT,
            "version": __version__,
            "made_at": now_ms,
            "audit_head": head,
            "evidence_copied": evidence,
            "evidence": [_described(source, name) for source, name in kept],
            "files": [_described(source, name) for source, name in _tree(draft, Path())],
        }
        _write(draft / "manifest.json", json.dumps(manifest, ensure_ascii=False, indent=1).encode())
        _sync_tree(draft)
        draft.rename(target)
    except (OSError, sqlite3.Error) as error:
        shutil.rmtree(draft, ignore_errors=True)
        raise GatewayError(f"no backup was made: {_said(error)}") from error
    entries = manifest["files"]
    assert isinstance(entries, list)  # noqa: S101 - for the type checker
    return Backup(
        path=target,
        files=len(entries),
        size=sum(int(entry["size"]) for entry in entries),
        audit_head=head,
        evidence_files=len(kept),
        evidence_copied=evidence,
    )


def restore_backup(source: Path, data: Path, config: Path) -> Backup:
    """Puts a backup's files into `data` and `config`, which must be empty or not exist. Every file is checked before the
    first is written. Raises GatewayError."""
    manifest = _manifest(source)
    for folder in (data, config):
        if folder.exists() and any(folder.iterdir()):
            raise GatewayError(
                f"{folder} is not empty: restore into a new directory, then move it where it belongs"
            )
    try:
        for entry in manifest["files"]:
            path = source / _inside(entry["path"])
            if not path.is_file() or _digest(path) != entry["sha256"]:
                raise GatewayError(f"{path} is damaged or missing: take another backup")
        problem = _integrity(source / "data" / DATABASE)
        if problem:
            raise GatewayError(f"the database of {source} is damaged ({problem}): take another backup")
        for folder in (data, config):
            _folder(folder)
        with DataDir.open(data):  # nobody starts on it while it is half there
            for entry in manifest["files"]:
                top, *rest = _inside(entry["path"]).parts
                _copy(source / entry["path"], (data if top == "data" else config).joinpath(*rest))
            _sync_tree(data)
            _sync_tree(config)
    except (OSError, sqlite3.Error) as error:
        raise GatewayError(f"nothing is restored that can be used: {_said(error)}") from error
    return Backup(
        path=source,
        files=len(manifest["files"]),
        size=sum(entry["size"] for entry in manifest["files"]),
        audit_head=manifest["audit_head"],
        evidence_files=len(manifest["evidence"]),
        evidence_copied=manifest["evidence_copied"],
    )


def _manifest(source: Path) -> dict[str, Any]:
    try:
        manifest: dict[str, Any] = json.loads((source / "manifest.json").read_bytes())
        if manifest["format"] != FORMAT:
            raise GatewayError(
                f"{source} is of format {manifest['format']}: restore it with gateway {manifest['version']}"
            )
        for entry in (*manifest["files"], *manifest["evidence"]):
            if not isinstance(entry["path"], str) or not isinstance(entry["size"], int):
                raise TypeError("files")
    except OSError as error:
        raise GatewayError(f"{source} is no backup: {_said(error)}") from error
    except (ValueError, KeyError, TypeError):
        raise GatewayError(f"{source} is no backup: its manifest.json can't be read") from None
    return manifest


def _inside(name: str) -> Path:
    """A path of a manifest, which somebody may have written who wants files elsewhere."""
    path = Path(name)
    if path.is_absolute() or ".." in path.parts or path.parts[:1] not in (("data",), ("config",)):
        raise GatewayError(f"the backup names a file outside of itself: {name}")
    return path


def _copy_database(source: Path, target: Path) -> None:
    """One step of SQLite's backup: a snapshot, while the gateway goes on writing its log."""
    _folder(target.parent)
    _write(target, b"")
    with (
        contextlib.closing(sqlite3.connect(f"file:{source}?mode=ro", uri=True)) as live,
        contextlib.closing(sqlite3.connect(target)) as copy,
    ):
        live.backup(copy)
        copy.execute("PRAGMA journal_mode = DELETE")  # one file, no log beside it
    if problem := _integrity(target):
        raise GatewayError(f"the database {source} is damaged: {problem}")


def _integrity(database: Path) -> str:
    """Empty when sound."""
    with contextlib.closing(sqlite3.connect(f"file:{database}?mode=ro", uri=True)) as connection:
        try:
            found = connection.execute("PRAGMA integrity_check(1)").fetchone()
        except sqlite3.DatabaseError as error:
            return str(error)
    return "" if found == ("ok",) else str(found[0])


def _audit_head(database: Path) -> str:
    report = verify_audit(database)
    if report.broken_at is not None:
        raise GatewayError(f"the audit trail is broken at entry {report.broken_at}: {report.reason}")
    return f"{report.head[0]}:{report.head[1]}"


def _data_files(data: Path) -> Iterator[tuple[Path, Path]]:
    for path in sorted(data.iterdir()):
        if (
            path.name == DATABASE
            or path.name in NOT_KEPT
            or path.name in EVIDENCE
            or path.name.startswith(".")
        ):
            continue
        yield from _tree(path, Path(path.name)) if path.is_dir() else [(path, Path(path.name))]


def _config_files(files: Files) -> Iterator[tuple[Path, Path]]:
    """Under the names by which `gateway serve --cameras config/cameras.yaml` finds them."""
    for path, name in (
        (files.cameras, "cameras.yaml"),
        (files.config, "gateway.yaml"),
        (files.secrets, "secrets.yaml"),
    ):
        if path is not None and path.is_file():
            yield path, Path(name)
    if files.district is not None and files.district.is_dir():
        yield from _tree(files.district, Path("district"))


def _tree(folder: Path, name: Path) -> Iterator[tuple[Path, Path]]:
    if folder.is_dir():
        for path in sorted(folder.rglob("*")):
            if path.is_file():
                yield path, name / path.relative_to(folder)


def _copy(source: Path, target: Path) -> None:
    _folder(target.parent)
    with source.open("rb") as reader, open(target, "xb", opener=_private) as writer:
        shutil.copyfileobj(reader, writer, 1 << 20)


def _folder(path: Path) -> None:
    """With its parents, all of mode 700: `mkdir(parents=True)` gives that to the last one only."""
    if not path.is_dir():
        _folder(path.parent)
        path.mkdir(mode=0o700)


def _write(path: Path, content: bytes) -> None:
    with open(path, "xb", opener=_private) as file:
        file.write(content)


def _private(path: str, flags: int) -> int:
    return os.open(path, flags, 0o600)


def _described(path: Path, name: Path) -> dict[str, Any]:
    return {"path": name.as_posix(), "size": path.stat().st_size, "sha256": _digest(path)}


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _sync_tree(folder: Path) -> None:
    """To the disk, files and names."""
    for path in (*folder.rglob("*"), folder):
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _said(error: OSError | sqlite3.Error) -> str:
    if isinstance(error, OSError):
        return f"{error.filename}: {error.strerror}"
    return str(error)
