"""The certificate by which a server speaks TLS, read again when its files changed: renewing one needs no restart."""

import logging
import os
import ssl
from datetime import UTC, datetime
from pathlib import Path

from cryptography import x509

from ptpipeline.errors import SettingsError
from ptpipeline.private import open_regular

log = logging.getLogger("ptpipeline.server")


class Certificate:
    """A certificate and its key, in PEM files. Connections that are open stay with what they began with."""

    def __init__(self, certificate: Path, key: Path) -> None:
        """Raises SettingsError if the files cannot be used."""
        self._files = (certificate, key)
        self._stamp = self._read_stamp()
        self.context = self._newest = _load(certificate, key)
        self.context.sni_callback = self._choose  # also called if a client names no server
        _tell_dates(certificate)

    def renew(self) -> None:
        """Take what the files hold now; if that cannot be used, log it once and go on with what was before."""
        stamp = self._read_stamp()
        if stamp == self._stamp:
            return
        self._stamp = stamp
        try:
            self._newest = _load(*self._files)
        except SettingsError as error:  # one of the two files may be a moment behind the other
            log.warning("%s; the certificate before it stays in use until the files change again", error)
        else:
            log.info("%s: the certificate was renewed", self._files[0])
            _tell_dates(self._files[0])

    def _read_stamp(self) -> list[tuple[int, int, int] | None]:
        return [_stamp_of(path) for path in self._files]

    def _choose(self, connection: ssl.SSLObject, name: str | None, context: ssl.SSLContext) -> None:
        connection.context = self._newest


def open_certificate(certificate: Path | None, key: Path | None) -> Certificate | None:
    """Return the certificate of a server, None if it speaks no TLS; raises SettingsError if one file is missing."""
    if certificate is None and key is None:
        return None
    if certificate is None or key is None:
        raise SettingsError("TLS takes both --tls-cert and --tls-key: PEM files of the certificate and of its key")
    return Certificate(certificate, key)


def _stamp_of(path: Path) -> tuple[int, int, int] | None:
    try:
        state = os.stat(path)
    except OSError:
        return None
    return state.st_mtime_ns, state.st_size, state.st_ino


def _tell_dates(path: Path) -> None:
    """Log that clients refuse the server's certificate by its dates, if they do; the file was just used."""
    try:
        with open_regular(path) as file:
            own = x509.load_pem_x509_certificates(file.read())[0]
    except (OSError, ValueError):  # it was replaced since, or only OpenSSL knows its form
        return
    now, begins, ends = datetime.now(UTC), own.not_valid_before_utc, own.not_valid_after_utc
    if not begins <= now <= ends:
        log.warning(
            "--tls-cert %s: holds from %s to %s, so that clients refuse it now; renew it, and it is taken without a "
            "restart",
            path,
            begins.isoformat(" ", "minutes"),
            ends.isoformat(" ", "minutes"),
        )


def _load(certificate: Path, key: Path) -> ssl.SSLContext:
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        for path in (certificate, key):
            open_regular(path).close()  # a pipe would keep us waiting
        context.load_cert_chain(certificate, key, password="")
    except (OSError, ValueError) as error:  # SSLError is an OSError
        reason = getattr(error, "reason", None) or getattr(error, "strerror", None) or "it has a password"
        raise SettingsError(
            f"--tls-cert {certificate}, --tls-key {key}: cannot be used ({reason}); expected PEM files of a "
            "certificate and of its private key, without a password"
        ) from None
    return context
