"""The port to the outside: a Kubernetes cluster, or a folder of manifests and child processes."""
