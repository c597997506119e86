"""What measures models, draws figures and writes reports."""
