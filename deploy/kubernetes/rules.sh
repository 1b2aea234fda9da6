#!/bin/sh
# Prints dashboards/alerts.yaml as an object of the Prometheus Operator: rules.sh | kubectl apply -f -
set -eu
cat <<HEAD
apiVersion: monitoring.coreos.com/v1
kind: PrometheusRule
metadata:
  name: cortex
  namespace: cortex
spec:
HEAD
sed 's/^/  /' "$(dirname "$0")/../../dashboards/alerts.yaml"
