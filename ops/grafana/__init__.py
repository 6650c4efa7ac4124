"""Grafana dashboards of a mesh: `boards` says what they show, `build` writes them."""
