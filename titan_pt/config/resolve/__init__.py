"""From files and flags to one validated config."""
