"""Anthropic's surface: messages in, one message of content blocks out."""
