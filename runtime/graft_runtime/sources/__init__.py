"""Where models and adapters come from, and the disk cache that keeps them."""
