"""Which engine of a pool takes a call: filter, score, pick."""
