"""Documents that need no file."""
