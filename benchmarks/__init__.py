"""Measurements: tables, and JSON with machine and commit. `lvm bench` runs four of them."""
