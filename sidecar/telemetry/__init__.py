"""Records what happens: accounting, metrics, recent decisions."""
