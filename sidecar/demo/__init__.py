"""Upstreams to try the sidecar on: real HTTP servers, strict to the contracts, in memory."""
