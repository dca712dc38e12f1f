"""Fixtures of the tests that use TLS."""

from tests.support.tls import authority, tls, trusted_tls

__all__ = ["authority", "tls", "trusted_tls"]
