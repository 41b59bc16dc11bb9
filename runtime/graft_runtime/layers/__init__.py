"""The pieces a decoder is made of."""
