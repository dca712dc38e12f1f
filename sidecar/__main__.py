"""Entry point of the `sidecar` command and of `python -m sidecar`."""

import sys

from sidecar.process import signals

signals.block()  # before the other imports, which take most of a second

from sidecar.cli import main  # noqa: E402

if __name__ == "__main__":
    sys.exit(main())
