"""Spans and events: decoding, validation and raw JSON bytes. No I/O, no clock."""
