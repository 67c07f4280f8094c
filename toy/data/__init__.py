"""Where activations come from: feature trees, arrays in memory, and rows on disk."""
