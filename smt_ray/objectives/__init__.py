"""One `nn.Module` an objective: `forward(batch) -> {"loss": ..., metrics}`. Torch only."""
