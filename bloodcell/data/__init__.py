"""From a shard set to batches on the device: sample order, draws per sample, policies, readers."""
