"""Agents for the end-to-end tests: programs with real SDKs and HTTP clients, never imported."""
