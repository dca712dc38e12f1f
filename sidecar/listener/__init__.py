"""The agents' port: turns a request into spans, or into a response that says why not."""
