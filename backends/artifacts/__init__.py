"""Artifacts in two tiers: the memory of this process, and a Redis server that all gateways share."""
