"""An engine that behaves like a vLLM server and needs no GPU: what it says comes from a script."""
