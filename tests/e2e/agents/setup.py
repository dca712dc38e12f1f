"""Setup and report of every agent with the Agentex SDK, as in the SDK's templates."""

import json
import os
import sys
from collections.abc import Iterable
from typing import Any, TypeAlias

from agentex.lib.core.tracing.tracing_processor_manager import (  # type: ignore[import-not-found]
    add_tracing_processor_config,
)
from agentex.lib.types.tracing import (  # type: ignore[import-not-found]
    AgentexTracingProcessorConfig,
    SGPTracingProcessorConfig,
)
from trace_sidecar_client import register

# The SDKs' own types: the SDKs are not installed where this is type-checked.
Sdk: TypeAlias = Any


def use(processors: str) -> None:
    """Register the processors of a comma-separated list of agentex, sgp and sidecar."""
    for name in processors.split(","):
        if name == "sidecar":
            register()
        elif name == "agentex":
            add_tracing_processor_config(AgentexTracingProcessorConfig())
        else:
            add_tracing_processor_config(
                SGPTracingProcessorConfig(
                    sgp_api_key=os.environ.get("SGP_API_KEY", ""),
                    sgp_account_id=os.environ.get("SGP_ACCOUNT_ID", ""),
                    sgp_base_url=os.environ.get("SGP_CLIENT_BASE_URL", ""),
                )
            )


def report(made: Iterable[Sdk]) -> None:
    """Print the spans that the agent ended, from its own records."""
    kept = ("id", "trace_id", "name", "start_time", "end_time")
    rows = [span.model_dump(mode="json") for span in made]
    sys.stdout.write(json.dumps([{name: row[name] for name in kept} for row in rows]) + "\n")
    sys.stdout.flush()
