"""One generic decoder built from a Hugging Face config."""
