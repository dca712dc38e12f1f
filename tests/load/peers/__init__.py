"""`make bench-peers`: the sidecar beside its peers, in one run on one machine.

    agent (agent.py, tracers.py) ----HTTP---+-> forwarder (forwarders.py) -HTTP-> upstream stand-ins
    or a sender of ready requests (sender.py) '-> none: the SDKs send by themselves

Each run has processes of its own, on loopback. `runs` makes one and measures it (proc.py), `plan`
says which there are, `__main__` takes turns between them; `summary` makes medians, `report` and
`picture` write docs/benchmarks.md and .svg, `bars` compares with what was asked for.
"""
