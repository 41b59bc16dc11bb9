"""Messages and channels between the server, engine and loader processes."""
