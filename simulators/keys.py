"""Random credentials of the simulated district (config/secrets.yaml), and the proofs that devices make with
them.

Formats: docs/contract.md section 2 (file, MQTT password) and section 4 (signature of a press).
"""

from __future__ import annotations

import hashlib
import hmac
import os
import secrets
from pathlib import Path
from typing import Any

import yaml

__all__ = ["Secrets", "add_missing", "cancel_signature", "load", "mqtt_password", "press_signature"]

Secrets = dict[str, dict[str, Any]]
_Loader: Any = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def mqtt_password(key: str, device_id: str) -> str:
    """`hex(HMAC-SHA256(key, "mqtt|" + id))`; `key` in hex."""
    return _hmac(key, f"mqtt|{device_id}")


def press_signature(
    key: str,
    *,
    sid: str,
    pid: str,
    seq: int,
    ts: int,
    kind: str,
    cam: str | None = None,
    silent: bool = False,
) -> str:
    """Signature of a press: over `press|sid|pid|seq|ts|kind|cam|silent`."""
    return _hmac(key, f"press|{sid}|{pid}|{seq}|{ts}|{kind}|{cam or ''}|{int(silent)}")


def cancel_signature(key: str, *, sid: str, pid: str, ts: int) -> str:
    """Signature of a cancel: over `cancel|sid|pid|ts`."""
    return _hmac(key, f"cancel|{sid}|{pid}|{ts}")


def _hmac(key: str, message: str) -> str:
    return hmac.new(bytes.fromhex(key), message.encode(), hashlib.sha256).hexdigest()


def load(path: Path) -> Secrets:
    """Reads the file; an absent one is empty."""
    if not path.exists():
        return {}
    loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader) or {}
    if not isinstance(loaded, dict):
        raise SystemExit(f"{path}: a mapping is expected")
    return {str(key): dict(value or {}) for key, value in loaded.items()}


def ids_of(district: Path) -> tuple[list[str], list[str], list[str]]:
    """Box, gridworker and user ids of a config/district folder."""

    def rows(name: str, key: str) -> list[str]:
        path = district / f"{name}.yaml"
        if not path.exists():
            return []
        loaded = yaml.load(path.read_text(encoding="utf-8"), Loader=_Loader)
        return [str(row[key]) for row in loaded[name]]

    return rows("boxes", "sid"), rows("gridworkers", "id"), rows("users", "sub")


def add_missing(path: Path, district: Path) -> int:
    """Gives everybody in the district who has none a random secret. Existing ones stay. Returns how many
    were added.

    The file is replaced as a whole, with mode 600 from its first byte.
    """
    found = load(path)
    boxes, workers, users = ids_of(district)
    added = 0

    def fill(section: str, wanted: list[str], make: Any) -> None:
        nonlocal added
        rows = found.setdefault(section, {})
        for name in wanted:
            if name not in rows:
                rows[name] = make()
                added += 1

    fill("credentials", ["farm"], lambda: {"username": "viewer", "password": secrets.token_urlsafe(12)})
    fill("boxes", boxes, lambda: secrets.token_hex(32))
    fill("workers", workers, lambda: secrets.token_hex(32))
    fill("users", users, lambda: secrets.token_urlsafe(9))
    if not added:
        return 0
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(path.name + ".new")
    temporary.unlink(missing_ok=True)
    with os.fdopen(
        os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "w", encoding="utf-8"
    ) as file:
        file.write("# Secrets of this installation. Never commit this file; keep its mode at 600.\n")
        dumper: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
        yaml.dump(found, file, Dumper=dumper, allow_unicode=True, sort_keys=False)
    temporary.replace(path)
    return added
