"""Agents for the end-to-end tests: run by an interpreter with the real SDKs, never imported."""
