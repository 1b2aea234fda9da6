"""Decides: which call next, on which engine, whether at all. No I/O, no clock and no chance of its own."""
