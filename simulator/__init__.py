"""The gateway's own dispatcher in virtual time, over models of engines: what a policy is worth, without a GPU."""
