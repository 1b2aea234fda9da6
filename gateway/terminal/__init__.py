"""The commands that look at a running gateway, and turn its few wheels, from a terminal: over the admin API alone."""
