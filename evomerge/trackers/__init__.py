"""Shows a search to other tools while it runs: TensorBoard, MLflow, Weights & Biases."""
