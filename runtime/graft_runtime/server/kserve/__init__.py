"""KServe's Open Inference Protocol v2 with Triton's extensions, over HTTP and gRPC."""
