"""Stand-ins for both upstreams (real HTTP, in memory, strict to the contracts), and the demo."""
