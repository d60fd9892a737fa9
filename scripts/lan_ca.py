"""A local certificate authority for `make demo LAN=1`: phones give a page no camera over plain HTTP.

    python scripts/lan_ca.py --out config/lan [--address 192.168.1.5 ...]

Writes ca.crt and ca.key once, server.crt and server.key anew when an address is missing or it is close to its end.
Prints how to trust the CA. The CA's key never leaves the folder (mode 600) and may sign nothing but servers.
"""

from __future__ import annotations

import argparse
import datetime
import ipaddress
import os
import socket
from pathlib import Path

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

CA_DAYS, SERVER_DAYS, RENEW_DAYS = 3650, 397, 30  # browsers refuse server certificates of over 398 days


def lan_addresses() -> list[str]:
    """Addresses of this machine that its neighbours could reach, loopback last."""
    found: list[str] = []
    for family, target in ((socket.AF_INET, "192.0.2.1"), (socket.AF_INET6, "2001:db8::1")):
        with socket.socket(family, socket.SOCK_DGRAM) as probe:
            try:
                probe.connect(
                    (target, 9)
                )  # sends nothing: asks the routing table which address would be used
                found.append(probe.getsockname()[0])
            except OSError:
                continue
    return [*dict.fromkeys(found), "127.0.0.1"]


def _write_private(path: Path, data: bytes) -> None:
    descriptor = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as file:
        file.write(data)


def _key_bytes(key: ec.EllipticCurvePrivateKey) -> bytes:
    return key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )


def _name(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def ensure_ca(folder: Path) -> tuple[x509.Certificate, ec.EllipticCurvePrivateKey]:
    """The CA of this folder, made if it is not there."""
    certificate_path, key_path = folder / "ca.crt", folder / "ca.key"
    if certificate_path.exists() and key_path.exists():
        key = serialization.load_pem_private_key(key_path.read_bytes(), None)
        assert isinstance(key, ec.EllipticCurvePrivateKey)
        return x509.load_pem_x509_certificate(certificate_path.read_bytes()), key
    key = ec.generate_private_key(ec.SECP256R1())
    now = datetime.datetime.now(datetime.UTC)
    name = _name(f"District gateway demo CA ({socket.gethostname()})")
    certificate = (
        x509.CertificateBuilder()
        .subject_name(name)
        .issuer_name(name)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=CA_DAYS))
        .add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        .add_extension(
            x509.KeyUsage(
                digital_signature=False,
                content_commitment=False,
                key_encipherment=False,
                data_encipherment=False,
                key_agreement=False,
                key_cert_sign=True,
                crl_sign=True,
                encipher_only=False,
                decipher_only=False,
            ),
            critical=True,
        )
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(key.public_key()), critical=False)
        .sign(key, hashes.SHA256())
    )
    _write_private(key_path, _key_bytes(key))
    certificate_path.write_bytes(certificate.public_bytes(serialization.Encoding.PEM))
    return certificate, key


def ensure_server(folder: Path, addresses: list[str]) -> None:
    """A server certificate for these addresses and `localhost`, signed by the folder's CA."""
    ca, ca_key = ensure_ca(folder)
    certificate_path, key_path = folder / "server.crt", folder / "server.key"
    wanted = {ipaddress.ip_address(address) for address in addresses}
    now = datetime.datetime.now(datetime.UTC)
    if certificate_path.exists() and key_path.exists():
        old = x509.load_pem_x509_certificate(certificate_path.read_bytes())
        names = old.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
        covers = wanted <= set(names.get_values_for_type(x509.IPAddress))
        if (
            covers
            and old.issuer == ca.subject
            and old.not_valid_after_utc - now > datetime.timedelta(days=RENEW_DAYS)
        ):
            return
    key = ec.generate_private_key(ec.SECP256R1())
    alternatives = [
        x509.DNSName("localhost"),
        *(x509.IPAddress(address) for address in sorted(wanted, key=str)),
    ]
    certificate = (
        x509.CertificateBuilder()
        .subject_name(_name("District gateway"))
        .issuer_name(ca.subject)
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=SERVER_DAYS))
        .add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(x509.SubjectAlternativeName(alternatives), critical=False)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
        .add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_public_key(ca_key.public_key()), critical=False
        )
        .sign(ca_key, hashes.SHA256())
    )
    _write_private(key_path, _key_bytes(key))
    chain = [certificate, ca]
    certificate_path.write_bytes(b"".join(c.public_bytes(serialization.Encoding.PEM) for c in chain))


HOW_TO_TRUST = """\
To trust this gateway on a phone, once:
  1. copy {ca} to the phone (or open {url}/ca.crt there and go past the warning)
  2. Android: Settings > Security > Encryption & credentials > Install a certificate > CA certificate
     iPhone:  install the profile in Settings, then General > About > Certificate Trust Settings > switch it on
  3. open the link of the gridworker above on the phone
Remove it again when the demo is over: whoever holds {folder}/ca.key could impersonate servers to that phone."""


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--out", type=Path, default=Path("config/lan"))
    parser.add_argument("--address", action="append", default=[])
    parser.add_argument("--url", default="https://<this machine>:8443")
    options = parser.parse_args()
    options.out.mkdir(parents=True, exist_ok=True, mode=0o700)
    ensure_server(options.out, options.address or lan_addresses())
    print(HOW_TO_TRUST.format(ca=options.out / "ca.crt", url=options.url, folder=options.out))


if __name__ == "__main__":
    main()
