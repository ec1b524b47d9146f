"""What a training process does: config, data, models, engine, evaluation, tracking, export."""
