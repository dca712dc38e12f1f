"""Shared by the tests: a sidecar with its upstreams, fake clocks, helpers."""
