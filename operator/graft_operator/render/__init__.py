"""Pure: an InferenceService and what was decided about it -> the manifests of its children."""
