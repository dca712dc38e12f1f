"""HTTP/1.1 over llhttp, both ways. Knows no span."""
