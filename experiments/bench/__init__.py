"""Benchmarks: `timing` starts a `worker` per job, which calls its cases in turn.

`small`, `wide`, `stores`, `forward`, `generators` and `peers` make the cases; those of the reference set-up are made by
`worker` itself.
"""
