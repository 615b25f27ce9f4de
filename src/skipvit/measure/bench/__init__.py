"""Throughput of several configurations, measured side by side: `variants.bench`."""
