"""The workloads that policies are compared on."""
