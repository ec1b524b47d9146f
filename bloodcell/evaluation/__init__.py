"""What a prediction is worth: the table of predictions, exact metrics from it, and their intervals."""
