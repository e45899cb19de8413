"""A training run: its config, set-up, optimizer, hosts, metrics and validation."""
