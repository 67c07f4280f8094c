"""Sources of activations: feature trees, arrays in memory, and rows on disk."""
