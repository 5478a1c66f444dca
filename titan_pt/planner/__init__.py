"""What a run will need, known before it: memory, time, disk, money."""
