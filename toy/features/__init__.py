"""The ground truth: feature trees, how they are written, sampled and measured exactly, and the features' directions."""
