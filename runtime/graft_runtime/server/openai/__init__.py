"""OpenAI's surface, with the fields and habits that vLLM adds to it."""
