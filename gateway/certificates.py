"""The certificates that the settings name: whether they can be used, and when they end. Blocking; for the console.

A wrong certificate file is told before anything starts, in one line, and not as a traceback of OpenSSL.
"""

from __future__ import annotations

import datetime
import ssl
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from cryptography import x509

from gateway.settings import Settings

__all__ = ["Certificate", "certificate_problems", "certificates"]


@dataclass(frozen=True, slots=True, kw_only=True)
class Certificate:
    """One that we show to others or trust. setting: where it is named; ends: of the first to end in the file."""

    setting: str
    path: str
    ends: datetime.datetime


def certificate_problems(settings: Settings) -> list[str]:
    """One line for each file that can't be used, saying what to do. Empty when all is well."""
    return [problem for setting, path, key in _named(settings) if (problem := _problem(setting, path, key))]


def certificates(settings: Settings) -> list[Certificate]:
    """Those that can be read."""
    found = []
    for setting, path, key in _named(settings):
        if _problem(setting, path, key) is None:
            chain = x509.load_pem_x509_certificates(Path(path).read_bytes())
            ends = min(one.not_valid_after_utc for one in chain)
            found.append(Certificate(setting=setting, path=path, ends=ends))
    return found


def _named(settings: Settings) -> Iterator[tuple[str, str, str]]:
    """Setting, certificate file, key file (empty where only certificates are read)."""
    http, mqtt, ingest = settings.http, settings.mqtt, settings.ingest
    for setting, path, key in (
        ("http.tls_cert", http.tls_cert, http.tls_key),
        ("http.tls_ca", http.tls_ca, ""),
        ("mqtt.tls_cert", mqtt.tls_cert, mqtt.tls_key),
        ("mqtt.tls_ca", mqtt.tls_ca, ""),
        ("ingest.tls_ca", ingest.tls_ca, ""),
    ):
        if path:
            yield setting, path, key


def _problem(setting: str, path: str, key: str) -> str | None:
    try:
        if key:
            ssl.create_default_context(ssl.Purpose.CLIENT_AUTH).load_cert_chain(
                path, key, password=_no_password
            )
        x509.load_pem_x509_certificates(Path(path).read_bytes())
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            return f"{setting}: the key {key} does not belong to the certificate {path}"
        return f"{setting}: {path} and {key} are no PEM certificate and unencrypted key ({error.reason or error})"
    except ValueError:
        return f"{setting}: {path} holds no PEM certificate"
    except OSError as error:
        return f"{setting}: {error.filename or path} can't be read: {error.strerror}"
    return None


def _no_password() -> bytes:
    """Else OpenSSL would ask at the terminal, and a service would hang."""
    return b""
