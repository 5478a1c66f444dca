"""The tables of a run's TOML file."""
