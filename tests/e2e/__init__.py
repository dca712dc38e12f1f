"""End-to-end tests: they take minutes and run only when named (.ci/run does)."""
