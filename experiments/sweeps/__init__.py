"""Sweeps: hundreds of trees, thousands of runs, in a few compiled programs and a store that loses nothing."""
