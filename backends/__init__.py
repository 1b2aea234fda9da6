"""Does: LLM servers, SQL workers and the emulated engine, each behind the protocols of `backends.base`."""
