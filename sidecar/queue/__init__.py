"""What waits, within bounds: admission, open spans, and one queue per lane."""
