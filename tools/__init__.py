"""Programs that generate committed files; none is part of the sidecar."""
