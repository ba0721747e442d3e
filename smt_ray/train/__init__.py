"""One training loop for every objective, on Ray Train and DeepSpeed."""
