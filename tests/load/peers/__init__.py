"""`make bench-peers`: compares the sidecar with its peers, in one run on one machine.

    agent (agent.py, tracers.py) ----HTTP---+-> forwarder (forwarders.py) -HTTP-> upstream stand-ins
    or a sender of ready requests (sender.py) '-> none: the SDKs send by themselves

Each run has its own processes, on loopback. `runs` executes and measures one (proc.py), `plan`
lists them, and `__main__` alternates between them. `summary` computes medians, `report` and
`picture` write docs/benchmarks.md and .svg, and `bars` compares with the required figures.
"""
