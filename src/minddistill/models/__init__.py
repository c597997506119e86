"""What maps a batch to outputs."""
