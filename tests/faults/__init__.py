"""Faults of upstreams, agents and disks, and kills, against a running sidecar."""
