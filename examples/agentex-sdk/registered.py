"""The same agent with `register()` instead of the SDK's own processors."""

import turn
from trace_sidecar_client import register

if __name__ == "__main__":
    register()
    turn.run()
