"""Networks: the registry of models, their classifier heads, and their weights on disk."""
