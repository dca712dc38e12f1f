"""What an agent said: spans and events as bytes, decoded and validated. No I/O, no clock."""
