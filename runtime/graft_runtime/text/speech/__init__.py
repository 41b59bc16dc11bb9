"""What a model's text says: content, thoughts and calls of tools, told apart as it streams."""
