"""Stand-ins for both upstreams, as strict as docs/upstreams.md says, and the demo."""
