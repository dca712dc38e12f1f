"""An agent as it is today: nothing in it knows of the sidecar."""

import os

import turn
from agentex.lib.core.tracing.tracing_processor_manager import add_tracing_processor_config
from agentex.lib.types.tracing import SGPTracingProcessorConfig

if __name__ == "__main__":
    add_tracing_processor_config(
        SGPTracingProcessorConfig(
            sgp_api_key=os.environ.get("SGP_API_KEY", ""),
            sgp_account_id=os.environ.get("SGP_ACCOUNT_ID", ""),
            sgp_base_url=os.environ.get("SGP_CLIENT_BASE_URL", ""),
        )
    )
    turn.run()
