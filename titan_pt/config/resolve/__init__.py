"""Config resolution: files and flags become one validated config."""
