"""Hypothesis profiles; `HYPOTHESIS_PROFILE` picks one. Warnings are errors (pyproject.toml)."""

import os

from hypothesis import HealthCheck, settings

# No deadline: what is slow on a busy machine is not wrong.
settings.register_profile("quick", max_examples=10, deadline=None)  # make test
settings.register_profile("full", max_examples=50, deadline=None)  # make test-slow
# With so many examples, some are slow to generate or too large.
for name, examples in {"nightly": 500, "fuzz": 5000}.items():
    settings.register_profile(
        name,
        max_examples=examples,
        deadline=None,
        suppress_health_check=[HealthCheck.too_slow, HealthCheck.data_too_large],
    )
settings.load_profile(os.environ.get("HYPOTHESIS_PROFILE", "quick"))
