"""What happened, as plain numbers: accounting, metrics, recent decisions."""
