"""The export: one ZIP with clips, timeline and audit excerpt, and a manifest of what each file's SHA-256 is.

    manifest.json   {version, subject, exported_at, by, reason, files: {name: {sha256, size}}, clips: [Clip]}
    timeline.json   what happened, as the gateway kept it
    audit.json      the lines of the audit trail about it, each with its place in the hash chain
    clips/...       the media, as it was recorded

`verify_bundle` needs nothing but the file. What it can't show is that nobody made the whole bundle anew: for that the
manifest's own SHA-256 stands in the audit trail of the gateway that exported it (`evidence.export`).
"""

from __future__ import annotations

import hashlib
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec

from gateway.audit import entry_digest
from gateway.errors import GatewayError

__all__ = ["BundleReport", "verify_bundle", "write_bundle"]

VERSION = 1
MANIFEST, TIMELINE, AUDIT = "manifest.json", "timeline.json", "audit.json"
_CHUNK = 1 << 20
_MAX_JSON = 256 << 20

Json = dict[str, Any]


@dataclass(frozen=True, slots=True, kw_only=True)
class BundleReport:
    """wrong: one line for each thing that isn't as the manifest says; empty if the bundle is sound."""

    manifest_sha256: str
    files: int
    clips: int
    audit_lines: int
    wrong: tuple[str, ...]


def write_bundle(
    target: Path,
    clips: Sequence[tuple[Json, Path]],
    *,
    head: Json,
    timeline: Json,
    audit: Sequence[Json],
) -> str:
    """Writes the ZIP and returns the manifest's SHA-256. Blocking.

    Raises GatewayError if a clip's file is no longer what was recorded: a bundle is sound or there is none.
    """
    files: dict[str, Json] = {}
    with zipfile.ZipFile(target, "w", zipfile.ZIP_STORED) as archive:
        for view, path in clips:
            name = f"clips/{view['id']}{path.suffix}"
            digest, size = hashlib.sha256(), 0
            try:
                with path.open("rb") as source, archive.open(name, "w", force_zip64=True) as sink:
                    while chunk := source.read(_CHUNK):
                        digest.update(chunk)
                        size += len(chunk)
                        sink.write(chunk)
            except FileNotFoundError:
                raise GatewayError(f"the file of clip {view['id']} is gone") from None
            if digest.hexdigest() != view["sha256"]:
                raise GatewayError(f"the file of clip {view['id']} was changed after it was recorded")
            files[name] = {"sha256": digest.hexdigest(), "size": size}
        for name, value in ((TIMELINE, timeline), (AUDIT, {"entries": audit})):
            data = _json(value)
            archive.writestr(name, data)
            files[name] = {"sha256": hashlib.sha256(data).hexdigest(), "size": len(data)}
        manifest = _json({"version": VERSION, **head, "files": files, "clips": [view for view, _ in clips]})
        archive.writestr(MANIFEST, manifest)
    return hashlib.sha256(manifest).hexdigest()


def verify_bundle(path: Path) -> BundleReport:
    """Checks a bundle offline. Raises GatewayError if it is none at all."""
    try:
        with zipfile.ZipFile(path) as archive:
            raw = _read(archive, MANIFEST)
            manifest = msgspec.json.decode(raw, type=_Manifest)
            wrong = _wrong_files(archive, manifest)
            lines = _wrong_lines(archive, wrong)
    except (zipfile.BadZipFile, KeyError, OSError, msgspec.MsgspecError, UnicodeDecodeError) as error:
        raise GatewayError(f"{path} is no evidence bundle: {error}") from None
    return BundleReport(
        manifest_sha256=hashlib.sha256(raw).hexdigest(),
        files=len(manifest.files),
        clips=len(manifest.clips),
        audit_lines=lines,
        wrong=tuple(wrong),
    )


class _File(msgspec.Struct):
    sha256: str
    size: int


class _Manifest(msgspec.Struct):
    version: int
    files: dict[str, _File]
    clips: list[dict[str, Any]]


class _Line(msgspec.Struct):
    id: int
    at: int
    who: str
    action: str
    subject: str
    detail: str
    previous: str
    hash: str


class _Lines(msgspec.Struct):
    entries: list[_Line]


def _wrong_files(archive: zipfile.ZipFile, manifest: _Manifest) -> list[str]:
    wrong = []
    if manifest.version != VERSION:
        wrong.append(f"{MANIFEST}: version {manifest.version} is not known to this program")
    names = archive.namelist()
    wrong += [f"{name}: is there twice" for name in sorted({one for one in names if names.count(one) > 1})]
    wrong += [
        f"{name}: not in the manifest" for name in names if name not in manifest.files and name != MANIFEST
    ]
    for name, listed in manifest.files.items():
        if name not in names:
            wrong.append(f"{name}: missing")
            continue
        digest, size = hashlib.sha256(), 0
        try:
            with archive.open(name) as file:
                while chunk := file.read(_CHUNK):
                    digest.update(chunk)
                    size += len(chunk)
        except (zipfile.BadZipFile, EOFError, NotImplementedError) as error:
            wrong.append(f"{name}: damaged ({error})")
            continue
        if (digest.hexdigest(), size) != (listed.sha256, listed.size):
            wrong.append(f"{name}: changed after it was exported")
    of_clips = {one.sha256 for name, one in manifest.files.items() if name.startswith("clips/")}
    wrong += [
        f"clip {clip.get('id')}: has no file" for clip in manifest.clips if clip.get("sha256") not in of_clips
    ]
    return wrong


def _wrong_lines(archive: zipfile.ZipFile, wrong: list[str]) -> int:
    """Each line of the excerpt hashes to what it says; neighbours are linked."""
    lines = msgspec.json.decode(_read(archive, AUDIT), type=_Lines).entries
    before: _Line | None = None
    for line in lines:
        try:
            previous = bytes.fromhex(line.previous)
        except ValueError:
            previous = b""
        digest = entry_digest(previous, line.id, line.at, line.who, line.action, line.subject, line.detail)
        if digest.hex() != line.hash:
            wrong.append(f"{AUDIT}: line {line.id} was changed")
        elif before is not None and before.id + 1 == line.id and before.hash != line.previous:
            wrong.append(f"{AUDIT}: line {line.id} does not follow line {before.id}")
        before = line
    return len(lines)


def _read(archive: zipfile.ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > _MAX_JSON:
        raise zipfile.BadZipFile(f"{name} is too large")
    return archive.read(name)


def _json(value: object) -> bytes:
    return msgspec.json.format(msgspec.json.encode(value), indent=1)
