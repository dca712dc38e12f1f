"""Programs that make committed files; none is part of the sidecar."""
