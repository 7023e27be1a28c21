"""Certificates for one test: an authority, and what it vouches for."""

from __future__ import annotations

import datetime
import ipaddress
from pathlib import Path
from typing import Any

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import NameOID

_NAMES = [x509.DNSName("localhost"), x509.IPAddress(ipaddress.ip_address("127.0.0.1"))]


def _builder(name: str, issuer: str, key: Any) -> x509.CertificateBuilder:
    now = datetime.datetime.now(datetime.UTC)
    return (
        x509.CertificateBuilder()
        .subject_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, name)]))
        .issuer_name(x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, issuer)]))
        .public_key(key.public_key())
        .serial_number(x509.random_serial_number())
        .not_valid_before(now - datetime.timedelta(hours=1))
        .not_valid_after(now + datetime.timedelta(days=1))
    )


def authority(path: Path) -> Any:
    """A CA, its certificate at `path`; returns its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = _builder("ca", "ca", key).add_extension(x509.BasicConstraints(True, None), critical=True)
    path.write_bytes(made.sign(key, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    return key


def certificate(ca: Any, path: Path, key_path: Path) -> None:
    """A certificate of that CA for this host, and its key."""
    key = ec.generate_private_key(ec.SECP256R1())
    made = _builder("localhost", "ca", key).add_extension(x509.SubjectAlternativeName(_NAMES), critical=False)
    path.write_bytes(made.sign(ca, hashes.SHA256()).public_bytes(serialization.Encoding.PEM))
    encryption = serialization.NoEncryption()
    private = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, encryption)
    key_path.write_bytes(private)
