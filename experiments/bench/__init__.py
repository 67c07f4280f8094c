"""Timed work: jobs in processes of their own, their cases, and the same work in SAELens."""
