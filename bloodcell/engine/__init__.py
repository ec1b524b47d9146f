"""The engine: plan, optimizer, strategies, checkpoints and the training loop."""
