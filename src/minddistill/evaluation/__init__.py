"""What measures a model."""
