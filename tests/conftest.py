"""Hypothesis profiles; `HYPOTHESIS_PROFILE` picks one. Warnings are errors (pyproject.toml)."""

import os

from hypothesis import HealthCheck, settings

# No deadline: what is slow on a busy machine is not wrong.
settings.register_profile("quick", max_examples=10, deadline=None)  # make test
settings.register_profile("full", max_examples=50, deadline=None)  # make test-slow
settings.register_profile("nightly", max_examples=500, deadline=None)
settings.register_profile(
    "fuzz",
    max_examples=5000,
    deadline=None,
    suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
)
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
