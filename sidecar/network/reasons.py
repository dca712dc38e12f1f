"""Why a host could not be reached, in words for operators: pure.

Before the first request, no text that an error carries can have span content in it. It names the
host, and gives the reason of the C library or of OpenSSL.
"""

import errno
import os
import re
import socket
import ssl

_UNKNOWN_NAME = {
    socket.EAI_NONAME,
    getattr(socket, "EAI_NODATA", socket.EAI_NONAME),
    getattr(socket, "EAI_ADDRFAMILY", socket.EAI_NONAME),
}
_NUMBER = re.compile(r"\[Errno\s(\d+)\]")
# In the order in which they are told, if addresses fail for different reasons.
_CONNECT = {
    errno.ECONNREFUSED: "{} refuses connections",
    errno.ETIMEDOUT: "{} does not answer",
    errno.EHOSTUNREACH: "no route to {}",
    errno.ENETUNREACH: "no route to {}",
    errno.EADDRNOTAVAIL: "no local address or port for a connection to {}",
    errno.EACCES: "this machine does not permit connections to {}",
    errno.EPERM: "this machine does not permit connections to {}",
}
# X509_V_ERR_*: OpenSSL's documentation of X509_STORE_CTX_get_error.
EXPIRED = 10
_NOT_TRUSTED = {2, 18, 19, 20, 21, 22, 24, 26}
_OTHER_NAME = {62, 63, 64}
# OpenSSL's names of what a server says that wants a client certificate, or another one.
_WANTED = {"TLSV13_ALERT_CERTIFICATE_REQUIRED"}
_CERTIFICATE_ALERTS = {
    "SSLV3_ALERT_BAD_CERTIFICATE",
    "SSLV3_ALERT_UNSUPPORTED_CERTIFICATE",
    "SSLV3_ALERT_CERTIFICATE_REVOKED",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED",
    "SSLV3_ALERT_CERTIFICATE_UNKNOWN",
    "TLSV1_ALERT_UNKNOWN_CA",
    "TLSV1_ALERT_ACCESS_DENIED",
}
_HINTS = {
    "WRONG_VERSION_NUMBER": " (does it expect http?)",
    "HTTP_REQUEST": " (does it expect http?)",
    "SSLV3_ALERT_HANDSHAKE_FAILURE": " (does it require a client certificate?)",
}


def lookup_failed(host: str, error: OSError | UnicodeError) -> str:
    """Why a name could not be looked up."""
    if not isinstance(error, socket.gaierror):
        return f"the DNS lookup of {host} failed: {_system_reason(error)}"
    if error.errno in _UNKNOWN_NAME:
        return f"DNS knows no {host}"
    if error.errno == socket.EAI_AGAIN:
        return f"DNS has no answer for {host}"
    return f"the DNS lookup of {host} failed: {error.strerror}"


def connect_failed(where: str, error: Exception) -> str:
    """Why no TCP connection could be opened to `where`, a host and a port."""
    numbers = errors_of(error)
    for number, text in _CONNECT.items():
        if number in numbers:
            return text.format(where)
    return f"no connection to {where}: {_system_reason(error)}"


def errors_of(error: Exception) -> set[int]:
    """The system's error numbers: several, if each address of a host failed for another reason."""
    number = getattr(error, "errno", None)
    # aiohappyeyeballs has them in the text only.
    return {number} if number else {int(each) for each in _NUMBER.findall(str(error))}


def tls_failed(host: str, error: Exception, *, has_certificate: bool) -> str:
    """Why a TLS handshake with `host` failed. `has_certificate`: the client has one to show."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return _not_verified(host, error)
    reason = _tls_reason(error)
    if reason and (reason not in _CERTIFICATE_ALERTS or has_certificate):
        alert = _about_certificate(host, reason)
        if alert:
            return alert
    hint = _HINTS.get(reason, "")
    if reason in _CERTIFICATE_ALERTS:
        hint = _HINTS["SSLV3_ALERT_HANDSHAKE_FAILURE"]
    return f"TLS with {host} failed: {_words(reason) if reason else _end(error)}{hint}"


def unwelcome(host: str, error: Exception | None) -> str:
    """Why `host` ended a connection over TLS although nothing was asked."""
    if _tls_reason(error):
        return ended(host, error)
    return (
        f"{host} ends the connection after the handshake{_HINTS['SSLV3_ALERT_HANDSHAKE_FAILURE']}"
    )


def ended(host: str, error: Exception | None) -> str:
    """Why an open connection to `host` ended: nothing of what was sent on it."""
    reason = _tls_reason(error)
    if reason:
        # In TLS 1.3, the server looks at the client's certificate after the handshake.
        return _about_certificate(host, reason) or f"TLS with {host} failed: {_words(reason)}"
    return _end(error)


def _about_certificate(host: str, reason: str) -> str:
    """What an alert about the client's certificate means; "" if it is about something else."""
    if reason in _WANTED:
        return f"{host} requires a client certificate"
    if reason in _CERTIFICATE_ALERTS:
        return f"{host} refuses the client certificate: {_words(reason)}"
    return ""


def _tls_reason(error: Exception | None) -> str:
    """OpenSSL's name of the reason; "" if there is none, or if the peer just ended it."""
    if not isinstance(error, ssl.SSLError) or isinstance(error, ssl.SSLEOFError):
        return ""
    return error.reason or ""


def _end(error: Exception | None) -> str:
    if error is None or isinstance(error, ssl.SSLEOFError | EOFError):
        return "connection ended"
    if isinstance(error, ConnectionResetError | BrokenPipeError):
        return "connection reset"
    return _system_reason(error)


def _not_verified(host: str, error: ssl.SSLCertVerificationError) -> str:
    code = getattr(error, "verify_code", 0)
    reason = str(getattr(error, "verify_message", "") or "not verified").rstrip(".")
    if code in _OTHER_NAME:
        return f"certificate of {host} is not for this name: {reason}"
    if code in _NOT_TRUSTED:
        return f"certificate of {host} is not trusted: {reason}"
    return f"certificate of {host}: {reason}"


def _system_reason(error: Exception) -> str:
    number = error.errno if isinstance(error, OSError) else None
    return os.strerror(number).lower() if number else type(error).__name__


def _words(reason: str) -> str:
    """OpenSSL's name of a reason as words: `TLSV1_ALERT_UNKNOWN_CA` is "alert unknown ca"."""
    for prefix in ("TLSV1_", "TLSV13_", "SSLV3_"):
        reason = reason.removeprefix(prefix)
    return reason.lower().replace("_", " ")
