"""Using a trained model: searching pictures, and ONNX."""
