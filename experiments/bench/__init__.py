"""Benchmarks: `timing` starts a `worker` per table, which calls the cases of `small`, `wide` or `stores` in turn."""
