"""The process and its machine: memory limits, listening sockets, the exit report."""
