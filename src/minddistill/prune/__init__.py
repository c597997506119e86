"""What makes a model sparse, or smaller: masks made while it trains, and tensors cut by their importance."""
