"""Faults by seed: real runs, forked from a process that has imported torch, that are hurt and started again.

`library` compiles what fails or kills at the k-th file operation and shifts the clock, `server` forks the runs,
`experiments` are what is trained, `scenarios` draws what happens to it, `judge` says what was lost.
"""
