"""The agents' port: a request becomes spans, or an answer that says why not."""
