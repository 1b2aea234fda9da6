"""The ways in which clients speak to models: how each is read, what its events mean, how it puts an error."""
