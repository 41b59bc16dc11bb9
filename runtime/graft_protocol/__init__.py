"""What operator and runtime say to each other, and their only shared code.

It depends on pydantic alone and imports neither plane.
"""

__version__ = "0.1.0"
