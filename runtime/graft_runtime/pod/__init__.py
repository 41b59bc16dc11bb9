"""One pod put together: child processes, adapters and streams behind the server's port."""
