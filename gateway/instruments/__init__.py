"""What counts and measures: the metrics of `gateway.metrics`, family by family."""
