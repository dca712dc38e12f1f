"""HTTP/1.1 client and server over llhttp. Nothing here knows what a span is."""
