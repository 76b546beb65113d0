"""What a GGUF file is made of: metadata, vocabulary, tensors and their quantization types."""
