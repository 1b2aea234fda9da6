"""What operators look at: Grafana boards written by code, and Prometheus alerts."""
