"""What moves parameters: optimiser, step, loop, log and checkpoints."""
