"""The language model's decoder as ONNX, built from the checkpoint's parameters one by one."""
