"""How an upstream is reached: names, proxies, TLS. Of HTTP, it knows `CONNECT` only."""
