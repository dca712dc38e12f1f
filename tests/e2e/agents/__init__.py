"""Agents for the end-to-end tests: run by an interpreter that has the real SDKs, never imported."""
