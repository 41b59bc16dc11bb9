"""The API's source of truth: the two kinds as pydantic models, and what is generated from them."""
