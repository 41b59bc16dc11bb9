"""Front doors: HTTP surfaces over one backend. Knows no tensor."""
