"""What carries a model to where it runs. Predicting with ONNX Runtime imports no MindSpore."""
