"""The certificate by which the parts of SeaweedFS know each other: no other program may speak to their inner ports."""

import ipaddress
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import NamedTuple

from cryptography import x509
from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID

from flows.local.process import HOST
from ptpipeline.private import write_private

_YEARS = 100  # the owner deletes the folder to renew it; an ended certificate would only stop the stack


class Certificate(NamedTuple):
    """A self-signed certificate, which is its own authority, and its key; PEM files, readable by their owner alone."""

    certificate: Path
    key: Path


def locate(home: Path) -> Certificate:
    """Return where the stack's certificate and key lie."""
    return Certificate(home / "tls" / "storage.crt", home / "tls" / "storage.key")


def ensure(home: Path) -> None:
    """Make certificate and key unless both exist."""
    paths = locate(home)
    if paths.certificate.exists() and paths.key.exists():
        return
    paths.key.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    key = ec.generate_private_key(ec.SECP256R1())
    encoded = key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.NoEncryption()
    )
    write_private(paths.key, encoded)
    write_private(paths.certificate, _sign(key).public_bytes(serialization.Encoding.PEM))


def _sign(key: ec.EllipticCurvePrivateKey) -> x509.Certificate:
    name = x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "storage of ptp")])
    now = datetime.now(UTC)
    hosts = [x509.IPAddress(ipaddress.ip_address(HOST)), x509.DNSName("localhost")]
    uses = [ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.CLIENT_AUTH]
    builder = x509.CertificateBuilder().subject_name(name).issuer_name(name).public_key(key.public_key())
    builder = builder.serial_number(x509.random_serial_number())
    builder = builder.not_valid_before(now - timedelta(days=1)).not_valid_after(now + timedelta(days=365 * _YEARS))
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(x509.SubjectAlternativeName(hosts), critical=False)
    builder = builder.add_extension(x509.ExtendedKeyUsage(uses), critical=False)
    return builder.sign(key, hashes.SHA256())
