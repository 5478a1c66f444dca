"""The life of a run: its folder, log, signals, exit codes and ending."""
