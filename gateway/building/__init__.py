"""The parts of `gateway.compose` that build engines and warehouses: what it is split into, and for nobody else."""
